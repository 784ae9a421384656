"""An evaluation as a table in Markdown."""

from collections.abc import Iterator, Mapping
from typing import Any

from longlive_trt.quality.report.values import notes_of, number_of, spread_of, title_of


def markdown(values: Mapping[str, Any]) -> str:
    return "\n".join(_lines(values)) + "\n"


def _lines(values: Mapping[str, Any]) -> Iterator[str]:
    reference = values["reference"]
    yield f"# {values['model']}: {title_of(values['bundle'])}"
    yield ""
    yield f"`{values['command']}`"
    yield ""
    yield ", ".join(f"{count} of kind {kind}" for kind, count in values["videos"].items())
    yield ""
    heading = f"reference ({title_of(reference)})" if reference else "reference"
    yield f"| | bundle | spread | {heading} | better |"
    yield "|---|---|---|---|---|"
    for metric in values["metrics"]:
        unit = f", {metric['unit']}" if metric["unit"] else ""
        own, other = metric["own"], metric["other"]
        cells = (
            f"{metric['title']}{unit}",
            number_of(own, metric["unit"]),
            spread_of(own, metric["unit"]),
            number_of(other, metric["unit"]),
            metric["better"] or "-",
        )
        yield "| " + " | ".join(cells) + " |"
    yield ""
    yield from (f"* {note}" for note in notes_of(values))
