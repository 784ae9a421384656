"""Values without their means: exact where nothing is rounded, and closer where attention is."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longlive_trt.calibration.calibration_file import (
    Calibration,
    load_calibration,
    save_calibration,
)
from longlive_trt.calibration.calibrator import CalibrationRequest, calibrate
from longlive_trt.calibration.folders import SourceExport
from longlive_trt.calibration.prompts import shipped_prompts
from longlive_trt.calibration.quantized import QuantizedWeights, load_quantized, quantized_component
from longlive_trt.calibration.recipes import FP8, RECIPES, Extras
from longlive_trt.calibration.targets import Selection
from longlive_trt.calibration.texts import SyntheticTexts
from longlive_trt.calibration.values import PARTS, ValueWatcher, merged
from longlive_trt.configs import ModelConfig
from longlive_trt.contract import attention_scale, cache_scale
from longlive_trt.export.checkpoints.weights import Weights
from longlive_trt.export.components import Component, step_spec
from longlive_trt.export.models.rollout import ReferenceRollout
from longlive_trt.export.models.transformer import AttentionFormat, Transformer
from tests.fakes.weights import ChangedWeights

ATTENTION = Extras(attention=FP8)
V_BIAS, O_BIAS = "blocks.0.self_attn.v.bias", "blocks.0.self_attn.o.bias"


class CommonValues(ChangedWeights):
    """A checkpoint whose values have much in common."""

    def load(self, name: str) -> Tensor:
        value = super().load(name)
        if name == V_BIAS:
            generator = torch.Generator().manual_seed(3)
            value = value + 4 * torch.randn(value.shape, generator=generator).to(value.dtype)
        return value

    def digest(self) -> str:
        return "common values"


@pytest.fixture(scope="module")
def weights(small_weights: Weights) -> Weights:
    return CommonValues(small_weights)


@pytest.fixture(scope="module")
def calibration(
    small_config: ModelConfig, weights: Weights, tmp_path_factory: pytest.TempPathFactory
) -> Calibration:
    return calibrate(
        small_config,
        weights,
        CalibrationRequest(RECIPES["fp8"], tuple(shipped_prompts()[:2]), Selection(exclude=())),
        SyntheticTexts(small_config),
        tmp_path_factory.mktemp("values") / "progress",
    )


def without_means(calibration: Calibration) -> Calibration:
    """As calibrations of earlier versions were."""
    channels = {n: t for n, t in calibration.channels.items() if not n.endswith(PARTS)}
    return replace(calibration, channels=channels)


def without_layers(calibration: Calibration) -> Calibration:
    return replace(calibration, layers={})


@torch.no_grad()
def latents(model: Transformer, config: ModelConfig) -> Tensor:
    rollout = ReferenceRollout(model, config, 1, 5 * config.rollout.frames_per_block)
    (states,) = SyntheticTexts(config).of(["A cat on a mat."])
    generator = torch.Generator().manual_seed(1)
    rollout.switch_prompt(states)
    for _ in range(5):
        noises = torch.randn((4, 1, 3, *config.latent_shape), generator=generator)
        rollout.run_block(noises[0], list(noises[1:]))
    return torch.cat(rollout.frames, dim=1)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_what_leaves_the_values_comes_back(
    small_config: ModelConfig, weights: Weights, calibration: Calibration
) -> None:
    """With nothing rounded, the video is the same one."""
    plain = without_layers(calibration)
    models = [
        load_quantized(small_config, weights, plain, "fp32", "cpu", extras)
        for extras in (Extras(), ATTENTION)
    ]
    models[1].attention_format = AttentionFormat()
    bias, centered = (model.blocks[0].self_attn.v.bias for model in models)  # type: ignore[union-attr, union-attr]
    assert centered.norm() < 0.5 * bias.norm()
    exact, shifted = (latents(model, small_config) for model in models)
    assert relative(shifted, exact) < 1e-5


def test_rounded_attention_is_closer_without_what_values_share(
    small_config: ModelConfig, weights: Weights, calibration: Calibration
) -> None:
    plain = without_layers(calibration)
    exact = latents(load_quantized(small_config, weights, plain, "fp32", "cpu"), small_config)
    errors = [
        relative(
            latents(
                load_quantized(small_config, weights, one, "fp32", "cpu", ATTENTION), small_config
            ),
            exact,
        )
        for one in (without_means(plain), plain)
    ]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("recipe", RECIPES)
def test_o_s_bias_gets_what_its_own_weight_makes(
    small_weights: Weights, calibrations: Mapping[str, Calibration], recipe: str
) -> None:
    """Rounded, and smoothed, as the layer has it."""
    calibration = calibrations[recipe]
    stored = QuantizedWeights(small_weights, calibration, ATTENTION)
    center = small_weights.load(V_BIAS).float() - stored.load(V_BIAS).float()
    layer = "blocks.0.self_attn.o"
    smoothing = calibration.layers[layer].pre_quant_scale
    given = center if smoothing is None else center * smoothing
    made = given @ (stored.load(f"{layer}.weight").float() * stored.load(f"{layer}.weight_scale"))
    torch.testing.assert_close(stored.load(O_BIAS), small_weights.load(O_BIAS) + made)
    values = calibration.values(0)
    assert values is not None
    left = stored.load(V_BIAS).float()
    assert ((center - values.mean).abs() <= left.abs() / 128 + 2**-14).all()
    # So the graph means the same in every type.
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(left.to(dtype).float(), left)


def test_only_attention_in_eight_bits_changes_biases(
    small_weights: Weights, calibrations: Mapping[str, Calibration]
) -> None:
    for extras in (Extras(), Extras(cache=FP8)):
        stored = QuantizedWeights(small_weights, calibrations["fp8"], extras)
        for name in (V_BIAS, O_BIAS):
            assert torch.equal(stored.load(name), small_weights.load(name))
    old = QuantizedWeights(small_weights, without_means(calibrations["fp8"]), ATTENTION)
    assert torch.equal(old.load(V_BIAS), small_weights.load(V_BIAS))


def test_ranges_are_those_around_the_means(
    small_config: ModelConfig, weights: Weights, calibration: Calibration
) -> None:
    values = calibration.values(0)
    assert values is not None
    assert (calibration.value_amax(0) < 0.6 * calibration.head_amax(0, "v")).all()
    stored = QuantizedWeights(weights, calibration, Extras(attention=FP8, cache=FP8))
    for name in (cache_scale("v", 0), attention_scale("v", 0)):
        largest = float(stored.load(name).max())
        assert largest == pytest.approx(float(values.amax.max()) / 448, rel=0.01)
    assert small_config.transformer.layers == 1


def test_means_are_of_all_videos_and_extremes_of_any() -> None:
    watchers = [ValueWatcher() for _ in range(2)]
    watchers[0].observe(torch.tensor([[[[1.0, -2.0]], [[3.0, -4.0]]]]))
    watchers[1].observe(torch.tensor([[[[8.0, -1.0]]]]))
    first, second = (watcher.seen() for watcher in watchers)
    both = {name: merged(name, first[name], second[name], 1) for name in PARTS}
    torch.testing.assert_close(both["v_mean"], torch.tensor([5.0, -2.0]))
    torch.testing.assert_close(both["v_most"], torch.tensor([8.0, -1.0]))
    torch.testing.assert_close(both["v_below"], torch.tensor([-1.0, 4.0]))


def test_the_file_keeps_them(calibration: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "calibration.safetensors"
    save_calibration(calibration, path)
    found, expected = load_calibration(path).values(0), calibration.values(0)
    assert found is not None and expected is not None
    assert (expected.mean < 0).any()
    assert torch.equal(found.mean, expected.mean)


def test_older_calibrations_are_told_of_once(
    small_export: Path,
    calibrations: Mapping[str, Calibration],
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened = SourceExport.open(small_export)
    component = Component("transformer", opened.transformer(), (step_spec(opened.config),))
    with caplog.at_level(logging.WARNING):
        quantized_component(component, without_means(calibrations["fp8"]), ATTENTION)
        quantized_component(component, calibrations["fp8"], ATTENTION)
        quantized_component(component, without_means(calibrations["fp8"]))
    assert caplog.messages == [
        "the calibration was made before the means of values were kept: attention in fp8 rounds "
        "them with the values; calibrate again for less error"
    ]
