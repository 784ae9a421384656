"""How commands take a bundle that may be called by its name."""

from pathlib import Path

import click

from longlive_trt import loading
from longlive_trt.commands._reporting import stage_reporter
from longlive_trt.making.demo import demo_bundle

HELP = f"What `build` made, or {loading.DEMO}."


def find_bundle(bundle: Path, *, quiet: bool = False) -> Path:
    """The bundle's folder; the demo's is built first, if need be, and that is said."""
    if quiet or not loading.is_demo(bundle):
        return loading.find_bundle(bundle, notify=lambda _text: None)
    return find_demo()


def find_demo() -> Path:
    with stage_reporter() as report:
        return demo_bundle(_say, report)


def _say(text: str) -> None:
    click.echo(f"note: {text}", err=True)
