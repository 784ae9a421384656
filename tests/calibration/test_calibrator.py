"""Calibration: ranges are those that rollouts meet, and interruptions lose nothing."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from longlive_trt.calibration import calibrator
from longlive_trt.calibration.calibration_file import Calibration
from longlive_trt.calibration.calibrator import CalibrationRequest, calibrate, load_model
from longlive_trt.calibration.modelopt import quiet
from longlive_trt.calibration.prompts import shipped_prompts
from longlive_trt.calibration.quantization import scale_of, weight_scale_of
from longlive_trt.calibration.quantized import load_quantized
from longlive_trt.calibration.recipes import RECIPES, recipe_named
from longlive_trt.calibration.targets import Selection, linear_layers, select_layers
from longlive_trt.calibration.texts import SyntheticTexts
from longlive_trt.calibration.videos import Video, plan_videos, run_video
from longlive_trt.configs import ModelConfig
from longlive_trt.errors import CheckpointError, UsageError
from longlive_trt.export.checkpoints.weights import Weights
from tests.fakes.weights import ChangedWeights

TWO = tuple(shipped_prompts()[:2])
FOUR = tuple(shipped_prompts()[:4])


def test_videos_switch_while_the_window_fills_and_after(small_config: ModelConfig) -> None:
    videos = plan_videos(5, small_config)
    assert [video.prompts for video in videos] == [(0, 1), (2, 3), (4,)]
    block = small_config.rollout.frames_per_block
    early, late = (video.switch_block * block for video in videos[:2])
    assert early <= small_config.rollout.window_frames < late
    assert all(video.blocks > video.switch_block + 1 for video in videos)


def largest_inputs(config: ModelConfig, weights: Weights, videos: list[Video]) -> dict[str, Tensor]:
    """What plain hooks see; no ModelOpt."""
    model, largest = load_model(config, weights, "fp32", "cpu"), dict[str, Tensor]()

    def watch(name: str) -> None:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0].abs().amax()
            largest[name] = torch.maximum(largest.get(name, seen), seen)

        model.get_submodule(name).register_forward_pre_hook(hook)

    for name in linear_layers(config.transformer):
        watch(name)
    states = SyntheticTexts(config).of(FOUR)
    for video in videos:
        run_video(model, config, video, states, seed=0)
    return largest


def test_ranges_are_the_largest_that_any_pass_meets(
    small_config: ModelConfig, small_weights: Weights, calibrations: Mapping[str, Calibration]
) -> None:
    expected = largest_inputs(small_config, small_weights, plan_videos(2, small_config))
    calibration = calibrations["fp8"]
    assert set(calibration.layers) == {name for name in expected if name.startswith("blocks.")}
    for name, ranges in calibration.layers.items():
        assert ranges.input_amax == expected[name]
        weight = small_weights.load(f"{name}.weight")
        torch.testing.assert_close(ranges.weight_amax, weight.abs().amax(1), rtol=0, atol=0)
        assert calibration.statistics[name]["largest"] == float(expected[name])


@pytest.mark.parametrize("recipe", RECIPES)
def test_quantized_layers_compute_what_modelopt_simulates(
    small_config: ModelConfig,
    small_weights: Weights,
    calibrations: Mapping[str, Calibration],
    recipe: str,
) -> None:
    """ModelOpt's own fake quantization with the ranges that our layers were given."""
    ours = load_quantized(small_config, small_weights, calibrations[recipe], "fp32", "cpu")
    name, chosen = "blocks.0.ffn.0", recipe_named(recipe)
    ranges = calibrations[recipe].layers[name]
    linear = nn.Linear(*reversed(small_weights.shape(f"{name}.weight")))
    linear.weight.data = small_weights.load(f"{name}.weight")
    linear.bias.data = small_weights.load(f"{name}.bias")
    x = torch.randn(40, linear.in_features, generator=torch.Generator().manual_seed(1))
    smoothing = ranges.pre_quant_scale
    if smoothing is not None:
        linear.weight.data /= smoothing
        x_smooth = x * smoothing
    else:
        x_smooth = x
    bits = chosen.format.modelopt_bits
    with quiet():
        from modelopt.torch.quantization.config import QuantizerAttributeConfig
        from modelopt.torch.quantization.nn import TensorQuantizer

        def fake(tensor: Tensor, scale: Tensor, axis: int | None) -> Tensor:
            # The range that our scale stands for.
            exact = scale * chosen.format.largest
            shape = exact.reshape(-1, 1) if axis == 0 else exact
            quantizer = TensorQuantizer(QuantizerAttributeConfig(num_bits=bits, axis=axis))
            quantizer.amax = shape
            result: Tensor = quantizer(tensor)
            return result

        scales = (
            scale_of(ranges.input_amax, chosen.format),
            weight_scale_of(ranges.weight_amax, chosen.format),
        )
        weight = fake(linear.weight.data, scales[1], 0)
        expected = nn.functional.linear(fake(x_smooth, scales[0], None), weight, linear.bias)
    found = ours.get_submodule(name)(x)
    assert (found - expected).norm() / expected.norm() < 2e-3
    exact = nn.functional.linear(x_smooth, linear.weight, linear.bias)
    # The test can tell: quantization itself is a far larger error.
    assert (found - exact).norm() / exact.norm() > 4e-3


