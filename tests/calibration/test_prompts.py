"""Calibration prompts: those that ship, and what is refused in a file."""

import logging
from pathlib import Path

import pytest

from longlive_trt.calibration.prompts import prompts_sha256, read_prompts, shipped_prompts
from longlive_trt.errors import UsageError


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_sixty_four_different_prompts_ship() -> None:
    prompts = shipped_prompts()
    assert len(prompts) == len(set(prompts)) == 64
    # Varied in length too: 512 tokens are padded from very different counts.
    assert max(map(len, prompts)) > 1.5 * min(map(len, prompts))


def test_comments_and_empty_lines_are_skipped(tmp_path: Path) -> None:
    path = written(tmp_path, "# a comment\n\n  A cat. \r\nUn été à Paris, 雪が降る.\n")
    assert read_prompts(path) == ["A cat.", "Un été à Paris, 雪が降る."]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("A cat.\n\x00\x01\x02\nA dog.\n", "line 2: control characters"),
        ("A cat.\n---- 1234 ----\n", "line 2: no words in '---- 1234 ----'"),
        ("A c\ufffdt.\nA dog.\n", "line 1: characters that were lost"),
        ("ok\n" + "word " * 2000, "line 2: a prompt of 9999 characters"),
        ("!!\nA cat.\n??\n", r"line 1: no words in '!!' \(2 such lines: 1, 3\)"),
        ("", "no prompts inside"),
        ("# only a comment\n", "no prompts inside"),
        (b"\xff\xfe\x00junk", "not a UTF-8 text file"),
    ],
)
def test_what_is_no_prompt_is_refused_by_line(
    tmp_path: Path, text: str | bytes, named: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError, match=named) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file; give a text file with one prompt a line"):
        read_prompts(tmp_path / "absent.txt")


def test_a_single_prompt_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, "A cat.\n")
    with caplog.at_level(logging.WARNING):
        assert read_prompts(path) == ["A cat."]
    assert "one prompt only" in caplog.text


def test_the_hash_knows_order_and_text() -> None:
    assert prompts_sha256(["a", "b"]) != prompts_sha256(["b", "a"])
    assert prompts_sha256(["a", "b"]) != prompts_sha256(["a b"])
