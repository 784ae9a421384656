"""Self-attention in FP8: one meaning in torch, in the graph and in engines, and a fused kernel."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from longlive_trt.calibration.calibration_file import Calibration, load_calibration
from longlive_trt.calibration.folders import SourceExport
from longlive_trt.calibration.layers import QuantizedAttention, QuantizedCache
from longlive_trt.calibration.quantization import scale_of
from longlive_trt.calibration.quantized import load_quantized, quantized_component
from longlive_trt.calibration.recipes import FORMATS, FP8, INT8, Extras
from longlive_trt.calibration.texts import SyntheticTexts
from longlive_trt.calibration.videos import ObservedRollout
from longlive_trt.cli import main
from longlive_trt.configs import ModelConfig
from longlive_trt.contract import LOCAL_DOMAIN, QUANTIZED_ATTENTION_OP
from longlive_trt.engines.build import build
from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.engines.trt.compiler import TensorRtCompiler
from longlive_trt.errors import ExportError, UsageError
from longlive_trt.export.attention_functions import OPSET, add_attention_functions
from longlive_trt.export.check import check_graph
from longlive_trt.export.checkpoints.weights import Weights
from longlive_trt.export.components import Component, prompt_spec, step_spec
from longlive_trt.export.models.transformer import full_attention, rope_table, rotate
from longlive_trt.exports import Quantization, read_export
from longlive_trt.precision import PRECISIONS

MakeOnce = Callable[[str, Callable[[Path], object]], Path]
ATTENTION = Extras(attention=FP8)
HEADS, HEAD_DIM, NEW, CACHED, VALID = 2, 8, 6, 12, 5
MODEL = f"""
<ir_version: 11, opset_import: ["": {OPSET}, "{LOCAL_DOMAIN}": 1]>
one (
    float[1, {NEW}, {HEADS}, {HEAD_DIM}] q,
    float[1, {NEW}, {HEADS}, {HEAD_DIM}] k_new, float[1, {NEW}, {HEADS}, {HEAD_DIM}] v_new,
    float[1, {CACHED}, {HEADS}, {HEAD_DIM}] k_cache,
    float[1, {CACHED}, {HEADS}, {HEAD_DIM}] v_cache,
    int64[1] cached, float qs, float ks, float vs, float ss
) => (float[1, {NEW}, {HEADS}, {HEAD_DIM}] attended)
{{
    attended = {LOCAL_DOMAIN}.{QUANTIZED_ATTENTION_OP} <scale = {HEAD_DIM**-0.5}> (
        q, k_new, v_new, k_cache, v_cache, cached, qs, ks, vs, ss
    )
}}
"""


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def attention_inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = {"q": NEW, "k_new": NEW, "v_new": NEW, "k_cache": CACHED, "v_cache": CACHED}
    return {
        name: torch.randn(1, count, HEADS, HEAD_DIM, generator=generator)
        for name, count in tokens.items()
    }


def test_the_functions_body_is_what_torch_computes() -> None:
    """In onnx's own evaluator and in ONNX Runtime, with a cache that is partly filled."""
    inputs = attention_inputs()
    quantized = QuantizedAttention(1, FP8)
    values = {f"by_layer.{part}0": scale_of(torch.tensor(4.0), FP8) for part in "qkv"}
    quantized.load_state_dict({**values, "softmax": scale_of(torch.ones(()), FP8)})
    seen = {
        part: torch.cat([inputs[f"{part}_new"], inputs[f"{part}_cache"][:, :VALID]], dim=1)
        for part in "kv"
    }
    expected = quantized.attend(0, inputs["q"], seen["k"], seen["v"])

    model = ir.from_proto(onnx.parser.parse_model(MODEL))
    add_attention_functions(model)
    proto = ir.to_proto(model)
    scales = zip(("qs", "ks", "vs", "ss"), quantized.scales(0), strict=True)
    feeds = {name: value.numpy() for name, value in (*inputs.items(), *scales)}
    feeds["cached"] = np.array([VALID])
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(proto.SerializeToString(), options)
    for found in (ReferenceEvaluator(proto).run(None, feeds)[0], session.run(None, feeds)[0]):
        assert relative(torch.from_numpy(np.asarray(found)), expected) < 1e-3
    # The test can tell: the rounding itself is far more.
    assert relative(full_attention(inputs["q"], seen["k"], seen["v"]), expected) > 1e-2


