"""The prompts that a calibration rolls out: the set that ships, or a file of your own."""

import hashlib
import json
import logging
import unicodedata
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from longlive_trt.errors import UsageError
from longlive_trt.reading.documents import JSON_BYTES
from longlive_trt.reading.failures import refusing
from longlive_trt.reading.files import read_text

logger = logging.getLogger(__name__)

_LONGEST = 4000


def shipped_prompts() -> list[str]:
    text = (files(__package__) / "data" / "prompts.txt").read_text(encoding="utf-8")
    return _parse(text, "prompts.txt")


def read_prompts(path: Path) -> list[str]:
    """One prompt a line; empty lines and those that begin with # are skipped."""
    if not path.exists():
        raise UsageError(f"{path}: no such file; give a text file with one prompt a line")
    with refusing(UsageError, f"{path}: not a UTF-8 text file with one prompt a line"):
        text = read_text(path, JSON_BYTES)
    prompts = _parse(text, str(path))
    if len(prompts) == 1:
        logger.warning(
            "%s: one prompt only: its ranges are taken for those of all, and no prompt switch "
            "is calibrated; 16 or more varied prompts are better",
            path,
        )
    return prompts


def prompts_sha256(prompts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()


def _parse(text: str, origin: str) -> list[str]:
    lines = {number: line.strip() for number, line in enumerate(text.split("\n"), start=1)}
    lines = {n: line for n, line in lines.items() if line and not line.startswith("#")}
    if not lines:
        raise UsageError(f"{origin}: no prompts inside; write one a line")
    junk = {n: reason for n, line in lines.items() if (reason := _why_junk(line))}
    if junk:
        number, reason = next(iter(junk.items()))
        others = f" ({len(junk)} such lines: {_listed(list(junk))})" if len(junk) > 1 else ""
        raise UsageError(
            f"{origin}, line {number}: {reason}{others}; correct or remove it, "
            f"or begin it with # to skip it"
        )
    return list(lines.values())


def _why_junk(line: str) -> str | None:
    if any(unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn") for c in line if c != "\t"):
        return "control characters in a prompt"
    if "\ufffd" in line:
        return "characters that were lost in a conversion"
    if not any(c.isalpha() for c in line):
        return f"no words in {line[:40]!r}"
    if len(line) > _LONGEST:
        return f"a prompt of {len(line)} characters; at most {_LONGEST} are of use"
    return None


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
