"""A build that ends early leaves nothing half-made, and the next one finishes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.trt.monitor import Phases, run_watched

ROOT = Path(__file__).resolve().parents[3]


@contextmanager
def running_build(source: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    pytest.importorskip(
        "tensorrt_rtx_bindings",
        reason="TensorRT-RTX is not installed: pip install 'longlive-trt[tensorrt-rtx]'",
    )
    options = ["--engine", "tensorrt-rtx", "--gpu", "sm89", "--precision", "fp16"]
    command = [sys.executable, "cli.py", "build", "--onnx", source, "--out", out, *options]
    arguments = [str(part) for part in command]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(arguments, cwd=ROOT, text=True, **pipes) as process:
        yield process


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stderr is not None
    for said in process.stderr:
        if said.startswith(line):
            return
    pytest.fail(f"the build ended without {line!r}")


@pytest.mark.exhaustive
def test_kill_during_a_build_leaves_no_bundle_and_the_next_run_finishes(
    tiny_export: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    with running_build(tiny_export, out) as killed:
        wait_for(killed, "building vae_first")
        killed.kill()
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock", ".partial"]
    with running_build(tiny_export, out) as again:
        _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert list(tmp_path.iterdir()) == [out]
    assert set(open_bundle(out).manifest.graphs) >= {"step", "vae_next"}


def test_ctrl_c_stops_the_compiler_and_cleans_up(tiny_export: Path, tmp_path: Path) -> None:
    with running_build(tiny_export, tmp_path / "bundle") as process:
        wait_for(process, "building step")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "interrupted"
    assert not list(tmp_path.iterdir())


def test_interrupted_work_is_told_to_stop_and_waited_for() -> None:
    phases, ended = Phases(), threading.Event()

    def work() -> None:
        while not phases.is_cancelled:
            time.sleep(0.001)
        ended.set()

    def interrupt(_done: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_watched(work, phases, interrupt)
    assert ended.is_set()


def test_a_failure_of_the_work_is_raised_here() -> None:
    def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_watched(work, Phases(), lambda _done: None)


def test_progress_counts_nested_phases() -> None:
    phases = Phases()
    assert phases.done == 0
    phases.start("build", 4)
    phases.step("build", 0)
    phases.start("tactics", 10)
    phases.step("tactics", 4)
    assert phases.done == pytest.approx(1 / 4 + 0.5 / 4)
    phases.finish("tactics")
    phases.step("build", 1)
    assert phases.done == pytest.approx(2 / 4)
    phases.finish("build")
    assert phases.done == 0
