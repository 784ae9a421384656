"""``longlive-trt calibrate``."""

from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

import click

from longlive_trt.calibration.calibration_file import FILE_NAME
from longlive_trt.calibration.calibrator import BLOCKS
from longlive_trt.calibration.folders import REPORT_NAME
from longlive_trt.calibration.recipes import FORMATS, VAE_EXCLUDED
from longlive_trt.calibration.sensitivity import SensitivityReport
from longlive_trt.calibration.targets import EXCLUDED, INCLUDED
from longlive_trt.commands._numbers import real, whole
from longlive_trt.commands._voice import Voice, examples, speaking
from longlive_trt.console.wording import counted
from longlive_trt.export.components import SEEDS
from longlive_trt.making.calibrating import (
    ERROR_BUDGET,
    MOST_PROMPTS,
    CalibrationResult,
    calibrate,
)
from longlive_trt.precision import PRECISIONS

_PATH = click.Path(path_type=Path)
_EXAMPLES = examples(
    "longlive-trt calibrate --onnx onnx/ --precision fp8 --out onnx-fp8/",
    "longlive-trt calibrate --onnx onnx/ --precision int8 --max-prompts 8 --report --out int8/",
)


@click.command(epilog=_EXAMPLES)
@click.option("--onnx", "onnx_folder", type=_PATH, help="Export to quantize; or a checkpoint:")
@click.option("--config", help="YAML file, or a shipped model's name.")
@click.option("--transformer", type=_PATH, help="Transformer checkpoint.")
@click.option("--lora", type=_PATH, help="LoRA adapter, merged in float32.")
@click.option("--vae", type=_PATH, help="VAE checkpoint.")
@click.option("--text-encoder", type=_PATH, help="UMT5 encoder checkpoint.")
@click.option("--tokenizer", type=_PATH, help="Folder that holds tokenizer.json.")
@click.option(
    "--random-weights", type=whole(SEEDS), metavar="SEED", help="Make weights up instead."
)
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
    type=click.Choice(list(FORMATS)),
    help="Compute self-attention in eight bits too; int8 is closer, and brings its own cache.",
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
@click.option("--max-prompts", type=whole(MOST_PROMPTS), help="Use only the first so many.")
@click.option("--calibration", type=_PATH, help="Use the scales of this file; no rollouts.")
@click.option("--blocks", type=whole(BLOCKS), help="Blocks in each rollout.")
@click.option(
    "--seed", type=whole(SEEDS), default=0, show_default=True, help="Of the rollouts' noise."
)
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
    type=real(ERROR_BUDGET),
    default=0.02,
    show_default=True,
    help="Relative error of the latents that --report suggests layers to leave out for.",
)
@click.option("--no-check", is_flag=True, help="Skip the comparison of every graph with torch.")
@click.option("--out", required=True, type=_PATH, help="Folder for the quantized graphs.")
@speaking
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
    voice: Voice,
) -> None:
    """Quantize the graphs to fp8 or int8 with calibration rollouts.

    What is quantized is an export (--onnx), or a checkpoint, which is exported on the way. An
    interrupted calibration goes on where it was when the same command is given again.
    """
    with voice.reporting() as reporters:
        result = calibrate(
            onnx_folder,
            out,
            precision=precision,
            config=config,
            transformer=transformer,
            lora=lora,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            random_weights=random_weights,
            overrides=overrides,
            smoothquant=smoothquant,
            cache=cache,
            attention=attention,
            vae_precision=vae_precision,
            vae_exclude=vae_exclude,
            prompts=prompts,
            max_prompts=max_prompts,
            calibration=calibration,
            blocks=blocks,
            seed=seed,
            compute=compute,
            device=device,
            include=include,
            exclude=exclude,
            report=wants_report,
            error_budget=error_budget,
            check=not no_check,
            progress=reporters.stages,
            notify=voice.note,
        )
    voice.show(lambda: _show(result, out), _values(result, out))


def _values(result: CalibrationResult, out: Path) -> dict[str, Any]:
    scales, sensitivity = result.calibration, result.sensitivity
    return {
        "export": out,
        "recipe": scales.recipe,
        "layers": len(scales.layers),
        "rollouts": scales.origin.videos,
        "checks": [asdict(check) for check in result.export.checks],
        "sensitivity": None
        if sensitivity is None
        else {
            "latents_error": sensitivity.latents_error,
            "suggested_exclude": list(sensitivity.suggested_exclude),
        },
    }


def _show(result: CalibrationResult, out: Path) -> None:
    scales = result.calibration
    origin = scales.origin
    click.echo(
        f"quantized {out}: {scales.recipe}, {counted(len(scales.layers), 'layer')}, "
        f"{counted(origin.videos, 'rollout')} of {counted(origin.blocks, 'block')}, "
        f"text states: {origin.text_states}; "
        f"scales in {out / FILE_NAME}"
    )
    for check in result.export.checks:
        outcome = check.note or f"differs from torch by {check.error:.1e} (relative L2)"
        click.echo(f"{check.graph}: {outcome}")
    if result.sensitivity is not None:
        _show_sensitivity(result.sensitivity, out)
    precision = scales.recipe.partition("-")[0]
    click.echo(
        f"next: longlive-trt build --onnx {quote(str(out))} --precision {precision} --out bundle/"
    )


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
