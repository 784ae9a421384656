"""An evaluation on a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from longlive_trt.quality.report.values import notes_of, number_of, spread_of, title_of


def show(values: Mapping[str, Any], console: Console) -> None:
    reference = values["reference"]
    made = sum(values["videos"].values())
    table = Table(title=f"{values['model']}, {made} videos", box=None, pad_edge=False)
    table.add_column("")
    table.add_column(title_of(values["bundle"]), justify="right")
    table.add_column("spread", justify="right")
    if reference:
        table.add_column(f"reference: {title_of(reference)}", justify="right")
    for metric in values["metrics"]:
        unit = metric["unit"]
        cells = [f"{metric['title']}{f', {unit}' if unit else ''}", number_of(metric["own"], unit)]
        cells.append(spread_of(metric["own"], unit))
        table.add_row(*cells, *([number_of(metric["other"], unit)] if reference else []))
    console.print(table)
    for note in notes_of(values):
        console.print(note)
