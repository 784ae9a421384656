"""The quantized graphs: standard operators, real quantized weights, and the meaning of torch."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from longlive_trt.calibration.cache import QuantizedCacheRollout
from longlive_trt.calibration.calibration_file import Calibration
from longlive_trt.calibration.quantized import load_quantized
from longlive_trt.calibration.recipes import FORMATS, FP8, Extras
from longlive_trt.calibration.texts import SyntheticTexts
from longlive_trt.configs import ModelConfig
from longlive_trt.engines.build import build
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.engines.loader import load_engine
from longlive_trt.errors import UsageError
from longlive_trt.export.checkpoints.weights import Weights
from longlive_trt.export.exported_weights import ExportedWeights
from longlive_trt.export.models.rollout import ReferenceRollout
from longlive_trt.exports import read_export
from longlive_trt.precision import PRECISIONS, retype
from longlive_trt.runtime.ring import Ring, RingLayout
from longlive_trt.runtime.transformer import TransformerPasses
from tests.fakes.weights import ChangedWeights

Exported = Callable[[str], Path]
NARROW = {"fp8": ir.DataType.FLOAT8E4M3FN, "int8": ir.DataType.INT8}


@pytest.mark.parametrize("recipe", ["fp8", pytest.param("int8", marks=pytest.mark.exhaustive)])
def test_linears_are_standard_quantized_products(quantized_export: Exported, recipe: str) -> None:
    model = ir.load(quantized_export(recipe) / "step.onnx")
    counts = Counter(node.op_type for node in model.graph)
    # Per layer: q, k, v, o, the cross-attention's q and o, and two of the FFN.
    assert counts["DequantizeLinear"] == 2 * 8
    assert counts["QuantizeLinear"] == 8
    assert {node.domain for node in model.graph} == {"", "longlive"}
    quantized = [v for v in model.graph.initializers.values() if v.dtype == NARROW[recipe]]
    assert len(quantized) == 8
    for value in quantized:
        (use,) = value.uses()
        assert use.node.op_type == "DequantizeLinear"
        assert use.node.outputs[0].uses()[0].node.op_type == "MatMul"


def test_narrow_weights_are_half_of_fp16(
    quantized_export: Exported, small_export: Path, small_config: ModelConfig
) -> None:
    plain, quantized = (
        sum(
            value.const_value.nbytes
            for value in ir.load(folder / "step.onnx").graph.initializers.values()
            if value.name.startswith("transformer.blocks.") and len(value.shape) == 2
        )
        for folder in (small_export, quantized_export("fp8"))
    )
    assert quantized * 2 == plain


@pytest.mark.parametrize("recipe", ["fp8", pytest.param("int8", marks=pytest.mark.exhaustive)])
def test_the_reference_evaluator_agrees_with_torch(
    quantized_export: Exported,
    small_config: ModelConfig,
    small_weights: Weights,
    calibrations: Mapping[str, Calibration],
    recipe: str,
    tmp_path: Path,
) -> None:
    """onnx's own evaluator, which knows FP8, on the prompt graph in float32."""
    model = ir.load(quantized_export(recipe) / "prompt.onnx")
    retype(model, PRECISIONS["fp32"])
    ir.save(model, tmp_path / "prompt.onnx", external_data="prompt.weights")
    proto = onnx.load(tmp_path / "prompt.onnx")
    generator = torch.Generator().manual_seed(3)
    shape = (1, small_config.transformer.text_len, small_config.transformer.text_dim)
    states = torch.randn(shape, generator=generator)
    found = ReferenceEvaluator(proto).run(None, {"text_states": states.numpy()})
    # The export is in fp16, so what is not quantized was rounded to that.
    rounded = HalfWeights(small_weights)
    torch_model = load_quantized(small_config, rounded, calibrations[recipe], "fp32", "cpu")
    keys, values = zip(*torch_model.prompt(states), strict=True)
    for one, other in zip(found, (*keys, *values), strict=True):
        error = np.linalg.norm(one - other.numpy()) / np.linalg.norm(other.numpy())
        assert error < 2e-3


class HalfWeights(ChangedWeights):
    """What an fp16 export keeps of the weights."""

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32

    def load(self, name: str) -> torch.Tensor:
        return super().load(name).half().float()


