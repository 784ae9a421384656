"""The sensitivity report: which layer hurts, and what it suggests."""

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from longlive_trt.calibration.cache import QuantizedCacheRollout, cache_bytes
from longlive_trt.calibration.calibration_file import Calibration
from longlive_trt.calibration.calibrator import CalibrationRequest, load_model
from longlive_trt.calibration.plot import sensitivity_png
from longlive_trt.calibration.prompts import shipped_prompts
from longlive_trt.calibration.recipes import FP8, INT8, RECIPES, Format
from longlive_trt.calibration.sensitivity import LayerSensitivity, measure, suggest_exclude
from longlive_trt.calibration.texts import SyntheticTexts
from longlive_trt.configs import ModelConfig
from longlive_trt.export.checkpoints.weights import Weights
from longlive_trt.export.models.rollout import ReferenceRollout


def test_the_report_finds_the_layer_whose_range_is_wrong(
    small_config: ModelConfig, small_weights: Weights, calibrations: Mapping[str, Calibration]
) -> None:
    calibration = calibrations["int8"]
    bad = "blocks.0.self_attn.o"
    # Far too wide a range: hardly any of the 256 steps is used.
    wide = replace(calibration.layers[bad], input_amax=calibration.layers[bad].input_amax * 200)
    spoiled = replace(calibration, layers={**calibration.layers, bad: wide})
    request = CalibrationRequest(RECIPES["int8"], tuple(shipped_prompts()[:2]))
    report = measure(
        small_config,
        small_weights,
        spoiled,
        request,
        SyntheticTexts(small_config),
        error_budget=0.02,
        growth_blocks=4,
    )
    by_name = {layer.layer: layer for layer in report.layers}
    assert set(by_name) == set(calibration.layers)
    assert max(report.layers, key=lambda layer: layer.latents_error).layer == bad
    assert min(report.layers, key=lambda layer: layer.sqnr_db).layer == bad
    assert bad in report.suggested_exclude
    # Four denoising passes and a clean one for each block.
    assert [(item.block, item.denoising_pass) for item in report.growth] == [
        (block, number) for block in range(4) for number in range(5)
    ]
    values = json.loads(report.to_json())
    assert values["drifts"] is report.drifts
    png = sensitivity_png(report)
    assert png.startswith(b"\x89PNG")
    assert len(png) > 2000


def test_the_suggestion_is_the_shortest_that_fits() -> None:
    errors = {"a": 0.03, "b": 0.001, "c": 0.04, "d": 0.0}
    layers = [LayerSensitivity(name, 30.0, error) for name, error in errors.items()]
    assert suggest_exclude(layers, 0.06) == ()
    assert suggest_exclude(layers, 0.035) == ("c",)
    assert suggest_exclude(layers, 0.01) == ("a", "c")


@pytest.mark.parametrize(("format_", "least", "most"), [(FP8, 1e-4, 5e-2), (INT8, 1e-5, 2e-2)])
def test_a_narrow_cache_costs_little_and_something(
    small_config: ModelConfig,
    small_weights: Weights,
    calibrations: Mapping[str, Calibration],
    format_: Format,
    least: float,
    most: float,
) -> None:
    model = load_model(small_config, small_weights, "fp32", "cpu")
    frames = 5 * small_config.rollout.frames_per_block
    plain = ReferenceRollout(model, small_config, 1, frames)
    quantized = QuantizedCacheRollout(model, small_config, 1, frames, calibrations["fp8"], format_)
    (states,) = SyntheticTexts(small_config).of(["A cat on a mat."])
    generator = torch.Generator().manual_seed(1)
    noises = torch.randn((5, 4, 1, 3, *small_config.latent_shape), generator=generator)
    with torch.no_grad():
        for rollout in (plain, quantized):
            rollout.switch_prompt(states)
            for noise in noises:
                rollout.run_block(noise[0], list(noise[1:]))
    # The first block reads no cache.
    torch.testing.assert_close(quantized.frames[0], plain.frames[0], rtol=0, atol=0)
    found, expected = (torch.cat(r.frames[1:], dim=1) for r in (quantized, plain))
    assert least < (found - expected).norm() / expected.norm() < most


def test_an_eight_bit_cache_is_half_as_large() -> None:
    config = ModelConfig()
    assert cache_bytes(config, 2) == 2 * cache_bytes(config, 1)
    # 30 layers, keys and values, 9 frames of 1560 tokens, 1536 wide.
    assert cache_bytes(config, 1) == 30 * 2 * 9 * 1560 * 1536
