"""``longlive_trt.calibrate``: what the command does, as a function."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longlive_trt.basics import Report, unheard
from longlive_trt.calibration.calibration_file import Calibration
from longlive_trt.calibration.calibrator import CalibrationRequest
from longlive_trt.calibration.folders import (
    SourceExport,
    begin_tracing,
    calibrate_export,
    measure_sensitivity,
    read_fitting_calibration,
    require_extras,
    write_quantized,
)
from longlive_trt.calibration.prompts import read_prompts, shipped_prompts
from longlive_trt.calibration.recipes import FORMATS, VAE_EXCLUDED, Extras, recipe_named
from longlive_trt.calibration.sensitivity import SensitivityReport
from longlive_trt.calibration.targets import EXCLUDED, INCLUDED, Selection
from longlive_trt.calibration.texts import Tokenize
from longlive_trt.configs import ModelConfig
from longlive_trt.errors import UsageError
from longlive_trt.export.exporter import ExportResult
from longlive_trt.export.tracers import Tracers
from longlive_trt.extras import EXPORTING, QUANTIZING, require_modules
from longlive_trt.files import EXPORT, real_path, require_replaceable, scratch_folder
from longlive_trt.making.choices import optional_path, require_choice
from longlive_trt.making.estimates import describe_calibration
from longlive_trt.making.exporting import export
from longlive_trt.precision import PRECISIONS
from longlive_trt.reading.ranges import Range
from longlive_trt.runtime.prompting.tokenizer import PromptTokenizer

logger = logging.getLogger(__name__)

MOST_PROMPTS = Range(1, 1_000_000)
ERROR_BUDGET = Range(0, 1000, above=True)


@dataclass(frozen=True)
class CalibrationResult:
    export: ExportResult
    calibration: Calibration
    sensitivity: SensitivityReport | None


def calibrate(
    onnx: str | Path | None = None,
    out: str | Path | None = None,
    *,
    precision: str,
    config: str | Path | ModelConfig | None = None,
    transformer: str | Path | None = None,
    lora: str | Path | None = None,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    tokenizer: str | Path | None = None,
    random_weights: int | None = None,
    overrides: Sequence[str] = (),
    smoothquant: bool = False,
    cache: str | None = None,
    attention: str | None = None,
    vae_precision: str | None = None,
    vae_exclude: Sequence[str] = (),
    prompts: str | Path | Sequence[str] | None = None,
    max_prompts: int | None = None,
    calibration: str | Path | None = None,
    blocks: int | None = None,
    seed: int = 0,
    compute: str = "fp32",
    device: str = "cpu",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    report: bool = False,
    error_budget: float = 0.02,
    check: bool = True,
    progress: Report = unheard,
    notify: Callable[[str], None] = logger.info,
) -> CalibrationResult:
    """Quantize an export to fp8 or int8, guided by rollouts, into the folder ``out``.

    ``onnx``: the export; or ``config`` and checkpoints, which are exported on the way.
    ``precision``: ``fp8`` or ``int8``; with ``smoothquant``, int8 moves outliers into the weights.
    ``cache``, ``attention``, ``vae_precision``: quantize keys and values, self-attention's
    products, and the VAE's convolutions (but ``vae_exclude``) too. Attention in ``int8`` says
    itself how keys and values are kept.
    ``prompts``: a file with one a line, or the prompts themselves; 64 ship with the program, of
    which ``max_prompts`` may take the first. ``blocks``, ``seed``, ``compute`` and ``device`` are
    those of the rollouts.
    ``calibration``: use the scales of this file; no rollouts.
    ``include``, ``exclude``: patterns of layers.
    ``report``: measure every layer, and suggest for ``error_budget`` which to leave out.
    ``check``: compare every graph with torch.
    ``progress`` is called with (what is being done, how much is done, of how much), and ``notify``
    is told, before the rollouts, about how long they will take.
    """
    require_modules(QUANTIZING if calibration is None else EXPORTING)
    if out is None:
        raise UsageError("out is missing: give a folder for the quantized graphs")
    _require_choices(precision, cache, attention, vae_precision, compute)
    _require_numbers(max_prompts, error_budget)
    if vae_exclude and vae_precision is None:
        raise UsageError("--vae-exclude chooses among what --vae-precision quantizes: give both")
    require_device(device)
    require_replaceable(Path(out), EXPORT)
    request = CalibrationRequest(
        recipe=recipe_named(f"{precision}-smoothquant" if smoothquant else precision),
        prompts=tuple(load_prompts(prompts))[:max_prompts],
        selection=Selection(tuple(include) or INCLUDED, tuple(exclude) or EXCLUDED),
        seed=seed,
        blocks=blocks,
        compute=compute,
        device=device,
    )
    extras = Extras(
        cache=FORMATS[cache] if cache else None,
        attention=FORMATS[attention] if attention else None,
        vae=FORMATS[vae_precision] if vae_precision else None,
        vae_exclude=tuple(vae_exclude) or VAE_EXCLUDED,
    )
    checkpoints = Checkpoints(
        config, transformer, lora, vae, text_encoder, tokenizer, random_weights, tuple(overrides)
    )
    with _source(onnx, checkpoints, Path(out), progress) as folder, Tracers() as tracers:
        source = SourceExport.open(folder)
        require_extras(source, extras)
        if calibration is None:
            with_vae = extras.vae is not None
            notify(describe_calibration(source.config, request, with_vae=with_vae))
            begin_tracing(tracers, source, request, extras)
        scales = _scales(source, request, extras, optional_path(calibration), Path(out), progress)
        sensitivity = None
        if report:
            sensitivity = measure_sensitivity(
                source, scales, request, error_budget, open_tokenizer, progress, extras
            )
        result = write_quantized(
            source,
            scales,
            Path(out),
            extras=extras,
            sensitivity=sensitivity,
            check=check,
            device=device,
            report=progress,
            tracers=tracers,
        )
    return CalibrationResult(result, scales, sensitivity)


@dataclass(frozen=True)
class Checkpoints:
    """What is exported on the way, where no export is given."""

    config: str | Path | ModelConfig | None
    transformer: str | Path | None
    lora: str | Path | None
    vae: str | Path | None
    text_encoder: str | Path | None
    tokenizer: str | Path | None
    random_weights: int | None
    overrides: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        weights = (self.transformer, self.lora, self.vae, self.text_encoder, self.random_weights)
        return all(value is None for value in (self.config, self.tokenizer, *weights))

    def export(self, folder: Path, progress: Report) -> None:
        if self.config is None:
            raise UsageError("--config is missing: it says what the checkpoint is")
        export(
            self.config,
            folder,
            transformer=self.transformer,
            lora=self.lora,
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            random_weights=self.random_weights,
            precision="fp16",
            check=False,
            overrides=self.overrides,
            progress=progress,
        )


@contextmanager
def _source(
    onnx: str | Path | None, checkpoints: Checkpoints, out: Path, progress: Report
) -> Iterator[Path]:
    if (onnx is None) == checkpoints.is_empty:
        raise UsageError("give --onnx, or --config and checkpoints, and not both")
    if onnx is not None:
        yield Path(onnx)
        return
    with scratch_folder(real_path(out)) as scratch:
        folder = scratch / "export"
        checkpoints.export(folder, progress)
        yield folder


def _scales(
    source: SourceExport,
    request: CalibrationRequest,
    extras: Extras,
    calibration: Path | None,
    out: Path,
    progress: Report,
) -> Calibration:
    if calibration is not None:
        return read_fitting_calibration(calibration, source, request.recipe.format.name)
    with_vae = extras.vae is not None
    return calibrate_export(source, request, out, open_tokenizer, progress, with_vae=with_vae)


def _require_choices(
    precision: str,
    cache: str | None,
    attention: str | None,
    vae_precision: str | None,
    compute: str,
) -> None:
    require_choice("precision", precision, FORMATS)
    require_choice("compute", compute, PRECISIONS)
    for name, value, allowed in (
        ("cache", cache, tuple(FORMATS)),
        ("attention", attention, tuple(FORMATS)),
        ("vae_precision", vae_precision, tuple(FORMATS)),
    ):
        if value is not None:
            require_choice(name, value, allowed)


def _require_numbers(max_prompts: int | None, error_budget: float) -> None:
    MOST_PROMPTS.require("max_prompts", max_prompts)
    ERROR_BUDGET.require("error_budget", error_budget)


def require_device(device: str) -> None:
    import torch

    if device == "cpu":
        return
    if device.partition(":")[0] != "cuda" or not torch.cuda.is_available():
        raise UsageError(f"--device {device}: torch finds no such device here; use --device cpu")


def default_device() -> tuple[str, str]:
    """(device, compute type) for rollouts that nobody chose them for."""
    import torch

    return ("cuda", "bf16") if torch.cuda.is_available() else ("cpu", "fp32")


def load_prompts(prompts: str | Path | Sequence[str] | None) -> list[str]:
    if prompts is None:
        return shipped_prompts()
    return read_prompts(Path(prompts)) if isinstance(prompts, str | Path) else list(prompts)


def open_tokenizer(path: Path, text_len: int) -> Tokenize:
    tokenizer = PromptTokenizer.load(path, text_len)

    def tokenize(prompt: str) -> tuple[np.ndarray, np.ndarray]:
        encoded = tokenizer.encode(prompt)
        return encoded.ids, encoded.mask

    return tokenize
