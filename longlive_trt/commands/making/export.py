"""``longlive-trt export``."""

from pathlib import Path

import click
from rich.table import Table

from longlive_trt.commands._numbers import real, whole
from longlive_trt.commands._reporting import folded, stage_reporter
from longlive_trt.export.checkpoints.lora import MULTIPLIERS
from longlive_trt.export.components import SEEDS
from longlive_trt.export.exporter import ExportResult
from longlive_trt.making.exporting import export
from longlive_trt.precision import PRECISIONS
from longlive_trt.printing import console

_PATH = click.Path(path_type=Path)


@click.command()
@click.option("--config", required=True, help="YAML file, or a shipped model's name.")
@click.option("--transformer", type=_PATH, help="Transformer checkpoint.")
@click.option("--lora", type=_PATH, help="LoRA adapter, merged in float32.")
@click.option("--lora-alpha", type=real(MULTIPLIERS), help="Overrides the adapter's own alpha.")
@click.option("--ema", is_flag=True, help="Take the checkpoint's EMA weights.")
@click.option("--vae", type=_PATH, help="VAE checkpoint.")
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
def command(
    config: str,
    transformer: Path | None,
    lora: Path | None,
    lora_alpha: float | None,
    ema: bool,
    vae: Path | None,
    text_encoder: Path | None,
    tokenizer: Path | None,
    random_weights: int | None,
    precision: str,
    out: Path,
    no_check: bool,
    overrides: tuple[str, ...],
) -> None:
    """Turn a checkpoint into ONNX graphs.

    A component whose checkpoint is not given is left out.
    """
    with stage_reporter() as progress:
        result = export(
            config,
            out,
            transformer=transformer,
            lora=lora,
            lora_alpha=lora_alpha,
            ema=ema,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            random_weights=random_weights,
            precision=precision,
            check=not no_check,
            overrides=overrides,
            progress=progress,
        )
    _show(result, out)


def _show(result: ExportResult, out: Path) -> None:
    shown = console()
    table = Table(title=f"Graphs in {out} ({result.record.precision})")
    for column in ("graph", "", "tensor", "type", "shape"):
        table.add_column(column)
    for name, graph in result.record.graphs.items():
        for direction, tensors in (("in", graph.inputs), ("out", graph.outputs)):
            for tensor in folded(tensors):
                table.add_row(name, direction, *tensor)
        table.add_section()
    shown.print(table)
    for check in result.checks:
        outcome = check.note or f"differs from torch by {check.error:.1e} (relative L2)"
        shown.print(f"{check.graph}: {outcome}", highlight=False)
