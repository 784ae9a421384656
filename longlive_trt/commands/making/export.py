"""``longlive-trt export``."""

from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

import click

from longlive_trt.commands._numbers import real, whole
from longlive_trt.commands._voice import Voice, examples, speaking
from longlive_trt.console.wording import byte_size, counted
from longlive_trt.export.checkpoints.lora import MULTIPLIERS
from longlive_trt.export.components import SEEDS
from longlive_trt.export.exporter import ExportResult
from longlive_trt.exports import export_bytes
from longlive_trt.making.exporting import export
from longlive_trt.precision import PRECISIONS

_PATH = click.Path(path_type=Path)
_EXAMPLES = examples(
    "longlive-trt export --config longlive-1.3b --transformer base.pt --lora lora.pt --out onnx/",
    "longlive-trt export --config longlive-1.3b --vae taew2_1.safetensors --out onnx/",
    "longlive-trt export --config tiny --random-weights 0 --out onnx/",
)


@click.command(epilog=_EXAMPLES)
@click.option("--config", required=True, help="YAML file, or a shipped model's name.")
@click.option("--transformer", type=_PATH, help="Transformer checkpoint.")
@click.option("--lora", type=_PATH, help="LoRA adapter, merged in float32.")
@click.option("--lora-alpha", type=real(MULTIPLIERS), help="Overrides the adapter's own alpha.")
@click.option("--ema", is_flag=True, help="Take the checkpoint's EMA weights.")
@click.option("--vae", type=_PATH, help="Decoder checkpoint: Wan's VAE, or TAEHV (taew2_1).")
@click.option("--light-vae", type=_PATH, help="A second decoder, for live previews.")
@click.option(
    "--no-encoder", is_flag=True, help="Leave out the VAE's encoder (`generate --start`)."
)
@click.option("--text-encoder", type=_PATH, help="UMT5 encoder checkpoint.")
@click.option("--tokenizer", type=_PATH, help="Folder that holds tokenizer.json.")
@click.option(
    "--random-weights", type=whole(SEEDS), metavar="SEED", help="Make weights up instead."
)
@click.option(
    "--precision",
    type=click.Choice(list(PRECISIONS)),
    default="fp32",
    show_default=True,
    help="Of the weights on disk; `build` can still choose another.",
)
@click.option("--out", required=True, type=_PATH, help="Folder for the graphs.")
@click.option("--no-check", is_flag=True, help="Skip the comparison of every graph with torch.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override the config.")
@speaking
def command(
    config: str,
    transformer: Path | None,
    lora: Path | None,
    lora_alpha: float | None,
    ema: bool,
    vae: Path | None,
    light_vae: Path | None,
    no_encoder: bool,
    text_encoder: Path | None,
    tokenizer: Path | None,
    random_weights: int | None,
    precision: str,
    out: Path,
    no_check: bool,
    overrides: tuple[str, ...],
    voice: Voice,
) -> None:
    """Turn a checkpoint into ONNX graphs.

    A component whose checkpoint is not given is left out.
    """
    with voice.reporting() as report:
        result = export(
            config,
            out,
            transformer=transformer,
            lora=lora,
            lora_alpha=lora_alpha,
            ema=ema,
            vae=vae,
            light_vae=light_vae,
            encoder=not no_encoder,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            random_weights=random_weights,
            precision=precision,
            check=not no_check,
            overrides=overrides,
            progress=report.stages,
        )
    voice.result(_describe(result, out), _values(result, out))


def _values(result: ExportResult, out: Path) -> dict[str, Any]:
    return {
        "export": out,
        "precision": result.record.precision,
        "graphs": list(result.record.graphs),
        "bytes": export_bytes(out, result.record),
        "checks": [asdict(check) for check in result.checks],
    }


def _describe(result: ExportResult, out: Path) -> str:
    record = result.record
    size = byte_size(export_bytes(out, record))
    graphs = f"{counted(len(record.graphs), 'graph')} ({', '.join(record.graphs)})"
    return (
        f"exported {out}: {graphs}, {record.precision}, {size}; {_verdict(result)}\n"
        f"next: longlive-trt build --onnx {quote(str(out))} --out bundle/"
    )


def _verdict(result: ExportResult) -> str:
    """Every check passed: one that does not ends the export."""
    if not result.checks:
        return "not compared with torch"
    errors = [check.error for check in result.checks if check.error is not None]
    notes = [f"{check.graph}: {check.note}" for check in result.checks if check.note]
    if errors:
        notes.insert(0, f"differs from torch by at most {max(errors):.1e} (relative L2)")
    return "; ".join(notes)
