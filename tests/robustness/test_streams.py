"""Terminals that go away, readers that stop, disks that are full behind a stream."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from longlive_trt.cli import main
from longlive_trt.console.printing import shortened

ROOT = Path(__file__).resolve().parents[2]
CLI = (sys.executable, str(ROOT / "cli.py"))


def in_shell(
    redirections: str, *arguments: object, cwd: Path
) -> "subprocess.CompletedProcess[bytes]":
    script = f'exec "$@" {redirections}'
    command = ["/bin/sh", "-c", script, "sh", *CLI, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, timeout=120, check=False)


@pytest.mark.exhaustive
@pytest.mark.parametrize("redirections", ["2>&-", ">&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_build_ends_well_whatever_stderr_is(
    redirections: str, mini_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    export = mini_bundle("relative").with_name("mini-relative-export")
    arguments = ("build", "--onnx", export, "--out", "b")
    assert in_shell(redirections, *arguments, cwd=tmp_path).returncode == 0
    assert main(["verify", str(tmp_path / "b")]) == 0
    assert main(["pack", str(tmp_path / "b"), "--out", str(tmp_path / "a.tar.zst")]) == 0
    assert in_shell(redirections, "inspect", tmp_path / "nothing", cwd=tmp_path).returncode == 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("command", ["build", "pack", "unpack", "push"])
def test_the_reader_of_stderr_goes_away(
    command: str, mini_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle = mini_bundle("relative")
    export, archive = bundle.with_name("mini-relative-export"), tmp_path / "a.tar.zst"
    assert main(["pack", str(bundle), "--out", str(archive)]) == 0
    arguments: dict[str, tuple[object, ...]] = {
        "build": ("--onnx", export, "--out", "out"),
        "pack": (bundle, "--out", "out"),
        "unpack": (archive, "--out", "out"),
        "push": (bundle, "out"),
    }
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = subprocess.run(
        [*CLI, command, *map(str, arguments[command])],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=write_end, timeout=120, check=False,
    )  # fmt: skip
    os.close(write_end)
    assert process.returncode == 0
    assert (tmp_path / "out").exists()


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_terminal_that_goes_away_keeps_the_video(
    number: signal.Signals, video_bundle: Path, tmp_path: Path
) -> None:
    arguments = ("--prompt", "a", "--seconds", "inf", "--out", "v.mp4")
    # Signals that are ignored, as under nohup, are inherited.
    before = signal.signal(number, signal.SIG_DFL)
    with subprocess.Popen(
        [*CLI, "generate", "--bundle", str(video_bundle), *arguments],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        signal.signal(number, before)
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if line.startswith("block 1"):
                    break
            process.stderr.close()
            process.send_signal(number)
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.mp4", "v.mp4.json"]


@pytest.mark.exhaustive
def test_weights_that_are_cut_end_the_run_with_a_line(video_bundle: Path, tmp_path: Path) -> None:
    script = """
import sys, os, threading, time
from pathlib import Path
from longlive_trt.cli import main
from longlive_trt.runtime.progress import PlainProgress
import numpy as np
mapped = np.memmap(sys.argv[1], np.uint8, "r")
def cut(*_):
    os.truncate(sys.argv[1], 0)
    return int(mapped[0])
PlainProgress.block = cut
arguments = ["--prompt", "a", "--frames", "9", "--out", "v.mp4"]
sys.exit(main(["generate", "--bundle", sys.argv[2], *arguments]))
"""
    (tmp_path / "weights").write_bytes(bytes(1 << 16))
    process = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "weights"), str(video_bundle)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith("error: a file that is being read was cut")
    assert not (tmp_path / "v.mp4").exists()


def test_full_devices_behind_streams_are_no_traceback(tmp_path: Path) -> None:
    process = in_shell("2>/dev/full", "inspect", "nothing", cwd=tmp_path)
    assert (process.returncode, process.stdout) == (2, b"")
    process = in_shell(">/dev/full", "--help", cwd=tmp_path)
    assert process.returncode == 1
    assert process.stderr.splitlines() == [
        b"error: No space left on device; free some space or choose another disk"
    ]


LONG = "x" * 5000
SPACED = "word " * 1000


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", LONG),
        ("inspect", SPACED),
        ("generate", "--bundle", SPACED, "--out", "v.mp4"),
        ("generate", "--bundle", ".", "--out", f"{LONG}.avi"),
        ("generate", "--bundle", ".", "--out", "v.mp4", "--seconds", SPACED),
        ("generate", "--bundle", ".", "--out", "v.mp4", "--prompt-at", SPACED, "a"),
        ("build", "--onnx", LONG, "--out", "b"),
        ("build", "--onnx", ".", "--out", "b", "--precision", LONG),
        ("export", "--config", SPACED, "--out", "o"),
        ("export", "--config", "tiny", "--out", "o", "--set", f"name={SPACED}", "--set", LONG),
        ("pull", LONG, "--out", "o"),
        ("push", SPACED, "o"),
        (LONG,),
        ("inspect", f"--{LONG}"),
    ],
)
def test_messages_quote_200_characters(
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(list(arguments)) in (1, 2)
    said = capsys.readouterr().err
    assert len(said) < 1000
    assert "x" * 150 not in said
    assert "word " * 35 not in said
    assert list(tmp_path.iterdir()) == []


def test_what_is_short_is_told_whole() -> None:
    message = "a 'name' of " + "several short words " * 20 + "\nand more lines"
    assert shortened(message) == message
    cut = shortened(f"key {LONG!r}: allowed: a, b, c")
    assert cut.startswith("key 'xxx")
    assert cut.endswith("xxx': allowed: a, b, c")
    assert cut.count("x") < 200
    assert "[...]" in cut
