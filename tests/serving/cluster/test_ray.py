"""A fleet under a real Ray, as ``benchmarks/fleet/trial.py`` tries it: 4 hosts of 2 slots."""

import contextvars
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    pytest.importorskip("ray", reason="scripts/fleet_tools.sh installs it")
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


def trial_of(folder: Path, *arguments: str) -> Any:
    out = folder / "trial.json"
    process = run("-m", "benchmarks.fleet.trial", *arguments, "--out", out)
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Any:
    names = ("place", "drain", "kill", "redeploy", "videos")
    return trial_of(tmp_path_factory.mktemp("ray"), "--only", *names)


@pytest.fixture(scope="module")
def tried_with_demo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    options = ("--bundle", "demo", "--hosts", "2", "--blocks", "5", "--only", "drain", "kill")
    return trial_of(tmp_path_factory.mktemp("demo"), *options)


def test_sessions_are_placed_by_free_slots(tried: Any) -> None:
    assert tried["place"]["sessions_by_host"] == [2, 2, 2, 2]
    assert tried["place"]["ninth_waits"] == {"positions": [1], "has_begun": False}


def test_calls_of_one_conversation_do_not_share_its_id() -> None:
    """Ray's router keeps one waiting request for each id, and forgets the others."""
    context = pytest.importorskip("ray.serve.context", reason="scripts/fleet_tools.sh installs it")
    from longlive_trt.serving.cluster.on_ray.hosts import _call

    class Method:
        @staticmethod
        def remote() -> str:
            return str(context._get_serve_request_context()._internal_request_id)

    def converse() -> tuple[str, str]:
        context._serve_request_context.set(context._RequestContext(_internal_request_id="socket"))
        return Method.remote(), _call(Method)

    assert contextvars.copy_context().run(converse) == ("socket", "")


@pytest.mark.parametrize("trial", ["drain", "kill"])
def test_sessions_move_with_the_same_bits(tried: Any, trial: str) -> None:
    assert tried[trial]["sessions_on_the_host"] == 2
    assert tried[trial]["pictures_lost"] == [0, 0]
    assert [one["state_is_equal"] for one in tried[trial]["compared_with_one_host"]] == [True, True]


@pytest.mark.parametrize("trial", ["drain", "kill"])
def test_videos_of_a_model_move_with_the_same_bits(tried_with_demo: Any, trial: str) -> None:
    """Keys, values, latents and the decoder's past, of a video that one host made alone."""
    found = tried_with_demo[trial]
    assert found["sessions_on_the_host"] >= 1 and sum(found["pictures_lost"]) == 0
    for one in found["compared_with_one_host"]:
        assert one["state_is_equal"] and one["blocks"] >= 10 and one["prompts"] == 2


def test_a_whole_video_is_the_same_file_whatever_becomes_of_its_host(tried: Any) -> None:
    found = tried["videos"]
    assert found["same_file"] == {"drain": True, "kill": True}
    # A painter may be done before its host is empty; in one process that is tried as well.
    assert "The host that made it went away" in found["note"]["kill"]


def test_a_new_version_loses_no_session(tried: Any) -> None:
    found = tried["redeploy"]
    assert found["sessions_after"] == found["sessions_before"] == 8
    assert found["done_early"] == found["pictures_lost"] == 0 and found["faults"] == []


@pytest.mark.parametrize(
    ("number", "status", "is_waited_for"),
    [(signal.SIGTERM, 0, True), (signal.SIGINT, 130, False)],
)
def test_a_signal_ends_it_cleanly(
    tmp_path: Path, number: signal.Signals, status: int, is_waited_for: bool
) -> None:
    """While it serves, and while hosts start."""
    pytest.importorskip("ray", reason="scripts/fleet_tools.sh installs it")
    arguments = ("serve", "--cluster", "ray", "--store", str(tmp_path / "states"), "--port", "0")
    process = subprocess.Popen(
        [sys.executable, "-m", "longlive_trt", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    if is_waited_for:
        assert "Open http://localhost:" in process.stdout.readline()
    else:
        while not (tmp_path / "states" / "probes").is_dir():
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(15)
    inside = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == status, errors
    assert "SIGTERM received" not in errors and "Traceback" not in errors
    # Ray's agents look every now and then whether their Ray is still there.
    _, alive = psutil.wait_procs(inside, timeout=120)
    assert alive == []


def test_a_host_that_cannot_start_says_why_in_a_line(tmp_path: Path) -> None:
    """The bundle is there when the command looks, and wants a GPU that its host has not."""
    arguments = ("--cluster", "ray", "--store", tmp_path / "states", "--port", "0")
    process = run("-m", "longlive_trt", "serve", *arguments, "--device", "cuda",
                  "--gpus-per-host", "0")  # fmt: skip
    assert process.returncode == 1, process.stderr
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in process.stderr
    assert "CUDA" in errors[0] or "GPU" in errors[0]
