"""``generate`` with bundles that are not whole."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.running import OUT, PROMPT, changed_copy

Refused = Callable[..., str]

pytestmark = pytest.mark.usefixtures("in_empty_folder")


def test_a_missing_file_of_a_bundle_is_named(video_bundle: Path, refused: Refused) -> None:
    names = json.loads((video_bundle / "manifest.json").read_text())["files"]
    assert {"step.onnx", "tokenizer.json", "vae_next.onnx"} <= names.keys()
    bundle = changed_copy(video_bundle)
    for name in names:
        kept = (bundle / name).rename("kept")
        words = (f"{name}: missing",)
        refused("generate", "--bundle", bundle, *PROMPT, *OUT, words=words, code=1)
        kept.rename(bundle / name)


def test_a_truncated_file_of_a_bundle_is_named(video_bundle: Path, refused: Refused) -> None:
    bundle = changed_copy(video_bundle)
    size = (bundle / "step.onnx").stat().st_size
    with (bundle / "step.onnx").open("r+b") as file:
        file.truncate(size - 1)
    words = ("step.onnx", f"{size - 1} bytes, expected {size}")
    refused("generate", "--bundle", bundle, *PROMPT, *OUT, words=words, code=1)


def test_an_altered_file_of_a_bundle_is_named_with_both_hashes(
    video_bundle: Path, refused: Refused
) -> None:
    bundle = changed_copy(video_bundle)
    entries = json.loads((bundle / "manifest.json").read_text())["files"]
    path = max(bundle.iterdir(), key=lambda path: path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    words = (path.name, "altered", entries[path.name]["sha256"])
    error = refused("generate", "--bundle", bundle, *PROMPT, *OUT, words=words, code=1)
    assert error.count("sha256") == 1 and "expected" in error


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"format": 1', '"format": 2', ("format 2", "update longlive-trt")),
        ('"format": 1', '"format": 0', ("format 0", "build the bundle again")),
        ('"fps": 16.0', '"fps": 24.0', ("manifest.json", "altered")),
        ("{", "", ("manifest.json", "not a readable manifest")),
    ],
)
def test_a_changed_manifest_is_refused(
    video_bundle: Path, refused: Refused, old: str, new: str, words: tuple[str, ...]
) -> None:
    bundle = changed_copy(video_bundle)
    text = (bundle / "manifest.json").read_text()
    assert old in text
    (bundle / "manifest.json").write_text(text.replace(old, new, 1))
    refused("generate", "--bundle", bundle, *PROMPT, *OUT, words=words, code=1)


def test_what_is_no_bundle_is_refused(refused: Refused) -> None:
    Path("empty").mkdir()
    for folder, word in (("empty", "no manifest.json"), ("nowhere", "no such folder")):
        words = (folder, word, "longlive-trt build")
        refused("generate", "--bundle", folder, *PROMPT, *OUT, words=words)
