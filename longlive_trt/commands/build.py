"""``longlive-trt build``."""

import sys
from pathlib import Path

import click

from ..engines.build import ENGINES, build
from ..precision import PRECISIONS
from ._reporting import stage_reporter


@click.command()
@click.option(
    "--onnx",
    "onnx_folder",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder that `export` made.",
)
@click.option("--precision", type=click.Choice(list(PRECISIONS)), default="fp32", show_default=True)
@click.option("--engine", type=click.Choice(ENGINES), default=ENGINES[0], show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The bundle.")
@click.option("--force", is_flag=True, help="Build even if nothing has changed.")
def command(onnx_folder: Path, precision: str, engine: str, out: Path, force: bool) -> None:
    """Compile ONNX graphs into a bundle of engines."""
    with stage_reporter() as report:
        result = build(
            onnx_folder,
            out,
            precision,
            engine,
            command=" ".join(["longlive-trt", *sys.argv[1:]]),
            force=force,
            report=report,
        )
    manifest = result.manifest
    if result.was_current:
        click.echo(f"{out}: nothing has changed since it was built; left as it is")
        return
    size = sum(entry.bytes for entry in manifest.files.values())
    click.echo(
        f"built {out}: {len(manifest.graphs)} graphs, {manifest.precision}, "
        f"{manifest.engine.kind} {manifest.engine.version}, {size / 1e6:.1f} MB, "
        f"{manifest.duration_s:.1f} s"
    )
