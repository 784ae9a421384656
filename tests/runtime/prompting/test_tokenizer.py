"""Cleaning, and tokenization against Transformers' use of the same file."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from longlive_trt.errors import BundleError, ConfigError
from longlive_trt.export.demo_tokenizer import write_demo_tokenizer
from longlive_trt.runtime.prompting.tokenizer import PromptTokenizer, clean_prompt

PROMPTS = [
    "",
    "   ",
    "a cat",
    "A cat, &quot;walking&quot;\n\n slowly\tbeside the sea.",
    "un caf\u00e9 \u00e0 Z\u00fcrich, \u65e5\u672c\u8a9e \U0001f431",
    "the end </s> and more",
    "<pad> in front",
    "word " * 40,
    "\u65e5" * 50,
]


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("", ""),
        (" \n\t ", ""),
        ("  two   words ", "two words"),
        ("line\r\nbreak\u00a0and\u3000wide", "line break and wide"),
        ("fish &amp; chips", "fish & chips"),
        ("fish &amp;amp; chips", "fish & chips"),
        ("<b> keeps ftfy from unescaping: &amp;amp;amp;", "<b> keeps ftfy from unescaping: &amp;"),
        ("&lt;b&gt;", "<b>"),
        ("a&nbsp;&nbsp;b", "a b"),
        ("schÃ¶n", "schön"),
        ("Keep Case, and: punctuation!", "Keep Case, and: punctuation!"),
        ("half a pair \ud83d", "half a pair \ufffd"),
    ],
)
def test_cleaning(prompt: str, cleaned: str) -> None:
    assert clean_prompt(prompt) == cleaned


def write_byte_tokenizer(folder: Path) -> None:
    write_demo_tokenizer(folder, 300)


def write_piece_tokenizer(folder: Path) -> None:
    """As UMT5's: unigram pieces with a word-boundary mark, and its own padding and truncation."""
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": -9.0, "\u2581": -3.0, "\u2581the": -1.5}
    scores |= {"\u2581cat": -2.0, "\u2581wor": -2.5, "ing": -2.0, "\u2581a": -2.0}
    scores |= dict.fromkeys("abcdefghijklmnopqrstuvwxyzAZ,.日", -4.0)
    tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=2, byte_fallback=False))
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.enable_padding(length=9, pad_id=5)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("text_len", [1, 2, 16, 64])
@pytest.mark.parametrize("write", [write_byte_tokenizer, write_piece_tokenizer])
def test_ids_are_those_of_transformers(
    tmp_path: Path, write: Callable[[Path], None], text_len: int
) -> None:
    transformers = pytest.importorskip("transformers")
    write(tmp_path)
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    oracle = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), **special
    )
    tokenizer = PromptTokenizer.load(tmp_path, text_len)
    for prompt in PROMPTS:
        expected = oracle(
            clean_prompt(prompt), padding="max_length", truncation=True, max_length=text_len
        )
        actual = tokenizer.encode(prompt)
        assert actual.ids.tolist() == expected["input_ids"], prompt
        assert actual.mask.tolist() == expected["attention_mask"], prompt
        assert actual.ids.dtype == actual.mask.dtype == np.int64
        assert actual.tokens == sum(expected["attention_mask"])


@pytest.mark.parametrize("write", [write_byte_tokenizer, write_piece_tokenizer])
def test_a_prompt_is_cut_only_when_too_long(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    needed = PromptTokenizer.load(tmp_path, 100).encode("the cat walks").tokens
    fitting = PromptTokenizer.load(tmp_path, needed).encode("the cat walks")
    assert (fitting.tokens, fitting.truncated_at) == (needed, None)
    cut = PromptTokenizer.load(tmp_path, needed - 1).encode("the  cat walks")
    assert (cut.tokens, cut.truncated_at) == (needed - 1, "the cat walk")
    assert cut.ids[-1] == 1
    assert PromptTokenizer.load(tmp_path, 1).encode("the cat").truncated_at == ""


def test_an_empty_prompt_is_the_end_token(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    prompt = PromptTokenizer.load(tmp_path / "tokenizer.json", 4).encode("")
    assert prompt.ids.tolist() == [1, 0, 0, 0]
    assert prompt.mask.tolist() == [1, 0, 0, 0]
    assert (prompt.tokens, prompt.truncated_at) == (1, None)


def test_demo_tokens_are_bytes(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    tokenizer = PromptTokenizer.load(tmp_path, 32)
    text = "Ab\u00e9\u65e5"
    prompt = tokenizer.encode(text)
    assert prompt.ids[: prompt.tokens].tolist() == [*(3 + b for b in text.encode()), 1]
    assert tokenizer.vocab == 259


def test_demo_tokenizers_are_alike(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_demo_tokenizer(tmp_path / name, 259)
    one, other = (tmp_path / name for name in ("one", "other"))
    assert [path.name for path in one.iterdir()] == ["tokenizer.json"]
    assert (one / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()


def test_a_vocabulary_too_small_for_bytes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"text_encoder.vocab is 258.*needs 259"):
        write_demo_tokenizer(tmp_path / "tokenizer", 258)
    assert not list(tmp_path.iterdir())


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json: no such tokenizer file.*--tokenizer"):
        PromptTokenizer.load(tmp_path, 8)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"model": {"type": "XX"}}'])
def test_a_broken_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json: not a tokenizer file"):
        PromptTokenizer.load(tmp_path, 8)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="cannot be read"):
        PromptTokenizer.load(path, 8)


def test_another_models_tokenizer(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"][1]["content"] = "<s>"
    content["model"]["vocab"]["<s>"] = content["model"]["vocab"].pop("</s>")
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="token 1 is '<s>' where the text encoder expects '</s>'"):
        PromptTokenizer.load(path, 8)