def step_component(source: Path, calibration: Calibration, extras: Extras) -> Component:
    opened = SourceExport.open(source)
    specs = (step_spec(opened.config), prompt_spec(opened.config))
    return quantized_component(
        Component("transformer", opened.transformer(), specs), calibration, extras
    )


def test_the_step_graph_calls_it_with_its_scales(
    quantized_attention_export: Path, calibrations: Mapping[str, Calibration]
) -> None:
    model = ir.load(quantized_attention_export / "step.onnx")
    (node,) = [node for node in model.graph if node.op_type == QUANTIZED_ATTENTION_OP]
    calibration = calibrations["fp8"]
    for value, part in zip(node.inputs[6:9], "qkv", strict=True):
        assert value is not None
        assert value.const_value is not None
        of_heads = calibration.value_amax(0) if part == "v" else calibration.head_amax(0, part)
        amax = of_heads.amax()
        assert float(value.const_value.numpy()) == float(scale_of(amax, FP8))
    softmax = node.inputs[9]
    assert softmax is not None
    assert softmax.const_value is not None
    # All that a softmax gives, with the format's whole range.
    assert float(softmax.const_value.numpy()) == pytest.approx(1 / 448, rel=1 / 128)
    record = read_export(quantized_attention_export)
    assert record.quantization is not None
    assert record.quantization.attention == "fp8"


