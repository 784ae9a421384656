"""What was measured of videos, a line each, in files that any machine may add to.

A run writes a file of its own below a folder. Files of other machines are put beside it; those that
end with ``.gz`` may be compressed. A line says by its key what was measured, so that lines of other
weights or other settings are passed over.
"""

import gzip
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class Records:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines = {line["key"]: line for path in _files(folder) for line in _read(path)}
        self._own = folder / f"{secrets.token_hex(4)}.jsonl"

    def __contains__(self, key: str) -> bool:
        return key in self._lines

    def get(self, key: str) -> Line | None:
        return self._lines.get(key)

    def add(self, line: Line) -> None:
        self._lines[line["key"]] = line
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._own.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted((*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")))


def _read(path: Path) -> Iterator[Line]:
    """The last line of a killed run may be half a one."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and "key" in line:
                yield line
