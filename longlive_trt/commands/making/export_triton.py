"""``longlive-trt export-triton``."""

from pathlib import Path

import click

from longlive_trt.commands._voice import PATIENCE_S, Voice, examples, speaking
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.bundles.triton import export_triton

_PATH = click.Path(path_type=Path)


@click.command(epilog=examples("longlive-trt export-triton bundle/ --out models/"))
@click.argument("bundle", type=_PATH)
@click.option("--out", required=True, type=_PATH, help="The model repository.")
@speaking
def command(bundle: Path, out: Path, voice: Voice) -> None:
    """Write a model repository for NVIDIA's Triton Inference Server.

    It needs nothing of this project. docs/deploy.md says how to serve it.
    """
    with voice.reporting(patience_s=PATIENCE_S) as report:
        opened = open_bundle(bundle, report.bytes)
    models = export_triton(opened, out)
    voice.result(
        f"wrote {out}: {', '.join(models.values())}\n"
        f"serve it with: tritonserver --model-repository={out.absolute()}",
        {"repository": out, "models": models},
    )
