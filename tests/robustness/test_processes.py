"""Hostile input to the program as it is installed: real processes, with little memory, in time."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.robustness.support import tars
from tests.robustness.support.hostile import JSON_DOCUMENTS, YAML_DOCUMENTS, YAML_VALUES
from tests.robustness.support.running import complaint_faults
from tests.robustness.support.samples import Samples

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 1 << 30
SECONDS = 60
# A process is charged with the memory of whoever started it until it becomes another program,
# and a test worker may hold more than a gigabyte: a small one starts the command and reports it.
_MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[3:], timeout=float(sys.argv[2])).returncode
peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
open(sys.argv[1], "w").write(str(peak_bytes))
sys.exit(code)
"""
Command = tuple[object, ...]
_OUT = ("--latents-out", "out", "--quiet")


def _generate(samples: Samples, *options: object) -> Command:
    return ("generate", "--bundle", samples.bundle, *options, *_OUT)


def _timeline(text: str) -> Callable[[Samples], Command]:
    def command(samples: Samples) -> Command:
        Path("t.yaml").write_text(text)
        return _generate(samples, "--timeline", "t.yaml", "--frames", 3)

    return command


def _manifest(data: bytes) -> Callable[[Samples], Command]:
    def command(_: Samples) -> Command:
        Path("b").mkdir()
        Path("b/manifest.json").write_bytes(data)
        return ("inspect", "b")

    return command


def _archive(size: int) -> Callable[[Samples], Command]:
    def command(_: Samples) -> Command:
        Path("a.tar.zst").write_bytes(tars.packed([{"name": "manifest.json", "size": size}]))
        return ("unpack", "a.tar.zst", "--out", "out")

    return command


def _pipe(*before: object) -> Callable[[Samples], Command]:
    def command(samples: Samples) -> Command:
        os.mkfifo("pipe.yaml")
        return (*(samples.bundle if part is ... else part for part in before), "pipe.yaml")

    return command


_REFUSED = "export", "--config", "tiny", "--transformer", "none.pt", "--out", "out", "--set"
CASES: dict[str, Callable[[Samples], Command]] = {
    "timeline: aliases": _timeline(YAML_DOCUMENTS["aliases that multiply"]),
    "timeline: merges": _timeline(YAML_DOCUMENTS["merges that multiply"]),
    "timeline: nodes": _timeline(YAML_DOCUMENTS["many nodes"]),
    "timeline: depth": _timeline(YAML_VALUES["deep list"]),
    "timeline: a date": _timeline("0: 2024-13-45\n"),
    "timeline: a tag": _timeline("0: !!bool x\n"),
    "manifest: depth": _manifest(JSON_DOCUMENTS["deep lists"]),
    "manifest: objects": _manifest(JSON_DOCUMENTS["deep objects"]),
    "manifest: digits": _manifest(JSON_DOCUMENTS["5000 digits"]),
    "manifest: values": _manifest(JSON_DOCUMENTS["many values"]),
    "manifest: no UTF-8": _manifest(JSON_DOCUMENTS["no UTF-8"]),
    "archive: -1 bytes": _archive(-1),
    "archive: 2**60 bytes": _archive(2**60),
    "archive: a pipe": lambda samples: (*_pipe("unpack")(samples), "--out", "out"),
    "checkpoint: a pipe": _pipe(*_REFUSED[:3], "--out", "out", "--transformer"),
    "timeline: a pipe": _pipe("generate", "--bundle", ..., *_OUT, "--frames", 3, "--timeline"),
    "checkpoint: a device": lambda _: (*_REFUSED[:3], "--out", "o", "--vae", "/dev/zero"),
    "set: digits": lambda _: (*_REFUSED, f"fps={'9' * 5000}"),
    "set: layers": lambda _: (*_REFUSED, "transformer.layers=1000000000000"),
    "set: window": lambda _: (*_REFUSED, "rollout.window_frames=100000000000000000"),
    "set: aliases": lambda _: (*_REFUSED, f"name={YAML_VALUES['itself']}"),
    "vocabulary": lambda _: (
        *("export", "--config", "tiny", "--random-weights", 1, "--out", "out"),
        *("--set", "text_encoder.vocab=1"),
    ),
    "frames": lambda samples: _generate(samples, "--prompt", "a", "--frames", 10**18),
    "seconds": lambda samples: _generate(samples, "--prompt", "a", "--seconds", "1e300"),
    "blocks": lambda samples: ("bench", "--bundle", samples.bundle, "--blocks", 10**24),
    "tolerance": lambda samples: (
        *("verify", samples.bundle, "--against", samples.bundle, "--tolerance", "nan"),
    ),
    "address": lambda _: ("pull", "http://[::1/x", "--out", "out"),
    "markup": lambda _: ("inspect", "[/b]"),
    "no UTF-8": lambda _: ("inspect", os.fsdecode(b"\xff\xfe")),
    "a long name": lambda _: ("inspect", "n" * 5000),
    "a state that is none": lambda samples: _generate(samples, "--resume", samples.replay),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", CASES)
def test_processes(case: str, samples: Samples, here: Path) -> None:
    arguments = [str(part) for part in CASES[case](samples)]
    command = [sys.executable, str(ROOT / "cli.py"), *arguments]
    process = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _MEASURED, str(here / "peak"), str(SECONDS), *command],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert process.returncode in (1, 2), process.stdout + process.stderr
    assert not complaint_faults(process.stderr)
    # Torch alone takes some hundred megabytes.
    assert int((here / "peak").read_text()) < MOST_BYTES
    assert not Path("out").exists()
