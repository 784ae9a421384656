"""``calibrate``, and ``build`` of a narrow precision: one message for what is wrong."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from longlive_trt.calibration import folders, prompts
from longlive_trt.cli import main
from longlive_trt.configs import ModelConfig
from longlive_trt.exports import read_export
from longlive_trt.making import calibrating

Text = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The model is too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def two_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 64 that ship take too long here, and so does a comparison with torch."""
    few = prompts.shipped_prompts()[:2]
    monkeypatch.setattr(calibrating, "shipped_prompts", lambda: few)
    unchecked = partial(folders.write_quantized, check=False)
    monkeypatch.setattr(folders, "write_quantized", unchecked)


def calibrate(source: Path, out: Path, *options: str) -> int:
    arguments = ["calibrate", "--onnx", source, "--precision", "fp8", "--out", out, *options]
    return main([str(argument) for argument in arguments])


def build(source: Path, out: Path, *options: str) -> int:
    return main(["build", "--onnx", str(source), "--out", str(out), *options])


@pytest.mark.exhaustive
def test_a_calibration_is_reused_and_the_graphs_are_the_same(
    small_export: Path, quantized_export: Path, tmp_path: Path, capsys: Text
) -> None:
    scales = quantized_export / "calibration.safetensors"
    out = tmp_path / "out"
    assert calibrate(small_export, out, "--calibration", str(scales), "--no-check") == 0
    assert "quantized" in capsys.readouterr().out
    assert read_export(out).files == read_export(quantized_export).files
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.exhaustive
def test_a_build_calibrates_and_says_so(
    small_export: Path,
    tmp_path: Path,
    capsys: Text,
    two_prompts: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tmp_path / "export"
    source.symlink_to(small_export, target_is_directory=True)
    assert build(source, tmp_path / "bundle", "--precision", "fp8") == 0
    captured = capsys.readouterr()
    said = " ".join(captured.err.split())
    assert "is not quantized and no --calibration is given" in said
    assert "text states are synthetic" in said
    assert ", fp8, onnxruntime" in captured.out
    assert read_export(tmp_path / "export-fp8").quantization is not None
    # The second build finds the quantized export of the first.
    monkeypatch.setattr(folders, "calibrate", None)
    assert build(source, tmp_path / "other", "--precision", "fp8", "--compute", "fp16") == 0
    assert "no --calibration" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "int8"], "quantized to fp8; build it with --precision fp8"),
        (["--precision", "fp16"], "build it with --precision fp8 --compute fp16"),
        (["--precision", "fp8", "--compute", "bf16"], "no bfloat16 arithmetic on a CPU"),
        (["--precision", "fp8", "--calibration", "x"], "quantized already, with its own"),
    ],
)
def test_a_build_of_another_precision_is_refused(
    quantized_export: Path, tmp_path: Path, capsys: Text, options: list[str], message: str
) -> None:
    assert build(quantized_export, tmp_path / "bundle", *options) != 0
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompts", "absent.txt"], "absent.txt: no such file"),
        (["--calibration", "absent"], "absent: no such file"),
        (["--device", "cuda:9"], "torch finds no such device here"),
        (["--smoothquant"], "recipe fp8-smoothquant is unknown"),
        (["--exclude", "nothing*"], "no layer is called nothing*"),
        (["--config", "tiny"], "give --onnx, or --config and checkpoints, and not both"),
    ],
)
def test_what_cannot_be_calibrated_is_one_message(
    small_export: Path, tmp_path: Path, capsys: Text, options: list[str], message: str
) -> None:
    assert calibrate(small_export, tmp_path / "out", *options) != 0
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_calibration_of_another_checkpoint_is_refused(
    golden_export: Path, quantized_export: Path, tmp_path: Path, capsys: Text
) -> None:
    scales = str(quantized_export / "calibration.safetensors")
    assert calibrate(golden_export, tmp_path / "out", "--calibration", scales) != 0
    assert "made for a transformer of another shape than golden-a" in capsys.readouterr().err
    options = ("--precision", "fp8", "--calibration", scales)
    assert build(golden_export, tmp_path / "bundle", *options) != 0
    assert "made for a transformer of another shape" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_quantized_export_is_not_quantized_again(
    quantized_export: Path, tmp_path: Path, capsys: Text
) -> None:
    assert calibrate(quantized_export, tmp_path / "out") != 0
    assert "quantized already (fp8)" in capsys.readouterr().err


def test_the_quantized_export_keeps_what_is_not_quantized(
    small_export: Path, quantized_export: Path, small_config: ModelConfig
) -> None:
    before, after = read_export(small_export), read_export(quantized_export)
    assert after.config == small_config
    assert after.checkpoints == before.checkpoints
    assert after.graphs == before.graphs
    assert after.quantization is not None
    assert (after.quantization.precision, after.precision) == ("fp8", "fp16")
