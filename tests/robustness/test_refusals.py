"""What does nothing, or could never be used, is refused before any work."""

import json
import shutil
from pathlib import Path

import pytest

from tests.robustness.support.places import run, snapshot, write

pytestmark = pytest.mark.exhaustive

EXPORT = ("export", "--config", "tiny", "--random-weights", "1", "--out", "e", "--no-check")
UNIGRAM = {"type": "Unigram", "unk_id": 2, "byte_fallback": False}
SPECIAL = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0]]


def tokenizer_of(pieces: list[list[object]]) -> str:
    return json.dumps({"version": "1.0", "model": {**UNIGRAM, "vocab": pieces}})


TOKENIZERS = {
    "nothing": None,
    "an empty file": "",
    "a text": "mine",
    "another JSON": "{}",
    "a list": "[]",
    "no model": '{"version": "1.0"}',
    "other special tokens": tokenizer_of([["a", 0.0], ["b", 0.0], ["c", 0.0]]),
    "too many tokens": tokenizer_of([*SPECIAL, *([f"t{n}", 0.0] for n in range(5000))]),
}


@pytest.mark.parametrize("case", TOKENIZERS)
@pytest.mark.parametrize("by_folder", [True, False])
def test_a_tokenizer_that_cannot_be_used(
    case: str,
    by_folder: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t").mkdir()
    text = TOKENIZERS[case]
    if text is not None:
        write(Path("t/tokenizer.json"), text)
    before = snapshot(tmp_path)
    path = "t" if by_folder else "t/tokenizer.json"
    assert run(*EXPORT, "--tokenizer", path) == 2
    assert "tokenizer" in capsys.readouterr().err.splitlines()[-1]
    assert snapshot(tmp_path) == before


def test_the_vaes_exceptions_without_its_precision(
    tmp_path: Path,
    mini_bundle: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("--precision", "fp8", "--vae-exclude", "up.*", "--out", "q")
    assert run("calibrate", "--onnx", "nothing", *arguments) == 2
    assert "--vae-precision" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_states_of_a_server_do_not_go_into_a_bundle(
    tmp_path: Path, video_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(video_bundle, tmp_path / "b")
    before = snapshot(tmp_path)
    for data in ("b", "b/states"):
        assert run("serve", "--bundle", tmp_path / "b", "--data", tmp_path / data) == 2
        assert "inside a bundle" in capsys.readouterr().err
    assert snapshot(tmp_path) == before