@pytest.mark.parametrize(
    ("recipe", "compute"),
    [("fp8", "fp32"), pytest.param("int8", "fp32", marks=pytest.mark.exhaustive)],
)
def test_a_bundle_of_onnxruntime_agrees_with_torch(
    quantized_export: Exported,
    small_config: ModelConfig,
    small_weights: Weights,
    calibrations: Mapping[str, Calibration],
    recipe: str,
    compute: str,
    tmp_path: Path,
) -> None:
    build(quantized_export(recipe), tmp_path / "bundle", compute)
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.manifest.precision == recipe
    states = torch.randn(1, 8, 48, generator=torch.Generator().manual_seed(3))
    with load_engine(bundle, "prompt") as engine:
        outputs = {n: np.empty(s.sized(batch=1), s.dtype) for n, s in engine.outputs.items()}
        engine.bind({"text_states": states.numpy()}, outputs).run()
    model = load_quantized(
        small_config, HalfWeights(small_weights), calibrations[recipe], "fp32", "cpu"
    )
    for layer, (key, value) in enumerate(model.prompt(states)):
        for part, expected in (("k", key), ("v", value)):
            found = outputs[f"context_{part}.{layer}"]
            error = np.linalg.norm(found - expected.numpy()) / np.linalg.norm(expected.numpy())
            assert error < 5e-3


def test_an_fp8_bundle_keeps_narrow_weights(quantized_export: Exported, tmp_path: Path) -> None:
    build(quantized_export("fp8"), tmp_path / "bundle", "fp32")
    model = onnx.load(tmp_path / "bundle" / "step.onnx", load_external_data=False)
    kinds = Counter(tensor.data_type for tensor in model.graph.initializer)
    assert kinds[onnx.TensorProto.FLOAT8E4M3FN] == 8


def test_an_export_gives_its_weights_back(
    small_export: Path, small_weights: Weights, small_config: ModelConfig
) -> None:
    record = read_export(small_export)
    shapes = dict.fromkeys(small_weights.names, ())
    weights = ExportedWeights(small_export, record, "transformer", shapes)
    assert weights.names == small_weights.names
    assert weights.digest() == small_weights.digest()
    for name in weights.names:
        assert weights.shape(name) == small_weights.shape(name)
        expected = small_weights.load(name).half().float()
        assert weights.load(name).equal(expected), name


