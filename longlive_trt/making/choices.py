"""What the functions that make exports and bundles take from their callers."""

from collections.abc import Iterable
from pathlib import Path

from longlive_trt.errors import UsageError


def require_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    known = list(allowed)
    if value not in known:
        raise UsageError(f"{name} is {value!r}; allowed: {', '.join(known)}")


def optional_path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
