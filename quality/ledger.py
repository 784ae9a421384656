"""What an evaluation has measured so far, a line a video, so that the same command goes on."""

import json
from pathlib import Path
from typing import Any

from longlive_trt.files import publish_file
from longlive_trt.reading.documents import JSON_BYTES, parse_json
from longlive_trt.reading.failures import ReadingError
from longlive_trt.reading.files import open_file

Line = dict[str, Any]


class Ledger:
    """A hidden file beside the report; one of other settings is begun anew."""

    def __init__(self, report: Path, key: str) -> None:
        self.path = report.with_name(f".{report.name}.eval")
        self._key = key
        self.lines = {_name(line): line for line in self._kept()}

    def add(self, line: Line) -> None:
        self.lines[_name(line)] = line
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def has(self, kind: str, number: int) -> bool:
        return (kind, number) in self.lines

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)

    def begin(self) -> None:
        """Keep what was measured under the same settings, whole lines only."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [{"key": self._key}, *self.lines.values()]
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        with publish_file(self.path) as partial:
            partial.write_text(text, encoding="utf-8")

    def _kept(self) -> list[Line]:
        lines = list(_read(self.path)) if self.path.is_file() else []
        if not lines or lines[0].get("key") != self._key:
            return []
        return [line for line in lines[1:] if "kind" in line and "number" in line]


def _read(path: Path) -> list[Line]:
    """The last line of a killed run may be half a one."""
    lines: list[Line] = []
    with open_file(path) as file:
        for data in file:
            if not data.endswith(b"\n") or len(data) > JSON_BYTES:
                break
            try:
                values = parse_json(data)
            except ReadingError:
                break
            if not isinstance(values, dict):
                break
            lines.append(values)
    return lines


def _name(line: Line) -> tuple[str, int]:
    return line["kind"], line["number"]