def test_the_check_compares_attention_in_fp8(
    quantized_attention_export: Path,
    small_export: Path,
    small_config: ModelConfig,
    calibrations: Mapping[str, Calibration],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    component = step_component(small_export, calibrations["fp8"], ATTENTION)
    # Rounding alone comes to 4e-3 here.
    step = replace(component.graphs[0], rounding_tolerance=1e-3)
    half = PRECISIONS["fp16"]
    result = check_graph(step, quantized_attention_export, component.weights, small_config, half)
    assert result.error is not None
    assert result.error < 1e-3
    monkeypatch.setattr(
        QuantizedAttention, "attend", lambda _self, _layer, q, k, v: full_attention(q, k, v)
    )
    with pytest.raises(ExportError, match="graph step differs from torch"):
        check_graph(step, quantized_attention_export, component.weights, small_config, half)


@pytest.mark.exhaustive
@pytest.mark.parametrize("cache", ["fp8", "int8"])
def test_the_check_compares_an_eight_bit_cache(
    quantized_cache_export: Callable[[str], Path],
    small_export: Path,
    small_config: ModelConfig,
    calibrations: Mapping[str, Calibration],
    monkeypatch: pytest.MonkeyPatch,
    cache: str,
) -> None:
    exported = quantized_cache_export(cache)
    component = step_component(small_export, calibrations["fp8"], Extras(cache=FORMATS[cache]))
    step, half = component.graphs[0], PRECISIONS["fp16"]
    result = check_graph(step, exported, component.weights, small_config, half)
    assert result.error is not None
    assert result.error < 5e-3
    original = QuantizedCache.unpack
    monkeypatch.setattr(
        QuantizedCache, "unpack", lambda self, layer, part, x: -original(self, layer, part, x)
    )
    with pytest.raises(ExportError, match="graph step differs from torch"):
        check_graph(step, exported, component.weights, small_config, half)


@pytest.mark.parametrize(("compute", "gpu"), [("fp16", "sm89"), ("bf16", "sm120")])
def test_tensorrt_has_one_kernel_for_it_in_fp8(
    quantized_attention_export: Path, tmp_path: Path, compute: str, gpu: str
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs tensorrt-rtx")
    build(
        quantized_attention_export,
        tmp_path / "b",
        compute,
        "tensorrt-rtx",
        options=BuildOptions(gpu=gpu),
    )
    report = json.loads((tmp_path / "b" / "report.json").read_text())
    step = next(graph for graph in report["graphs"] if graph["graph"] == "step")
    assert step["attention"]["fused"] == step["attention"]["expected"] == 2 * len(step["profiles"])
    kernels = [layer for layer in step["layers"] if layer["category"] == "attention"]
    kinds = [layer["precision"] for layer in kernels]
    wide = {"fp16": "Half", "bf16": "BFloat16"}[compute]
    # Of each profile: self-attention, and cross-attention, which stays as it is.
    assert sorted(kinds) == sorted(["FP8", wide] * len(step["profiles"]))
    for layer in kernels:
        if layer["precision"] == "FP8":
            assert [t["type"] for t in layer["inputs"]].count("FP8") == 3


def test_int8_layers_with_fp8_attention_need_a_gpu_with_fp8(
    small_export: Path, quantized_attention_export: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs tensorrt-rtx")
    record = read_export(small_export)
    mixed = replace(record, quantization=Quantization("int8", "int8", "", attention="fp8"))
    options = BuildOptions(gpu="sm86")
    with pytest.raises(UsageError, match="fp8 on sm86: these GPUs have no fp8 arithmetic"):
        build(
            quantized_attention_export, tmp_path / "bundle", "fp16", "tensorrt-rtx", options=options
        )
    from longlive_trt.engines.registry import compiler_named

    compiler = compiler_named("tensorrt-rtx", options, PRECISIONS["fp16"], record.config)
    with pytest.raises(UsageError, match="fp8 on sm86"):
        compiler.check(mixed)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_our_plugin_is_no_kernel_for_it(small_config: ModelConfig, kind: str) -> None:
    """Nor has it int8 with heads of other sizes than 128."""
    compiler = object.__new__(TensorRtCompiler)
    compiler._plugin, compiler._config = True, small_config
    quantization = Quantization("int8", "int8", "", attention=kind)
    with pytest.raises(UsageError, match=r"half precision, or int8 with heads of 128; build with"):
        compiler._check_quantization(quantization)


def test_ranges_hold_at_positions_that_no_calibration_meets(
    small_config: ModelConfig, small_weights: Weights, calibrations: Mapping[str, Calibration]
) -> None:
    calibration = calibrations["fp8"]
    model = load_quantized(small_config, small_weights, calibration, "fp32", "cpu")
    seen: dict[str, Tensor] = {}

    def observe(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        seen.update(q=q, k=k, v=v)

    rollout = ObservedRollout(model, small_config, 1, 3)
    rollout.observer = observe
    (states,) = SyntheticTexts(small_config).of(["A cat on a mat."])
    generator = torch.Generator().manual_seed(0)
    noises = torch.randn((4, 1, 3, *small_config.latent_shape), generator=generator)
    with torch.no_grad():
        rollout.switch_prompt(states)
        rollout.run_block(noises[0], list(noises[1:]))
    grid, size = small_config.token_grid, small_config.transformer.head_dim
    for part in ("q", "k"):
        pairs = seen[part].unflatten(-1, (-1, 2)).norm(dim=-1).amax((0, 1, 3))
        for first in (0, 300, 1017):
            angles = rope_table(torch.arange(first, first + 3), grid, size)
            turned = rotate(seen[part], angles).abs().amax((0, 1, 3))
            assert (turned <= pairs * (1 + 1e-6)).all()
        # What was seen in one rollout is near what was seen in the calibration's.
        ratio = calibration.head_amax(0, part) / pairs
        assert ((ratio > 0.7) & (ratio < 2)).all()


def without_queries(calibration: Calibration) -> Calibration:
    """As calibrations of earlier versions were."""
    channels = {n: t for n, t in calibration.channels.items() if not n.endswith(".q_heads")}
    return replace(calibration, channels=channels)


def test_older_calibrations_serve_everything_else(
    small_config: ModelConfig,
    small_weights: Weights,
    calibrations: Mapping[str, Calibration],
    tmp_path: Path,
) -> None:
    path = tmp_path / "old.safetensors"
    path.write_bytes(without_queries(calibrations["fp8"]).to_bytes())
    old = load_calibration(path)
    for extras in (Extras(), Extras(cache=INT8)):
        load_quantized(small_config, small_weights, old, "fp32", "cpu", extras)
    with pytest.raises(UsageError, match=r"before the ranges of queries were kept.*calibrate ag"):
        load_quantized(small_config, small_weights, old, "fp32", "cpu", ATTENTION)


@pytest.mark.exhaustive
def test_the_command_takes_it_and_refuses_older_calibrations(
    quantized_attention_export: Path,
    small_export: Path,
    calibrations: Mapping[str, Calibration],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = tmp_path / "old.safetensors"
    old.write_bytes(without_queries(calibrations["fp8"]).to_bytes())
    arguments = ["calibrate", "--onnx", str(small_export), "--precision", "fp8", "--no-check"]
    arguments += ["--attention", "fp8", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--calibration", str(old)]) != 0
    assert "before the ranges of queries were kept" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["old.safetensors"]
    assert main([*arguments, "--calibration", str(quantized_attention_export)]) == 0
    assert read_export(tmp_path / "out").files == read_export(quantized_attention_export).files