def test_smoothing_moves_ranges_from_inputs_to_weights(
    calibrations: Mapping[str, Calibration],
) -> None:
    plain, smooth = (calibrations[name].layers for name in ("int8", "int8-smoothquant"))
    for name, ranges in smooth.items():
        assert plain[name].pre_quant_scale is None
        assert ranges.pre_quant_scale is not None
        assert ranges.pre_quant_scale.to(torch.bfloat16).float().equal(ranges.pre_quant_scale)
        assert ranges.input_amax < plain[name].input_amax


def test_the_same_request_gives_the_same_file(
    small_config: ModelConfig, small_weights: Weights, tmp_path: Path
) -> None:
    request = CalibrationRequest(RECIPES["fp8"], TWO, blocks=1)
    first, second = (
        calibrate(small_config, small_weights, request, SyntheticTexts(small_config), tmp_path / n)
        for n in "ab"
    )
    assert first.to_bytes() == second.to_bytes()
    other = replace(request, seed=1)
    third = calibrate(
        small_config, small_weights, other, SyntheticTexts(small_config), tmp_path / "c"
    )
    assert third.to_bytes() != first.to_bytes()


def test_an_interrupted_calibration_goes_on(
    small_config: ModelConfig,
    small_weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = CalibrationRequest(RECIPES["fp8"], FOUR, blocks=1)
    texts = SyntheticTexts(small_config)
    whole = calibrate(small_config, small_weights, request, texts, tmp_path / "whole")
    ran: list[int] = []

    def interrupted(*arguments: object, **options: object) -> object:
        video = arguments[2]
        assert isinstance(video, Video)
        if video.number == 1 and not ran.count(1):
            ran.append(1)
            raise KeyboardInterrupt
        ran.append(video.number)
        return run_video(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(calibrator, "run_video", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(small_config, small_weights, request, texts, tmp_path / "cut")
    resumed = calibrate(small_config, small_weights, request, texts, tmp_path / "cut")
    assert ran == [0, 1, 1]
    assert resumed.to_bytes() == whole.to_bytes()
    # Progress of another request is not taken over.
    calibrate(small_config, small_weights, replace(request, seed=9), texts, tmp_path / "cut")
    assert ran == [0, 1, 1, 0, 1]


class BrokenWeights(ChangedWeights):
    """One layer overflows: its output, and so the next layer's input, is infinite."""

    def __init__(self, base: Weights, broken: str) -> None:
        super().__init__(base)
        self._broken = broken

    def load(self, name: str) -> Tensor:
        tensor = super().load(name)
        return tensor * 1e38 if name == self._broken else tensor


def test_what_is_not_finite_is_named_by_layer_and_prompt(
    small_config: ModelConfig, small_weights: Weights, tmp_path: Path
) -> None:
    broken = BrokenWeights(small_weights, "blocks.0.ffn.0.weight")
    with pytest.raises(CheckpointError) as caught:
        calibrate(
            small_config,
            broken,
            CalibrationRequest(RECIPES["fp8"], TWO),
            SyntheticTexts(small_config),
            tmp_path / "progress",
        )
    assert "layer blocks.0.ffn.2" in str(caught.value)
    assert "prompt 1 ('A red fox trots" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_no_prompts_and_no_layers_are_refused(small_config: ModelConfig) -> None:
    with pytest.raises(UsageError, match="no prompts to calibrate with"):
        CalibrationRequest(RECIPES["fp8"], ())
    transformer = small_config.transformer
    with pytest.raises(UsageError, match="every layer is left out"):
        select_layers(transformer, Selection(exclude=("blocks.*",)))
    with pytest.raises(UsageError, match=r"no layer is called blocks\.7"):
        select_layers(transformer, Selection(exclude=("blocks.7.*",)))
    chosen = select_layers(transformer, Selection(("blocks.*", "head.head"), ("*.ffn.*",)))
    assert "head.head" in chosen
    assert not any("ffn" in name for name in chosen)
