"""The shell's completion, as docs/commands.md sets it up."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documentation.documented import ROOT

(SETUP,) = re.findall(r"^eval .*$", (ROOT / "docs" / "commands.md").read_text(), re.MULTILINE)


def completed(tmp_path: Path, *words: str) -> set[str]:
    """What bash offers for the last word, once the page's line has been typed."""
    program = tmp_path / "longlive-trt"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "cli.py"} "$@"\n')
    program.chmod(0o755)
    typed = shlex.join(["longlive-trt", *words])
    script = (
        f"{SETUP}\nCOMP_WORDS=({typed})\nCOMP_CWORD={len(words)}\n"
        "$(complete -p longlive-trt | sed 's/.*-F \\([^ ]*\\).*/\\1/') longlive-trt\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.run(
        ["bash", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.stderr == ""
    return set(process.stdout.split())


def test_commands_and_options(tmp_path: Path) -> None:
    assert completed(tmp_path, "ge") == {"generate"}
    assert completed(tmp_path, "pack", "--o") == {"--out"}


@pytest.mark.exhaustive
def test_choices(tmp_path: Path) -> None:
    assert completed(tmp_path, "build", "--precision", "b") == {"bf16"}
    assert completed(tmp_path, "calibrate", "--pro") == {"--prompts"}
