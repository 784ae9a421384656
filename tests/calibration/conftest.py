"""A small model, its export, and its calibrations: each is made once."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from longlive_trt.calibration.calibration_file import Calibration
from longlive_trt.calibration.calibrator import CalibrationRequest, calibrate
from longlive_trt.calibration.folders import SourceExport, write_quantized
from longlive_trt.calibration.prompts import shipped_prompts
from longlive_trt.calibration.recipes import FORMATS, FP8, INT8, RECIPES, Extras
from longlive_trt.calibration.targets import Selection
from longlive_trt.calibration.texts import SyntheticTexts
from longlive_trt.configs import ModelConfig
from longlive_trt.configs.loader import configure
from longlive_trt.export.checkpoints.random import RandomWeights
from longlive_trt.export.checkpoints.weights import Weights
from longlive_trt.export.components import expected_shapes
from longlive_trt.export.models.transformer import Transformer
from tests.shared import CALIBRATED, CALIBRATED_SEED, Shared

MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def small_config() -> ModelConfig:
    return configure(CALIBRATED, origin="conftest")


@pytest.fixture(scope="session")
def small_weights(small_config: ModelConfig) -> Weights:
    return RandomWeights(
        expected_shapes(lambda: Transformer(small_config.transformer)), CALIBRATED_SEED
    )


@pytest.fixture(scope="session")
def calibrations(
    small_config: ModelConfig, small_weights: Weights, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Calibration]:
    """One for each recipe; the rollouts are shared, as they are the same."""
    progress = tmp_path_factory.mktemp("calibration") / "progress"
    prompts = tuple(shipped_prompts()[:2])
    return {
        name: calibrate(
            small_config,
            small_weights,
            CalibrationRequest(recipe, prompts, Selection(exclude=())),
            SyntheticTexts(small_config),
            progress,
        )
        for name, recipe in RECIPES.items()
    }


@pytest.fixture(scope="session")
def small_export(shared: Shared) -> Path:
    return shared("calibration-export")


@pytest.fixture(scope="session")
def quantized_export(
    make_once: MakeOnce, small_export: Path, calibrations: Mapping[str, Calibration]
) -> Callable[[str], Path]:
    def exported(recipe: str) -> Path:
        def make(path: Path) -> None:
            source = SourceExport.open(small_export)
            write_quantized(source, calibrations[recipe], path)

        return make_once(f"calibration-{recipe}", make)

    return exported


@pytest.fixture(scope="session")
def quantized_cache_export(
    make_once: MakeOnce, small_export: Path, calibrations: Mapping[str, Calibration]
) -> Callable[[str], Path]:
    """With keys and values in eight bits; every graph was compared with torch."""

    def exported(name: str) -> Path:
        def make(path: Path) -> None:
            source, extras = SourceExport.open(small_export), Extras(cache=FORMATS[name])
            result = write_quantized(source, calibrations["fp8"], path, extras=extras)
            assert all(check.error is not None for check in result.checks)

        return make_once(f"calibration-cache-{name}", make)

    return exported


@pytest.fixture(scope="session")
def quantized_attention_export(
    make_once: MakeOnce, small_export: Path, calibrations: Mapping[str, Calibration]
) -> Path:
    """With self-attention in FP8; every graph was compared with torch."""

    def make(path: Path) -> None:
        source, extras = SourceExport.open(small_export), Extras(attention=FP8)
        result = write_quantized(source, calibrations["fp8"], path, extras=extras)
        assert all(check.error is not None and check.error < 5e-3 for check in result.checks)

    return make_once("calibration-quantized-attention", make)


@pytest.fixture(scope="session")
def integer_attention_export(
    make_once: MakeOnce, small_export: Path, calibrations: Mapping[str, Calibration]
) -> Path:
    """With self-attention in int8; every graph was compared with torch."""

    def make(path: Path) -> None:
        source, extras = SourceExport.open(small_export), Extras(attention=INT8)
        result = write_quantized(source, calibrations["fp8"], path, extras=extras)
        assert all(check.error is not None and check.error < 5e-3 for check in result.checks)

    return make_once("calibration-integer-attention", make)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The model is too small to share out."""
    torch.set_num_threads(1)