def test_several_threads_may_read_one_weight(
    small_export: Path, small_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer's weight is asked for by its name and for what is made of it."""
    maps = ir.ExternalTensor._load

    def slowly(tensor: ir.ExternalTensor) -> None:
        time.sleep(0.2)
        maps(tensor)

    monkeypatch.setattr(ir.ExternalTensor, "_load", slowly)
    shapes = dict.fromkeys(small_weights.names, ())
    weights = ExportedWeights(small_export, read_export(small_export), "transformer", shapes)
    name = next(name for name in weights.names if name.endswith("ffn.0.weight"))
    begin = threading.Barrier(4)

    def read(name: str) -> torch.Tensor:
        begin.wait()
        return weights.load(name)

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(read, [name] * 4)
    assert all(other.equal(first) for other in others)


@pytest.mark.parametrize(
    ("recipe", "compute", "gpu"),
    [
        ("fp8", "fp16", "sm89"),
        ("fp8", "bf16", "sm120"),
        pytest.param("int8", "fp16", "sm120", marks=pytest.mark.exhaustive),
        pytest.param("int8", "bf16", "sm89", marks=pytest.mark.exhaustive),
    ],
)
def test_tensorrt_runs_every_target_in_the_narrow_type(
    quantized_export: Exported, tmp_path: Path, recipe: str, compute: str, gpu: str
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs tensorrt-rtx")
    products = built_products(quantized_export(recipe), tmp_path / "bundle", compute, gpu)
    kind = {"fp8": "FP8", "int8": "Int8"}[recipe]
    wide = {"fp16": "Half", "bf16": "BFloat16"}[compute]
    for graph, layers in (("step", 8), ("prompt", 2)):
        names = " ".join(name for name, found in products[graph] if found == kind)
        # Several products may be one kernel, which then has all their names.
        assert names.count("matmul") == layers, products[graph]
        assert not any("matmul" in name for name, found in products[graph] if found == wide)


def built_products(
    exported: Path, out: Path, compute: str, gpu: str
) -> dict[str, list[tuple[str, str]]]:
    """(name, precision) of every matrix product, from the compiler's layer list."""
    import json

    build(exported, out, compute, "tensorrt-rtx", options=BuildOptions(gpu=gpu))
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    profile = "denoise"
    return {
        graph["graph"]: [
            (layer["name"], layer["precision"])
            for layer in graph["layers"]
            if layer["category"] == "matrix product"
            and layer.get("profile", profile) in (profile, graph["graph"], 0, None)
        ]
        for graph in report["graphs"]
    }


def test_a_gpu_without_fp8_is_refused(quantized_export: Exported, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs tensorrt-rtx")
    with pytest.raises(UsageError, match="fp8 on sm86: these GPUs have no fp8 arithmetic"):
        build(
            quantized_export("fp8"),
            tmp_path / "bundle",
            "fp16",
            "tensorrt-rtx",
            options=BuildOptions(gpu="sm86"),
        )
    assert not list(tmp_path.iterdir())


def test_half_precisions_hold_the_scales_exactly(quantized_export: Exported) -> None:
    model = ir.load(quantized_export("fp8") / "step.onnx")
    scales = [v for v in model.graph.initializers.values() if v.name.endswith("_scale")]
    assert len(scales) == 2 * 8
    for value in scales:
        array = value.const_value.numpy()
        assert (array.astype(ml_dtypes.bfloat16).astype(array.dtype) == array).all()


@pytest.mark.exhaustive
@pytest.mark.parametrize("cache", ["fp8", "int8"])
def test_a_narrow_cache_is_what_torch_simulates(
    quantized_cache_export: Exported,
    small_config: ModelConfig,
    small_weights: Weights,
    calibrations: Mapping[str, Calibration],
    cache: str,
    tmp_path: Path,
) -> None:
    """The runtime keeps eight bits and moves them, and the video is that of the simulation."""
    build(quantized_cache_export(cache), tmp_path / "bundle", "fp32")
    bundle = open_bundle(tmp_path / "bundle")
    (states,) = SyntheticTexts(small_config).of(["A cat on a mat."])
    blocks, shape = 5, (4, 1, 3, *small_config.latent_shape)
    noises = torch.randn((blocks, *shape), generator=torch.Generator().manual_seed(1))
    calibration, half = calibrations["fp8"], HalfWeights(small_weights)
    model = load_quantized(small_config, half, calibration, "fp32", "cpu")
    rollout = QuantizedCacheRollout(model, small_config, 1, 3 * blocks, calibration, FORMATS[cache])
    assert cache_types(bundle) == {{"fp8": "float8e4m3fn", "int8": "int8"}[cache]}
    found = run_passes(bundle, small_config, states, noises)
    with torch.no_grad():
        rollout.switch_prompt(states)
        for noise in noises:
            rollout.run_block(noise[0], list(noise[1:]))
    for one, other in zip(found, rollout.frames, strict=True):
        assert np.linalg.norm(one - other.numpy()) / np.linalg.norm(other.numpy()) < 1e-2


def test_attention_in_fp8_is_what_torch_simulates(
    quantized_attention_export: Path,
    small_config: ModelConfig,
    small_weights: Weights,
    calibrations: Mapping[str, Calibration],
    tmp_path: Path,
) -> None:
    build(quantized_attention_export, tmp_path / "bundle", "fp32")
    (states,) = SyntheticTexts(small_config).of(["A cat on a mat."])
    blocks, shape = 5, (4, 1, 3, *small_config.latent_shape)
    noises = torch.randn((blocks, *shape), generator=torch.Generator().manual_seed(1))
    found = run_passes(open_bundle(tmp_path / "bundle"), small_config, states, noises)
    half, extras = HalfWeights(small_weights), Extras(attention=FP8)
    model = load_quantized(small_config, half, calibrations["fp8"], "fp32", "cpu", extras)
    rollout = ReferenceRollout(model, small_config, 1, 3 * blocks)
    with torch.no_grad():
        rollout.switch_prompt(states)
        for noise in noises:
            rollout.run_block(noise[0], list(noise[1:]))
    for one, other in zip(found, rollout.frames, strict=True):
        assert np.linalg.norm(one - other.numpy()) / np.linalg.norm(other.numpy()) < 1e-2


def run_passes(
    bundle: Bundle, config: ModelConfig, states: torch.Tensor, noises: torch.Tensor
) -> list[np.ndarray]:
    with load_engine(bundle, "prompt") as prompt, load_engine(bundle, "step") as step:
        context = {n: np.empty(s.sized(batch=1), s.dtype) for n, s in prompt.outputs.items()}
        prompt.bind({"text_states": states.numpy()}, context).run()
        ring = Ring(RingLayout.of(config, None if config.rollout.rope == "relative" else 15))
        passes = TransformerPasses(step, config, ring.layout, 1)
        passes.use_context(context)
        found = []
        for noise in noises.numpy():
            passes.noise[passes.place].fill(list(noise))
            found.append(passes.denoise(ring.block_plan()).copy())
            passes.remember(ring.block_plan())
            ring = ring.after_block()
        return found


@pytest.mark.exhaustive
@pytest.mark.parametrize(("cache", "gpu"), [("fp8", "sm89"), ("int8", "sm120")])
def test_tensorrt_takes_a_narrow_cache(
    quantized_cache_export: Exported, tmp_path: Path, cache: str, gpu: str
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs tensorrt-rtx")
    options = BuildOptions(gpu=gpu)
    build(quantized_cache_export(cache), tmp_path / "b", "fp16", "tensorrt-rtx", options=options)
    quantized = {"fp8": "float8e4m3fn", "int8": "int8"}[cache]
    assert cache_types(open_bundle(tmp_path / "b")) == {quantized}


def cache_types(bundle: Bundle) -> set[str]:
    return {
        tensor.dtype
        for tensor in bundle.manifest.graphs["step"].inputs
        if tensor.name.startswith(("k_cache", "v_cache"))
    }
