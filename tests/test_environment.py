"""The set-up script, with a pretended interpreter: which torch it asks for, in which order."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "environment.sh"
PINS = (ROOT / "constraints.txt").read_text().splitlines()
(TORCH,) = (line for line in PINS if line.startswith("torch=="))

# Fails at what FAILING names, and for the question whether the right torch is there already.
PYTHON = """#!/bin/sh
[ "$1" = "-c" ] && exit $UNSUPPORTED
[ "$1" = "-" ] && exit $NO_TORCH
[ "$*" = "-m pip --version" ] && exit 0
echo "python $*" >> "$LOG"
for words in $FAILING; do case "$*" in *"$words"*) exit 1;; esac; done
exit 0
"""
UV = """#!/bin/sh
echo "uv $*" >> "$LOG"
case "$FAILING" in *cpu-index*) exit 1;; esac
exit 0
"""


class Environment:
    def __init__(self, folder: Path) -> None:
        self.venv = folder / "venv"
        self.log = folder / "log"
        for name, script in (("python", PYTHON), ("uv", UV)):
            program = self.venv / "bin" / name
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text(script)
            program.chmod(0o755)

    def run(self, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        defaults = {"LOG": str(self.log), "FAILING": "", "NO_TORCH": "1", "UNSUPPORTED": "0"}
        return subprocess.run(
            ["sh", SCRIPT, self.venv, *arguments],
            env={**os.environ, **defaults, **settings},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def requests(self) -> list[str]:
        """The program and the last word of every installation, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [f"{line.split()[0]} {line.split()[-1]}" for line in lines]

    def stamps(self) -> set[str]:
        return {path.name for path in self.venv.glob(".ready*")}


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


FIRST, LAST = "python setuptools", "python .[cpu,export,quantize,tensorrt-rtx,dev]"
LAST_ON_GPU = LAST.replace("cpu", "gpu")
CPU = f"python {TORCH}+cpu"


@pytest.mark.parametrize(
    ("failing", "asked"),
    [
        ("", [CPU]),
        ("+cpu", [CPU, "python uv", f"uv {TORCH}"]),
        ("+cpu cpu-index", [CPU, "python uv", f"uv {TORCH}", f"python {TORCH}"]),
    ],
)
def test_a_cpu_build_is_preferred(failing: str, asked: list[str], environment: Environment) -> None:
    process = environment.run(FAILING=failing)
    assert process.returncode == 0, process.stderr
    assert environment.requests() == [FIRST, *asked, LAST]
    assert ("several gigabytes" in process.stdout) == ("cpu-index" in failing)
    assert environment.stamps() == {".ready"}


def test_cuda_on_request(environment: Environment) -> None:
    assert environment.run("cuda").returncode == 0
    assert environment.requests() == [FIRST, "python torch", f"python {TORCH}", LAST_ON_GPU]
    assert environment.stamps() == {".ready", ".ready-cuda"}


def test_a_torch_that_fits_stays(environment: Environment) -> None:
    assert environment.run(NO_TORCH="0").returncode == 0
    assert environment.requests() == [FIRST, LAST]


@pytest.mark.parametrize(
    ("build", "installed", "expected"),
    [
        ("", "onnxruntime", [LAST]),
        ("", "onnxruntime_gpu", [LAST_ON_GPU]),
        ("cpu", "onnxruntime_gpu", ["python onnxruntime-gpu", LAST]),
        ("cuda", "onnxruntime", ["python onnxruntime-gpu", LAST_ON_GPU]),
        ("cuda", "onnxruntime_gpu", [LAST_ON_GPU]),
    ],
)
def test_an_environment_has_one_engine(
    build: str, installed: str, expected: list[str], environment: Environment
) -> None:
    packages = environment.venv / "lib" / "python3.12" / "site-packages"
    (packages / f"{installed}-1.31.1.dist-info").mkdir(parents=True)
    assert environment.run(*filter(None, [build]), NO_TORCH="0").returncode == 0
    assert environment.requests() == [FIRST, *expected]


def test_a_failure_leaves_no_stamp(environment: Environment) -> None:
    assert environment.run().returncode == 0
    process = environment.run(FAILING="torch== cpu-index")
    assert process.returncode == 1
    assert "environment: error: torch" in process.stderr
    assert environment.stamps() == set()


def test_unknown_builds_are_refused(environment: Environment) -> None:
    process = environment.run("rocm")
    assert process.returncode == 1
    assert "TORCH=rocm is neither cpu nor cuda" in process.stderr
    assert environment.requests() == []


def test_an_environment_of_another_python_is_refused(environment: Environment) -> None:
    process = environment.run(UNSUPPORTED="1")
    assert process.returncode == 1
    assert "remove it and try again" in process.stderr


def test_a_machine_without_a_supported_python(tmp_path: Path) -> None:
    process = subprocess.run(
        ["sh", SCRIPT, tmp_path / "venv"],
        env={**os.environ, "PYTHON": "false"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 1
    assert "no Python 3.11, 3.12 or 3.13 found (tried: false)" in process.stderr
    assert not (tmp_path / "venv").exists()
