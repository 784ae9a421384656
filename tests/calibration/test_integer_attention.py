"""Attention in int8: one meaning in torch, in the graph and in engines, and what it needs."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from longlive_trt import hadamard
from longlive_trt.calibration.calibration_file import Calibration, load_calibration
from longlive_trt.calibration.folders import SourceExport
from longlive_trt.calibration.layers import IntegerAttention, QuantizedCache
from longlive_trt.calibration.mixed_keys import MIXED_KEYS, MixedKeys
from longlive_trt.calibration.quantization import scale_of
from longlive_trt.calibration.quantized import load_quantized, quantized_component
from longlive_trt.calibration.recipes import FP8, INT8, Extras
from longlive_trt.calibration.texts import SyntheticTexts
from longlive_trt.cli import main
from longlive_trt.configs import ModelConfig
from longlive_trt.contract import HADAMARD_SIGNS, INTEGER_ATTENTION_OP, cache_scale
from longlive_trt.engines.build import build
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.errors import ExportError, UsageError
from longlive_trt.export.check import check_graph
from longlive_trt.export.checkpoints.weights import Weights
from longlive_trt.export.components import Component, prompt_spec, step_spec
from longlive_trt.export.models.rollout import ReferenceRollout
from longlive_trt.export.models.transformer import full_attention, rope_table, rotate
from longlive_trt.exports import read_export
from longlive_trt.precision import PRECISIONS
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.noise import SeededNoise
from tests.calibration.test_quantized_graphs import HalfWeights, run_passes
from tests.shared import Shared

ATTENTION = Extras(attention=INT8)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def without_mixed_keys(calibration: Calibration) -> Calibration:
    """As calibrations of earlier versions were."""
    kept = {n: t for n, t in calibration.channels.items() if f".{MIXED_KEYS}_" not in n}
    return replace(calibration, channels=kept)


def formats(head_dim: int, key: float, value: float, plain: str = "") -> IntegerAttention:
    kept = QuantizedCache(1, 2, {"k": INT8, "v": FP8}, plain)
    kept.load_state_dict(
        {
            "scales.k0": scale_of(torch.full((2,), key), INT8),
            "scales.v0": scale_of(torch.full((2,), value), FP8),
        }
    )
    attention = IntegerAttention(head_dim, kept)
    attention.signs.data = torch.from_numpy(hadamard.signs(head_dim))
    return attention


def test_outliers_cost_it_little() -> None:
    """A few channels eight times as large as the others, as trained transformers have them."""
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, n, 2, 128, generator=generator) for n in (40, 600, 600))
    q[..., ::17] *= 8
    k[..., ::17] *= 8
    attention = formats(128, 12.0, 5.0)
    exact = full_attention(q.double(), k.double(), v.double())
    assert relative(attention.attend(0, q, k, v).double(), exact) < 4e-2
    attention.signs.data = torch.eye(128) * 128**0.5
    assert relative(attention.attend(0, q, k, v).double(), exact) > 8e-2


def test_what_was_rounded_is_rounded_no_further() -> None:
    """The cache keeps what a pass saw of its own keys."""
    attention = formats(128, 6.0, 5.0)
    (kept,) = attention._kept
    k = attention.mixed(torch.randn(1, 9, 2, 128, generator=torch.Generator().manual_seed(3)))
    once = kept.unpack(0, "k", kept.pack(0, "k", k))
    assert torch.equal(kept.unpack(0, "k", kept.pack(0, "k", once)), once)


@pytest.mark.exhaustive
def test_the_graph_calls_it(
    integer_attention_export: Path, calibrations: Mapping[str, Calibration]
) -> None:
    model = ir.load(integer_attention_export / "step.onnx")
    (node,) = [node for node in model.graph if node.op_type == INTEGER_ATTENTION_OP]
    assert len(node.inputs) == 6
    types = {str(value.name): value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    for name, dtype in (("k", ir.DataType.INT8), ("v", ir.DataType.FLOAT8E4M3FN)):
        assert types[f"{name}_cache.0"] == types[f"{name}_new.0"] == dtype
    stored = {name.rpartition("transformer.")[2] for name in model.graph.initializers}
    assert {HADAMARD_SIGNS, cache_scale("k", 0), cache_scale("v", 0)} <= stored
    quantization = read_export(integer_attention_export).quantization
    assert quantization is not None
    assert (quantization.attention, quantization.cache) == ("int8", "int8")
    assert quantization.formats == {"fp8", "int8"}
    scales = calibrations["fp8"].head_amax(0, MIXED_KEYS)
    found = model.graph.initializers[f"transformer.{cache_scale('k', 0)}"].const_value
    assert found is not None
    assert np.array_equal(found.numpy(), scale_of(scales, INT8).numpy())


@pytest.mark.exhaustive
def test_the_check_compares_it(
    integer_attention_export: Path,
    small_export: Path,
    small_config: ModelConfig,
    calibrations: Mapping[str, Calibration],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = SourceExport.open(small_export)
    specs = (step_spec(opened.config), prompt_spec(opened.config))
    component = quantized_component(
        Component("transformer", opened.transformer(), specs), calibrations["fp8"], ATTENTION
    )
    step = replace(component.graphs[0], rounding_tolerance=1e-3)
    arguments = (integer_attention_export, component.weights, small_config, PRECISIONS["fp16"])
    result = check_graph(step, *arguments)
    assert result.error is not None and result.error < 1e-3
    # However little is allowed: the reference moves as far when its inputs' last bits do.
    assert check_graph(replace(step, rounding_tolerance=1e-9), *arguments).error == result.error
    monkeypatch.setattr(IntegerAttention, "query", lambda _self, q: q)
    with pytest.raises(ExportError, match="graph step differs from torch"):
        check_graph(step, *arguments)


@pytest.mark.exhaustive
def test_a_bundle_of_it_runs_on_a_cpu_as_torch_simulates(
    integer_attention_export: Path,
    small_config: ModelConfig,
    small_weights: Weights,
    calibrations: Mapping[str, Calibration],
    tmp_path: Path,
) -> None:
    """The simulation keeps its keys as they are, and rounds all of them anew in every pass."""
    build(integer_attention_export, tmp_path / "bundle", "fp32")
    (states,) = SyntheticTexts(small_config).of(["A cat on a mat."])
    blocks, shape = 5, (4, 1, 3, *small_config.latent_shape)
    noises = torch.randn((blocks, *shape), generator=torch.Generator().manual_seed(1))
    found = run_passes(open_bundle(tmp_path / "bundle"), small_config, states, noises)
    half = HalfWeights(small_weights)
    model = load_quantized(small_config, half, calibrations["fp8"], "fp32", "cpu", ATTENTION)
    rollout = ReferenceRollout(model, small_config, 1, 3 * blocks)
    with torch.no_grad():
        rollout.switch_prompt(states)
        for noise in noises:
            rollout.run_block(noise[0], list(noise[1:]))
    for one, other in zip(found, rollout.frames, strict=True):
        assert np.linalg.norm(one - other.numpy()) / np.linalg.norm(other.numpy()) < 1e-2


@pytest.mark.exhaustive
def test_a_switch_recomputes_the_cache_in_its_own_form(
    integer_attention_export: Path,
    small_config: ModelConfig,
    small_weights: Weights,
    calibrations: Mapping[str, Calibration],
    tmp_path: Path,
) -> None:
    """Once while the window fills, and once after."""
    build(integer_attention_export, tmp_path / "bundle", "fp32")
    states = SyntheticTexts(small_config).of(["A cat on a mat.", "A dog.", "Rain."])
    blocks, switches, shape = 6, {0: 0, 2: 1, 4: 2}, (1, 3, *small_config.latent_shape)
    noise = SeededNoise(3, shape, len(small_config.rollout.steps))
    half = HalfWeights(small_weights)
    model = load_quantized(small_config, half, calibrations["fp8"], "fp32", "cpu", ATTENTION)
    rollout = ReferenceRollout(model, small_config, 1, 3 * blocks)
    with Engines(open_bundle(tmp_path / "bundle"), "cpu") as engines, torch.no_grad():
        contexts = engines.contexts(1)
        session = engines.session(small_config, noise, total_frames=3 * blocks, decode=False)
        for block in range(blocks):
            if block in switches:
                state = states[switches[block]]
                session.switch_prompt(contexts.of_states(state.numpy()))
                rollout.switch_prompt(state)
            initial, *renoise = (torch.from_numpy(draw) for draw in noise.block(block).draws)
            expected = rollout.run_block(initial, renoise).numpy()
            found = session.step().latents
            assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-2, block
        session.close()


def test_ranges_hold_wherever_keys_stand(small_config: ModelConfig) -> None:
    """What was seen at a few places is nearly the most that any place shows."""
    size, tokens = small_config.transformer.head_dim, small_config.tokens_per_frame
    generator = torch.Generator().manual_seed(4)
    watched = MixedKeys(small_config)
    seen, shown = 0.0, 0.0
    for _ in range(30):
        k = torch.randn(1, 3 * tokens, 2, size, generator=generator)
        seen = max(seen, float(watched.of(k).abs().max()))
        for first in (0, 311, 700, 1017):
            angles = rope_table(torch.arange(first, first + 3), small_config.token_grid, size)
            mixed = formats(size, 1, 1).mixed(rotate(k, angles).float())
            shown = max(shown, float(mixed.abs().max()))
    assert shown < 1.15 * seen


def test_places_do_not_depend_on_earlier_videos(small_config: ModelConfig) -> None:
    """A calibration that is resumed has the ranges of one that was not interrupted."""
    k = torch.randn(1, 3 * small_config.tokens_per_frame, 2, 64)
    watched = MixedKeys(small_config)
    first = watched.of(k)
    assert not torch.equal(watched.of(k), first)
    watched.begin()
    assert torch.equal(watched.of(k), first)


def test_older_calibrations_serve_the_older_form_and_say_so_once(
    small_config: ModelConfig,
    small_weights: Weights,
    small_export: Path,
    calibrations: Mapping[str, Calibration],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "old.safetensors"
    path.write_bytes(without_mixed_keys(calibrations["fp8"]).to_bytes())
    old = load_calibration(path)
    for extras in (Extras(), Extras(cache=INT8), Extras(attention=FP8, cache=FP8)):
        load_quantized(small_config, small_weights, old, "fp32", "cpu", extras)
    opened = SourceExport.open(small_export)
    component = Component("transformer", opened.transformer(), (step_spec(opened.config),))
    with caplog.at_level(logging.WARNING):
        quantized_component(component, old, Extras(attention=FP8))
        quantized_component(component, calibrations["fp8"], Extras(attention=FP8))
    assert caplog.messages == [
        "the calibration was made before attention in int8: attention in fp8 takes its scales as "
        "before; calibrate again to choose --attention int8"
    ]
    with pytest.raises(UsageError) as refused:
        load_quantized(small_config, small_weights, old, "fp32", "cpu", ATTENTION)
    message = str(refused.value)
    assert "longlive-trt calibrate --onnx EXPORT --precision fp8 --attention int8" in message
    assert "\n" not in message


def test_the_command_refuses_an_older_calibration_and_another_cache(
    small_export: Path,
    calibrations: Mapping[str, Calibration],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = tmp_path / "old.safetensors"
    old.write_bytes(without_mixed_keys(calibrations["fp8"]).to_bytes())
    arguments = ["calibrate", "--onnx", str(small_export), "--precision", "fp8", "--no-check"]
    arguments += ["--attention", "int8", "--out", str(tmp_path / "out")]
    for options, expected in (
        (["--calibration", str(old)], "has no ranges of its keys; make another: longlive-trt"),
        (["--cache", "fp8"], "leave --cache fp8 out"),
    ):
        assert main([*arguments, *options]) == 2
        assert expected in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["old.safetensors"]


def test_keys_that_are_turned_in_every_pass_are_kept_as_they_are(
    small_config: ModelConfig,
) -> None:
    rollout = replace(small_config.rollout, rope="relative")
    extras = ATTENTION.of(rollout)
    assert dict(extras.kept) == {"v": FP8}
    assert dict(ATTENTION.of(small_config.rollout).kept) == dict(extras.scaled)
    assert dict(Extras(attention=FP8, cache=FP8).of(rollout).kept) == {"k": FP8, "v": FP8}
    attention = formats(128, 6.0, 5.0, plain="k")
    (kept,) = attention._kept
    x = torch.randn(1, 9, 2, 128, generator=torch.Generator().manual_seed(3))
    assert kept.pack(0, "k", x) is kept.unpack(0, "k", x) is x
    assert kept.pack(0, "v", x).dtype == torch.float8_e4m3fn
    rounded = attention.key(0, x)
    assert 1e-3 < relative(rounded, x) < 2e-2
    assert torch.equal(rounded, formats(128, 6.0, 5.0).key(0, x))


@pytest.mark.exhaustive
def test_a_bundle_that_turns_its_keys_runs_on_a_cpu_as_torch_simulates(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its export was compared with torch, pass by pass. Rollouts of this model differ by 9e-3 when
    the last bits of their noise do, for its products are in eight bits too."""
    source = SourceExport.open(shared("gpu8-relative"))
    quantization = read_export(shared("gpu8-relative-integers")).quantization
    assert quantization is not None
    assert (quantization.attention, quantization.cache) == ("int8", None)
    assert quantization.formats == {"fp8", "int8"}
    config, half = source.config, HalfWeights(source.transformer())
    calibration = load_calibration(shared("gpu8-relative-calibration"))
    (states,) = SyntheticTexts(config).of(["A cat on a mat."])
    blocks, shape = 5, (4, 1, 3, *config.latent_shape)
    noises = torch.randn((blocks, *shape), generator=torch.Generator().manual_seed(1))
    bundle = open_bundle(shared("gpu8-relative-integers-fp32"))
    found = np.stack(run_passes(bundle, config, states, noises))

    @torch.no_grad()
    def errors() -> np.ndarray:
        model = load_quantized(config, half, calibration, "fp32", "cpu", ATTENTION)
        rollout = ReferenceRollout(model, config, 1, 3 * blocks)
        rollout.switch_prompt(states)
        for noise in noises:
            rollout.run_block(noise[0], list(noise[1:]))
        expected = np.stack([frames.numpy() for frames in rollout.frames])
        by_block = (found - expected, expected)
        over, of = (np.linalg.norm(x.reshape(blocks, -1), axis=1) for x in by_block)
        return np.asarray(over / of)

    assert (errors() < 1.3e-2).all()
    key = IntegerAttention.key
    monkeypatch.setattr(
        IntegerAttention, "key", lambda self, layer, x: key(self, layer, x.roll(1, -1))
    )
    assert (errors() > 4e-2).all()


@pytest.mark.exhaustive
def test_tensorrt_rounds_and_multiplies_in_half_precision(
    integer_attention_export: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs tensorrt-rtx")
    options = BuildOptions(gpu="sm89")
    with caplog.at_level(logging.WARNING):
        build(integer_attention_export, tmp_path / "b", "fp16", "tensorrt-rtx", options=options)
    assert sum("has no attention in int8" in message for message in caplog.messages) == 1


def test_float8_of_numpy_is_that_of_torch() -> None:
    """Kernels mean one, exports are checked against the other."""
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1)) * 20
    theirs = x.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(x.numpy().astype(ml_dtypes.float8_e4m3fn).view(np.uint8), theirs)
