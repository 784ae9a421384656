"""The script for the first person with an H100, as far as it goes without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "h100_acceptance.sh"


def run(*arguments: str | Path, tool: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "LONGLIVE_TRT": tool or f"{sys.executable} {ROOT / 'cli.py'}",
        "PYTHON": sys.executable,
    }
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.exhaustive
def test_the_rehearsal_compiles_and_reports(tiny_export: Path, tmp_path: Path) -> None:
    pytest.importorskip(
        "tensorrt_rtx_bindings",
        reason="TensorRT-RTX is not installed: pip install 'longlive-trt[tensorrt-rtx]'",
    )
    options = ["--engine", "tensorrt-rtx", "--gpu", "sm89", "--precisions", "fp16", "--dry-run"]
    done = run(tmp_path / "out", "--onnx", tiny_export, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["dry_run"] is True
    outcomes = {step["step"]: step["outcome"] for step in report["steps"]}
    assert outcomes == {
        "doctor": "done",
        "reference": "done",
        "build-fp16": "done",
        "files-fp16": "done",
        "verify-fp16": "skipped",
        "bench-fp16": "skipped",
    }
    step = report["builds"]["build-fp16"]["graphs"][0]
    assert step["attention"]["fused"] == step["attention"]["expected"] == 12


def test_a_failed_step_is_in_the_report_and_in_the_exit_code(
    tiny_export: Path, tmp_path: Path
) -> None:
    done = run(tmp_path / "out", "--onnx", tiny_export, "--precisions", "fp16", tool="false")
    assert done.returncode == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {step["outcome"] for step in report["steps"]} == {"exit 1"}


@pytest.mark.parametrize(
    "arguments", [[], ["--gpu"], ["out", "--engine", "tvm"], ["out", "--what"], ["a", "b"]]
)
def test_wrong_arguments_are_answered_with_the_usage(arguments: list[str], tmp_path: Path) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "--engine tensorrt|tensorrt-rtx" in done.stderr
