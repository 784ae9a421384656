"""``longlive-trt export-triton``."""

from pathlib import Path

import click

from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.bundles.triton import export_triton

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("bundle", type=_PATH)
@click.option("--out", required=True, type=_PATH, help="The model repository.")
def command(bundle: Path, out: Path) -> None:
    """Write a model repository for NVIDIA's Triton Inference Server.

    It needs nothing of this project. docs/deploy.md says how to serve it.
    """
    models = export_triton(open_bundle(bundle), out)
    click.echo(f"wrote {out}: {', '.join(models.values())}")
    click.echo(f"serve it with: tritonserver --model-repository={out.absolute()}")
