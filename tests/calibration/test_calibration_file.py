"""Calibration files: what is kept comes back, and what does not fit is refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longlive_trt.calibration.calibration_file import (
    Calibration,
    load_calibration,
    require_fit,
    save_calibration,
)
from longlive_trt.calibration.modelopt import LayerRanges
from longlive_trt.configs import ModelConfig
from longlive_trt.errors import UsageError
from longlive_trt.export.checkpoints.weights import Weights


@pytest.mark.parametrize("recipe", ["fp8", "int8-smoothquant"])
def test_what_is_saved_is_read(
    tmp_path: Path, calibrations: Mapping[str, Calibration], recipe: str
) -> None:
    path = tmp_path / "scales.safetensors"
    save_calibration(calibrations[recipe], path)
    found = load_calibration(path)
    assert found.origin == calibrations[recipe].origin
    assert found.sha256() == calibrations[recipe].sha256()
    assert list(found.layers) == list(calibrations[recipe].layers)


def test_files_that_are_none_are_refused(
    tmp_path: Path, calibrations: Mapping[str, Calibration]
) -> None:
    path = tmp_path / "scales.safetensors"
    with pytest.raises(UsageError, match="no such file"):
        load_calibration(path)
    path.write_text("junk")
    with pytest.raises(UsageError, match="not a calibration file, or cut short"):
        load_calibration(path)
    whole = calibrations["fp8"].to_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UsageError, match="cut short"):
        load_calibration(path)
    path.write_bytes(whole.replace(b'\\"format\\": 1', b'\\"format\\": 9', 1))
    with pytest.raises(UsageError, match="format 9, expected 1"):
        load_calibration(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_ranges_that_are_no_ranges_are_refused(
    tmp_path: Path, calibrations: Mapping[str, Calibration], bad: float
) -> None:
    calibration = calibrations["fp8"]
    name, ranges = next(iter(calibration.layers.items()))
    broken = LayerRanges(torch.tensor(bad), ranges.weight_amax, None)
    path = tmp_path / "scales.safetensors"
    save_calibration(replace(calibration, layers={**calibration.layers, name: broken}), path)
    with pytest.raises(UsageError, match="incomplete or altered"):
        load_calibration(path)


def test_a_calibration_fits_one_checkpoint_one_model_and_one_precision(
    calibrations: Mapping[str, Calibration], small_config: ModelConfig, small_weights: Weights
) -> None:
    calibration, path = calibrations["int8"], Path("scales.safetensors")
    digest = small_weights.digest()
    require_fit(calibration, path, small_config, digest, "int8")
    with pytest.raises(UsageError, match="made for another checkpoint"):
        require_fit(calibration, path, small_config, "0" * 64, "int8")
    with pytest.raises(UsageError, match=r"made for int8 \(int8\), and fp8 was asked for"):
        require_fit(calibration, path, small_config, digest, "fp8")
    wider = replace(small_config.transformer, ffn_dim=512)
    other = replace(small_config, transformer=wider)
    with pytest.raises(UsageError, match="a transformer of another shape"):
        require_fit(calibration, path, other, digest, "int8")
    lost = {n: v for n, v in calibration.channels.items() if n != "blocks.0.self_attn.k_heads"}
    with pytest.raises(UsageError, match=r"no ranges of blocks.0.self_attn.k_heads"):
        require_fit(replace(calibration, channels=lost), path, small_config, digest, "int8")
