"""``longlive-trt refit``."""

from pathlib import Path

import click

from longlive_trt.commands._reporting import stage_reporter
from longlive_trt.commands.making.build import show_result
from longlive_trt.engines.trt.refit import refit

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
