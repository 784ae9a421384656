"""``longlive-trt refit``."""

from pathlib import Path

import click

from longlive_trt.commands._voice import Voice, examples, speaking
from longlive_trt.commands.making.build import show_result
from longlive_trt.engines.trt.refit import refit

_PATH = click.Path(path_type=Path)


@click.command(epilog=examples("longlive-trt refit stripped/ --onnx onnx/ --out bundle/"))
@click.argument("stripped", type=_PATH)
@click.option("--onnx", required=True, type=_PATH, help="The export that it was built from.")
@click.option("--out", required=True, type=_PATH, help="The bundle.")
@speaking
def command(stripped: Path, onnx: Path, out: Path, voice: Voice) -> None:
    """Put the weights back into engines that were built with --strip."""
    with voice.reporting() as report:
        result = refit(stripped, onnx, out, report.stages)
    show_result(result, out, voice)
