"""``generate`` in a process of its own: Ctrl-C, and a bare checkout."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from tests.commands.running import ONE_BLOCK, ROOT, generate_latents

pytestmark = pytest.mark.usefixtures("in_empty_folder")


def start(*arguments: object, cwd: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_blocks(process: "subprocess.Popen[str]", count: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        count -= json.loads(line)["event"] == "block"
        if count == 0:
            return
    pytest.fail(process.stderr.read() if process.stderr else "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_all_that_was_made(
    video_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    arguments = (
        "--prompt",
        "a",
        "--seconds",
        "inf",
        "--out",
        "v.mp4",
        "--save-state",
        "s",
        "--json",
    )
    process = start("generate", "--bundle", video_bundle, *arguments, cwd=tmp_path)
    wait_for_blocks(process, 2)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    finished = json.loads(output.splitlines()[-1])
    assert finished["interrupted"] is True
    with av.open(str(tmp_path / "v.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == finished["video_frames"]
    record = json.loads((tmp_path / "v.mp4.json").read_text())
    assert record["video_frames"] == finished["video_frames"]
    assert {path.name for path in tmp_path.iterdir()} == {"v.mp4", "v.mp4.json", "s"}
    latents = 3 * finished["blocks"]
    assert finished["video_frames"] == 1 + 4 * (latents - 1)
    resumed = generate_latents(video_bundle, "--resume", tmp_path / "s", *ONE_BLOCK)
    whole = generate_latents(video_bundle, "--prompt", "a", "--frames", latents + 3)
    assert np.array_equal(resumed, whole[:, latents:])


def test_two_interrupts_stop_at_once_and_keep_a_video(video_bundle: Path, tmp_path: Path) -> None:
    arguments = ("--prompt", "a", "--seconds", "inf", "--out", "v.mp4", "--json")
    process = start("generate", "--bundle", video_bundle, *arguments, cwd=tmp_path)
    wait_for_blocks(process, 1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    with av.open(str(tmp_path / "v.mp4")) as video:
        frames = sum(1 for _ in video.decode(video=0))
    assert frames >= 9 and (frames - 9) % 12 == 0


def test_the_command_line_of_a_bare_checkout(video_bundle: Path, tmp_path: Path) -> None:
    arguments = ("--prompt", "a", *ONE_BLOCK, "--out", "v.gif")
    process = start("generate", "--bundle", video_bundle, *arguments, cwd=tmp_path)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (0, "")
    assert "made 1 block, 9 video frames" in errors
    assert (tmp_path / "v.gif").stat().st_size > 0
