"""``export`` and ``build`` as a user runs them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longlive_trt.cli import main
from longlive_trt.files import sha256_file
from tests.commands.running import GOLDEN, changed_copy, succeeds

Refused = Callable[..., str]

pytestmark = pytest.mark.usefixtures("in_empty_folder")

# ---- build -----------------------------------------------------------------------------------


def test_building_again_changes_nothing_and_says_so(golden_export: Path, capsys: Any) -> None:
    build = ("build", "--onnx", golden_export, "--out", "bundle")
    succeeds(*build)
    assert "built bundle" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in Path("bundle").iterdir()}
    succeeds(*build)
    assert "nothing has changed" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in Path("bundle").iterdir()}
    succeeds(*build, "--force")
    assert "built bundle" in capsys.readouterr().out
    assert not list(Path().glob(".*"))


def edited_record(exported: Path, **changes: Any) -> Path:
    folder = changed_copy(exported, "edited-export")
    values = json.loads((folder / "export.json").read_text())
    values.update(changes)
    (folder / "export.json").write_text(json.dumps(values))
    return folder


def test_any_change_builds_again(golden_export: Path, capsys: Any) -> None:
    build = ("build", "--onnx", golden_export, "--out", "bundle")
    succeeds(*build)
    succeeds(*build, "--precision", "fp16")
    # The configuration decides what is made, even where the graphs stay the same.
    config = json.loads((golden_export / "export.json").read_text())["config"]
    config["rollout"]["window_frames"] = 9
    other = edited_record(golden_export, config=config)
    succeeds("build", "--onnx", other, "--out", "bundle", "--precision", "fp16")
    output = capsys.readouterr().out
    assert output.count("built bundle") == 3
    manifest = json.loads(Path("bundle/manifest.json").read_text())
    assert manifest["config"]["rollout"]["window_frames"] == 9
    assert manifest["precision"] == "fp16"


def test_other_weights_of_the_same_graphs_build_again(golden_export: Path, capsys: Any) -> None:
    succeeds("build", "--onnx", golden_export, "--out", "bundle")
    other = changed_copy(golden_export, "other-export")
    weights, record = other / "transformer.weights", other / "export.json"
    data = bytearray(weights.read_bytes())
    data[0] ^= 1
    weights.write_bytes(data)
    values = json.loads(record.read_text())
    values["files"][weights.name] = sha256_file(weights)
    record.write_text(json.dumps(values))
    succeeds("build", "--onnx", other, "--out", "bundle")
    assert capsys.readouterr().out.count("built bundle") == 2


def test_a_bundle_that_was_damaged_is_built_again(golden_export: Path, capsys: Any) -> None:
    build = ("build", "--onnx", golden_export, "--out", "bundle")
    succeeds(*build)
    Path("bundle/step.onnx").write_bytes(b"")
    succeeds(*build)
    assert capsys.readouterr().out.count("built bundle") == 2
    assert Path("bundle/step.onnx").stat().st_size > 0


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("", ("not a readable export record",)),
        ("null", ("not a readable export record",)),
        ("[]", ("not a readable export record",)),
        ('"text"', ("not a readable export record",)),
        ('{"format": 1}', ("not a readable export record",)),
        ('{"format": 1, "graphs": []}', ("not a readable export record",)),
        ('{"format": 99}', ("another version",)),
    ],
)
def test_build_refuses_a_broken_record(
    refused: Refused, record: str, words: tuple[str, ...]
) -> None:
    Path("onnx").mkdir()
    Path("onnx/export.json").write_text(record)
    refused("build", "--onnx", "onnx", "--out", "b", words=("onnx/export.json", *words))


def test_build_refuses_files_that_are_not_those_exported(
    golden_export: Path, refused: Refused
) -> None:
    folder = changed_copy(golden_export)
    weights = folder / "transformer.weights"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused("build", "--onnx", folder, "--out", "b", words=("transformer.weights", "altered"))
    weights.unlink()
    refused("build", "--onnx", folder, "--out", "b", words=("transformer.weights", "missing"))


def test_build_refuses(golden_export: Path, refused: Refused, tmp_path: Path) -> None:
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("precious")
    Path("file").write_text("precious")
    for onnx, out, words in (
        ("nowhere", "b", ("nowhere", "no such folder")),
        ("mine", "b", ("mine", "no export.json")),
        (golden_export, "mine", ("mine", "not empty and not a bundle")),
        (golden_export, "file", ("file", "in the way")),
    ):
        refused("build", "--onnx", onnx, "--out", out, words=words)
    Path("here").mkdir()
    os.chdir("here")
    refused("build", "--onnx", golden_export, "--out", ".", words=("the folder you are in",))
    os.chdir(tmp_path)


def test_a_failed_build_keeps_the_old_bundle(
    golden_export: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeeds("build", "--onnx", golden_export, "--out", "bundle")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device", "bundle")

    monkeypatch.setattr("longlive_trt.engines.build.bundle_entries", full_disk)
    other = ("--out", "bundle", "--precision", "fp16")
    refused("build", "--onnx", golden_export, *other, words=("No space", "free some"), code=1)


# ---- export ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--config", "tiny"), ("nothing to export", "--random-weights")),
        (("--config", "nothing", "--random-weights", "1"), ("nothing", "tiny")),
        (("--config", "tiny", "--random-weights", "1", "--vae", "v.pth"), ("without checkpoints",)),
        (("--config", "tiny", "--lora", "l.pt"), ("--lora", "--transformer")),
        (("--config", "tiny", "--transformer", "none.pt"), ("none.pt",)),
        (
            ("--config", "tiny", "--random-weights", "1", "--set", "latent.height=15"),
            ("latent.height", "multiple of the patch size (2)"),
        ),
        (
            ("--config", "tiny", "--random-weights", "1", "--set", "transformer.heds=2"),
            ("transformer.heds", "transformer.heads"),
        ),
        (
            ("--config", "tiny", "--random-weights", "1", "--tokenizer", "nowhere"),
            ("nowhere", "--tokenizer"),
        ),
    ],
)
def test_export_refuses(
    refused: Refused, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused("export", *arguments, "--out", "onnx", words=words)


def test_export_replaces_no_folder_of_somebody_else(refused: Refused) -> None:
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("precious")
    export = ("export", "--config", "tiny", "--random-weights", 1)
    refused(*export, "--out", "mine", words=("mine", "not empty and not an export"))
    refused(*export, "--out", "mine/letter.txt", words=("letter.txt", "in the way"))


def test_export_names_tensors_that_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = GOLDEN / "transformer.safetensors"
    sizes = ("--set", "transformer.text_len=16", "--set", "transformer.ffn_dim=640")
    export = ("export", "--config", "tiny", "--transformer", str(checkpoint), "--out", "onnx")
    assert main([*export, *sizes]) == 1
    error = capsys.readouterr().err
    for part in ("blocks.0.ffn.0.weight: expected [640, 256], found [512, 256]", "check --config"):
        assert part in error
    assert not list(Path().iterdir())
