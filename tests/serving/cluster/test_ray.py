"""A fleet under a real Ray, as ``benchmarks/fleet/trial.py`` tries it: 4 hosts of 2 slots."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("ray") / "trial.json"
    names = ("place", "drain", "kill", "redeploy")
    process = run("-m", "benchmarks.fleet.trial", "--only", *names, "--out", out)
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(out.read_text())


def test_sessions_are_placed_by_free_slots(tried: Any) -> None:
    assert tried["place"]["sessions_by_host"] == [2, 2, 2, 2]
    assert tried["place"]["ninth_waits"] == {"positions": [1], "has_begun": False}


@pytest.mark.parametrize("trial", ["drain", "kill"])
def test_sessions_move_with_the_same_bits(tried: Any, trial: str) -> None:
    assert tried[trial]["sessions_on_the_host"] == 2
    assert tried[trial]["pictures_lost"] == [0, 0]
    assert [one["state_is_equal"] for one in tried[trial]["compared_with_one_host"]] == [True, True]


def test_a_new_version_loses_no_session(tried: Any) -> None:
    found = tried["redeploy"]
    assert found["sessions_after"] == found["sessions_before"] == 8
    assert found["done_early"] == found["pictures_lost"] == 0 and found["faults"] == []


def test_a_host_that_cannot_start_says_why_in_a_line(tmp_path: Path) -> None:
    """The bundle is there when the command looks, and wants a GPU that its host has not."""
    arguments = ("--cluster", "ray", "--store", tmp_path / "states", "--port", "0")
    process = run("-m", "longlive_trt", "serve", *arguments, "--device", "cuda",
                  "--gpus-per-host", "0")  # fmt: skip
    assert process.returncode == 1, process.stderr
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in process.stderr
    assert "CUDA" in errors[0] or "GPU" in errors[0]
