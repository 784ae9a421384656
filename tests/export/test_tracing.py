"""Tracing: names of sizes, weights left outside, and constants that no precision rounds."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from torch import Tensor, nn

from longlive_trt.configs import load_config
from longlive_trt.errors import ExportError
from longlive_trt.export.components import step_spec
from longlive_trt.export.tracing import GraphInput, GraphSpec, trace
from longlive_trt.precision import compute_precision, precision_named, retype


class Scaled(nn.Module):
    def __init__(self, scale: float, *, wide: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.scale, self.wide = scale, wide

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return (y.float() * self.scale).to(y.dtype) if self.wide else y * self.scale


def spec(scale: float, **options: Any) -> GraphSpec:
    return GraphSpec(
        name="scaled",
        component="transformer",
        module=lambda: Holder(Scaled(scale, **options)),
        inputs=[GraphInput("x", ("batch", 3, 4))],
        outputs=["y"],
        examples={"batch": 2},
        weight_prefix="model.",
    )


class Holder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.model(x)
        return result


@pytest.mark.parametrize("channels", [32, 96, 384])
def test_a_constant_that_half_precision_rounds_is_refused(channels: int) -> None:
    with pytest.raises(ExportError, match="rounded"):
        trace(spec(channels**-0.5))


def test_exact_and_wide_constants_pass() -> None:
    trace(spec(0.125))
    trace(spec(384**-0.5, wide=True))


def test_weights_stay_outside_under_their_checkpoint_names() -> None:
    traced = trace(spec(0.5))
    assert set(traced.weights) == {"linear.weight", "linear.bias"}
    assert all(value.const_value is None for value in traced.weights.values())
    assert traced.transposed == {"linear.weight"}
    (x,) = traced.model.graph.inputs
    assert [str(size) for size in x.shape or ()] == ["batch", "3", "4"]


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
def test_another_compute_type_is_a_change_of_names(name: str) -> None:
    model = trace(spec(0.5, wide=True)).model
    precision = precision_named(name)
    retype(model, precision)
    assert compute_precision(model) == precision
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        if value.name != "y" and value.shape is not None and len(value.shape) > 0:
            assert value.dtype == precision.onnx
    casts = [node.attributes["to"].as_int() for node in model.graph if node.op_type == "Cast"]
    assert set(casts) == {ir.DataType.FLOAT, precision.onnx}


@pytest.mark.exhaustive
def test_sizes_keep_their_names_on_the_smallest_grid() -> None:
    """With one token a frame, a cache of n frames has n tokens."""
    small = ["transformer.layers=1", "transformer.dim=24", "transformer.ffn_dim=8"]
    grid = ["latent.height=2", "latent.width=2"]
    traced = trace(step_spec(load_config("tiny", overrides=[*small, *grid])))
    shapes = {
        value.name: [str(size) for size in value.shape or ()]
        for value in (*traced.model.graph.inputs, *traced.model.graph.outputs)
    }
    assert shapes["k_cache.0"][:2] == ["batch", "cache_frames"]
    assert shapes["k_new.0"][:2] == ["batch", "frames"]
    assert shapes["latents_next"][:2] == ["batch", "frames"]


def test_graphs_say_nothing_of_the_machine_that_traced_them(tiny_export: Path) -> None:
    for path in tiny_export.glob("*.onnx"):
        data = path.read_bytes()
        assert b"site-packages" not in data and b'File "/' not in data


def test_norms_of_the_vae_are_in_single_precision_whatever_the_rest_is_in(
    tiny_export: Path,
) -> None:
    """Or sums of squares, which a CPU takes for them, would overflow in halves."""
    model = onnx.load(tiny_export / "vae_next.onnx", load_external_data=False)
    made_by = {name: node for node in model.graph.node for name in node.output}
    norms = [made_by[node.input[0]] for node in model.graph.node if node.op_type == "ReduceL2"]
    assert norms and {node.op_type for node in norms} == {"Cast"}
    assert {a.i for node in norms for a in node.attribute} == {onnx.TensorProto.FLOAT}


def test_the_vae_keeps_its_scales_in_single_precision(tiny_export: Path) -> None:
    model = onnx.load(tiny_export / "vae_first.onnx", load_external_data=False)
    found = [
        onnx.numpy_helper.to_array(tensor).item()
        for tensor in model.graph.initializer
        if not tensor.external_data and not tensor.dims and tensor.data_type == 1
    ]
    # One over the root of the attention's 32 channels.
    assert any(np.isclose(scale, 32**-0.5, rtol=1e-7) for scale in found)
