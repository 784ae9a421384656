"""Where a report goes: three files of one name, each whole or not there at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longlive_trt.files import publish_file
from longlive_trt.quality.report.html import page
from longlive_trt.quality.report.markdown import markdown
from longlive_trt.quality.summary import Line
from longlive_trt.runtime.bench.record import to_json
from longlive_trt.runtime.output import check_file_output

_KINDS = (".html", ".md", ".json")
_IN_FOLDER = "report"


def report_files(out: Path) -> list[Path]:
    """A page, a table and the figures: in a folder, or beside a file of one of these kinds."""
    is_file = out.suffix.lower() in _KINDS
    stem = out.with_suffix("") if is_file else out / _IN_FOLDER
    return [stem.with_name(stem.name + kind) for kind in _KINDS]


def check_report(out: Path, *, overwrite: bool) -> None:
    """Before the work: its results should have a place."""
    for path in report_files(out):
        check_file_output(path, overwrite)


def write_report(out: Path, values: Mapping[str, Any], lines: Sequence[Line]) -> list[Path]:
    files = report_files(out)
    texts = (page(values, lines), markdown(values), to_json(dict(values)))
    for path, text in zip(files, texts, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        with publish_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    return files
