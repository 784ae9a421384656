"""``longlive-trt refit``."""

from pathlib import Path

import click

from ..engines.tensorrt_refit import refit
from ._reporting import stage_reporter
from .build import show_result

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("stripped", type=_PATH)
@click.option("--onnx", required=True, type=_PATH, help="The export that it was built from.")
@click.option("--out", required=True, type=_PATH, help="The bundle.")
def command(stripped: Path, onnx: Path, out: Path) -> None:
    """Put the weights back into engines that were built with --strip."""
    with stage_reporter() as report:
        result = refit(stripped, onnx, out, report)
    show_result(result, out)
