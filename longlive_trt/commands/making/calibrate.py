"""``longlive-trt calibrate``."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np

from longlive_trt.basics import Report
from longlive_trt.calibration.calibration_file import FILE_NAME, Calibration
from longlive_trt.calibration.calibrator import Request
from longlive_trt.calibration.folders import (
    REPORT_NAME,
    SourceExport,
    calibrate_export,
    measure_sensitivity,
    read_fitting_calibration,
    require_extras,
    write_quantized,
)
from longlive_trt.calibration.prompts import read_prompts, shipped_prompts
from longlive_trt.calibration.recipes import FORMATS, FP8, VAE_EXCLUDED, Extras, recipe_named
from longlive_trt.calibration.sensitivity import SensitivityReport
from longlive_trt.calibration.targets import EXCLUDED, INCLUDED, Selection
from longlive_trt.calibration.texts import Tokenize
from longlive_trt.commands._reporting import stage_reporter
from longlive_trt.configs import load_config
from longlive_trt.errors import UsageError
from longlive_trt.export.components import Sources
from longlive_trt.export.exporter import ExportResult, export
from longlive_trt.precision import PRECISIONS, precision_named
from longlive_trt.runtime.prompting.tokenizer import PromptTokenizer

logger = logging.getLogger(__name__)

_PATH = click.Path(path_type=Path)


@click.command()
@click.option("--onnx", "onnx_folder", type=_PATH, help="Export to quantize; or a checkpoint:")
@click.option("--config", help="YAML file, or a shipped model's name.")
@click.option("--transformer", type=_PATH, help="Transformer checkpoint.")
@click.option("--lora", type=_PATH, help="LoRA adapter, merged in float32.")
@click.option("--vae", type=_PATH, help="VAE checkpoint.")
@click.option("--text-encoder", type=_PATH, help="UMT5 encoder checkpoint.")
@click.option("--tokenizer", type=_PATH, help="Folder that holds tokenizer.json.")
@click.option("--random-weights", type=int, metavar="SEED", help="Make weights up instead.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override the config.")
@click.option("--precision", type=click.Choice(list(FORMATS)), required=True)
@click.option("--smoothquant", is_flag=True, help="int8: move outliers into the weights.")
@click.option(
    "--cache",
    type=click.Choice(list(FORMATS)),
    help="Keep keys and values in eight bits, with a scale for each head.",
)
@click.option(
    "--attention",
    type=click.Choice([FP8.name]),
    help="Compute self-attention's products in fp8 too.",
)
@click.option(
    "--vae-precision",
    type=click.Choice(list(FORMATS)),
    help="Quantize the VAE's convolutions too.",
)
@click.option(
    "--vae-exclude",
    multiple=True,
    metavar="PATTERN",
    help=f"Convolutions to leave out.  [default: {' '.join(VAE_EXCLUDED)}]",
)
@click.option("--prompts", type=_PATH, help="One prompt a line; 64 ship with the program.")
@click.option("--max-prompts", type=click.IntRange(1), help="Use only the first so many.")
@click.option("--calibration", type=_PATH, help="Use the scales of this file; no rollouts.")
@click.option("--blocks", type=click.IntRange(1), help="Blocks in each rollout.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the rollouts' noise.")
@click.option(
    "--compute",
    type=click.Choice(list(PRECISIONS)),
    default="fp32",
    show_default=True,
    help="Arithmetic of the rollouts; bf16 on a GPU.",
)
@click.option("--device", default="cpu", show_default=True, help="Of the rollouts: cpu or cuda.")
@click.option(
    "--include",
    multiple=True,
    metavar="PATTERN",
    help=f"Layers to quantize.  [default: {' '.join(INCLUDED)}]",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help=f"Layers to leave out.  [default: {' '.join(EXCLUDED) or 'none'}]",
)
@click.option(
    "--report", "wants_report", is_flag=True, help="Measure every layer: sensitivity.json and .png."
)
@click.option(
    "--error-budget",
    type=click.FloatRange(0, min_open=True),
    default=0.02,
    show_default=True,
    help="Relative error of the latents that --report suggests layers to leave out for.",
)
@click.option("--no-check", is_flag=True, help="Skip the comparison of every graph with torch.")
@click.option("--out", required=True, type=_PATH, help="Folder for the quantized graphs.")
def command(
    onnx_folder: Path | None,
    config: str | None,
    transformer: Path | None,
    lora: Path | None,
    vae: Path | None,
    text_encoder: Path | None,
    tokenizer: Path | None,
    random_weights: int | None,
    overrides: tuple[str, ...],
    precision: str,
    smoothquant: bool,
    cache: str | None,
    attention: str | None,
    vae_precision: str | None,
    vae_exclude: tuple[str, ...],
    prompts: Path | None,
    max_prompts: int | None,
    calibration: Path | None,
    blocks: int | None,
    seed: int,
    compute: str,
    device: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    wants_report: bool,
    error_budget: float,
    no_check: bool,
    out: Path,
) -> None:
    """Quantize the graphs to fp8 or int8 with calibration rollouts.

    What is quantized is an export (--onnx), or a checkpoint, which is exported on the way. An
    interrupted calibration goes on where it was when the same command is given again.
    """
    require_device(device)
    request = Request(
        recipe=recipe_named(f"{precision}-smoothquant" if smoothquant else precision),
        prompts=tuple(load_prompts(prompts))[:max_prompts],
        selection=Selection(include or INCLUDED, exclude or EXCLUDED),
        seed=seed,
        blocks=blocks,
        compute=compute,
        device=device,
    )
    extras = Extras(
        cache=FORMATS[cache] if cache else None,
        attention=FORMATS[attention] if attention else None,
        vae=FORMATS[vae_precision] if vae_precision else None,
        vae_exclude=vae_exclude or VAE_EXCLUDED,
    )
    checkpoints = (config, transformer, lora, vae, text_encoder, tokenizer, random_weights)
    if (onnx_folder is None) == all(given is None for given in checkpoints):
        raise UsageError("give --onnx, or --config and checkpoints, and not both")
    sources = None
    if onnx_folder is None:
        sources = Sources(
            transformer=transformer,
            lora=lora,
            vae=vae,
            text_encoder=text_encoder,
            random_seed=random_weights,
        )
    with (
        stage_reporter() as report,
        _exported(onnx_folder, config, sources, tokenizer, overrides, out, report) as folder,
    ):
        source = SourceExport.open(folder)
        require_extras(source, extras)
        found = _calibration(source, request, extras, calibration, out, report)
        sensitivity = None
        if wants_report:
            sensitivity = measure_sensitivity(
                source, found, request, error_budget, open_tokenizer, report, extras
            )
        result = write_quantized(
            source,
            found,
            out,
            extras=extras,
            sensitivity=sensitivity,
            check=not no_check,
            report=report,
        )
    _show(result, found, out)
    if sensitivity is not None:
        _show_sensitivity(sensitivity, out)


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


def load_prompts(path: Path | None) -> list[str]:
    return shipped_prompts() if path is None else read_prompts(path)


def open_tokenizer(path: Path, text_len: int) -> Tokenize:
    tokenizer = PromptTokenizer.load(path, text_len)

    def tokenize(prompt: str) -> tuple[np.ndarray, np.ndarray]:
        encoded = tokenizer.encode(prompt)
        return encoded.ids, encoded.mask

    return tokenize


@contextmanager
def _exported(
    onnx_folder: Path | None,
    config: str | None,
    sources: Sources | None,
    tokenizer: Path | None,
    overrides: tuple[str, ...],
    out: Path,
    report: Report,
) -> Iterator[Path]:
    if onnx_folder is not None:
        yield onnx_folder
        return
    if config is None:
        raise UsageError("--config is missing: it says what the checkpoint is")
    assert sources is not None
    model = load_config(config, overrides=overrides)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.export-") as scratch:
        folder = Path(scratch) / "export"
        half = precision_named("fp16")
        export(model, sources, folder, half, tokenizer=tokenizer, check=False, report=report)
        yield folder


def _calibration(
    source: SourceExport,
    request: Request,
    extras: Extras,
    given: Path | None,
    out: Path,
    report: Report,
) -> Calibration:
    if given is not None:
        return read_fitting_calibration(given, source, request.recipe.format.name)
    with_vae = extras.vae is not None
    return calibrate_export(source, request, out, open_tokenizer, report, with_vae=with_vae)


def _show(result: ExportResult, calibration: Calibration, out: Path) -> None:
    origin = calibration.origin
    click.echo(
        f"quantized {out}: {calibration.recipe}, {len(calibration.layers)} layers, "
        f"{origin.videos} rollouts of {origin.blocks} blocks, text states: {origin.text_states}; "
        f"scales in {out / FILE_NAME}"
    )
    for check in result.checks:
        outcome = check.note or f"differs from torch by {check.error:.1e} (relative L2)"
        click.echo(f"{check.graph}: {outcome}")


def _show_sensitivity(report: SensitivityReport, out: Path) -> None:
    worst = max(report.layers, key=lambda layer: layer.latents_error)
    grows = "it grows along the video" if report.drifts else "it does not grow along the video"
    click.echo(
        f"error of the latents: {report.latents_error:.1e} (relative L2); {grows} "
        f"(last blocks over first: {report.drift:.1f}); worst layer alone: {worst.layer}, "
        f"{worst.latents_error:.1e}; all in {out / REPORT_NAME}.json and .png"
    )
    advice = " ".join(f"--exclude {name}" for name in report.suggested_exclude)
    click.echo(f"for an error budget of {report.error_budget}: {advice or 'leave nothing out'}")
