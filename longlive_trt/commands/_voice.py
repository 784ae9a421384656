"""How commands speak: to a person, to a script, or of errors only; and their help's examples."""

import functools
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import click

from longlive_trt.console.reporting import SILENT, Reporters, reporting

QUIET = "Show errors only."
JSON = "Print the result as JSON."
OVERWRITE = "Replace outputs that exist."
PATIENCE_S = 2.0
"""A log hears of checks of files only where they take longer."""

overwrite_option = click.option("--overwrite", is_flag=True, help=OVERWRITE)


@dataclass(frozen=True)
class Voice:
    is_quiet: bool = False
    as_json: bool = False

    def result(self, text: str, values: Mapping[str, Any]) -> None:
        """What came out: the one or the other, on stdout."""
        self.show(lambda: click.echo(text), values)

    def show(self, show: Callable[[], object], values: Mapping[str, Any]) -> None:
        if self.as_json:
            click.echo(json.dumps(values, indent=2, default=str))
        elif not self.is_quiet:
            show()

    def note(self, text: str) -> None:
        if not self.is_quiet:
            click.echo(f"note: {text}", err=True)

    @contextmanager
    def reporting(self, *, patience_s: float = 0.0) -> Iterator[Reporters]:
        if self.is_quiet:
            yield SILENT
            return
        with reporting(patience_s=patience_s) as reporters:
            yield reporters


def speaking(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command --quiet and --json, and hands it the ``voice`` that they ask for."""

    @click.option("--quiet", "is_quiet", is_flag=True, help=QUIET)
    @click.option("--json", "as_json", is_flag=True, help=JSON)
    @functools.wraps(command)
    def spoken(*, is_quiet: bool, as_json: bool, **values: Any) -> Any:
        with _errors_only() if is_quiet else nullcontext():
            return command(**values, voice=Voice(is_quiet, as_json))

    return spoken


@contextmanager
def _errors_only() -> Iterator[None]:
    logger = logging.getLogger("longlive_trt")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def examples(*commands: str) -> str:
    """For the end of a command's help; tests run each through the parser."""
    # Click fills paragraphs, but for those that begin so.
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)
