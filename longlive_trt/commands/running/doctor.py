"""``longlive-trt doctor``."""

from dataclasses import asdict

import click
from rich.table import Table
from rich.text import Text

from longlive_trt.commands._voice import Voice, examples, speaking
from longlive_trt.console.printing import console
from longlive_trt.doctor import Finding, examine

STYLES = {"ok": "green", "missing": "yellow", "problem": "red"}
# A file is as wide as its longest line: a remedy must be one line to be copied.
FILE_WIDTH = 1000


@click.command(epilog=examples("longlive-trt doctor", "longlive-trt doctor --json"))
@speaking
def command(voice: Voice) -> None:
    """Show what this machine can do, and the command that adds what is missing.

    Always ends with exit code 0: a missing piece is an answer, not a failure.
    """
    findings = examine()
    values = {"findings": [asdict(finding) for finding in findings]}
    voice.show(lambda: _show(findings), values)


def _show(findings: list[Finding]) -> None:
    table = Table(title="What this machine can do")
    table.add_column("piece", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("to add it", overflow="fold")
    for finding in findings:
        status = Text(finding.status, style=STYLES[finding.status])
        table.add_row(Text(finding.piece), status, Text(finding.detail), Text(finding.remedy or ""))
    console(file_width=FILE_WIDTH).print(table)
