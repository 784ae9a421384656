"""Names of files that come from a file."""

from pathlib import PurePosixPath

from longlive_trt.console.printing import quoted
from longlive_trt.reading.failures import ReadingError

MOST_NAME_BYTES = 255


def require_inside(name: str) -> None:
    """Refuse a name that leads out of its folder, or that is no plain one."""
    path = PurePosixPath(name)
    is_plain = str(path) == name and name.isprintable() and "\\" not in name
    is_short = all(len(part.encode()) <= MOST_NAME_BYTES for part in path.parts)
    leads_out = path.is_absolute() or ".." in path.parts or name == "."
    if not (is_plain and is_short) or leads_out or len(name) > 4 * MOST_NAME_BYTES:
        raise ReadingError(f"file name {quoted(name)} leads outside the folder or is not plain")
