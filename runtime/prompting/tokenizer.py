"""Prompts into token ids."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ftfy
import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from longlive_trt.console.printing import plain
from longlive_trt.errors import BundleError
from longlive_trt.reading.failures import refusing
from longlive_trt.reading.files import MIB, read_text

TOKENIZER_FILE = "tokenizer.json"
PAD_ID, END_ID = 0, 1
_LARGEST_BYTES = 256 * MIB
UNKNOWN = "<unk>"
_SPECIAL_TOKENS = {PAD_ID: "<pad>", END_ID: "</s>"}

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenizedPrompt:
    ids: Ids
    mask: Ids
    tokens: int
    """How many ids are not padding, the end token included."""
    truncated_at: str | None
    """What remained of the cleaned prompt, if it was too long."""
    unknown: tuple[str, ...] = ()
    """Words, or parts of some, that have no token of their own."""


class PromptTokenizer:
    """Cleans and tokenizes prompts as the text encoder was trained on them."""

    def __init__(self, tokenizer: Tokenizer, text_len: int) -> None:
        self._tokenizer = tokenizer
        self._text_len = text_len
        self._unknown_id = tokenizer.token_to_id(UNKNOWN)
        # The file may ask for either; both are done here, to the model's length.
        tokenizer.no_padding()
        tokenizer.no_truncation()

    @classmethod
    def load(cls, folder_or_file: str | Path, text_len: int) -> "PromptTokenizer":
        path = Path(folder_or_file)
        path = path / TOKENIZER_FILE if path.is_dir() else path
        return cls(_read(path), text_len)

    @property
    def vocab(self) -> int:
        """The least vocabulary that the text encoder needs for every id."""
        return 1 + max(self._tokenizer.get_vocab().values())

    def encode(self, prompt: str) -> TokenizedPrompt:
        text = clean_prompt(prompt)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        kept = encoding.ids[: self._text_len - 1]
        cut = len(kept) < len(encoding.ids)
        ids = _padded([*kept, END_ID], self._text_len)
        return TokenizedPrompt(
            ids=ids,
            mask=(np.arange(self._text_len) <= len(kept)).astype(np.int64),
            tokens=len(kept) + 1,
            truncated_at=_covered(text, encoding, len(kept)) if cut else None,
            unknown=self._unknown(text, encoding, len(kept)),
        )

    def _unknown(self, text: str, encoding: Encoding, tokens: int) -> tuple[str, ...]:
        pairs = zip(encoding.ids[:tokens], encoding.offsets, strict=False)
        words = (text[start:end] for number, (start, end) in pairs if number == self._unknown_id)
        return tuple(dict.fromkeys(words))


def clean_prompt(prompt: str) -> str:
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip()


def _read(path: Path) -> Tokenizer:
    if not path.exists():
        raise BundleError(
            f"{path}: no such tokenizer file; export with --tokenizer DIR, a folder that holds "
            f"UMT5's {TOKENIZER_FILE}"
        )
    advice = f"take {TOKENIZER_FILE} of google/umt5-xxl again"
    with refusing(BundleError, f"{path}: the tokenizer cannot be read", advice):
        content = read_text(path, _LARGEST_BYTES)
    return _parse(content, path)


def _parse(content: str, path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the library raises nothing narrower
        raise BundleError(
            f"{path}: not a tokenizer file of the tokenizers library ({plain(error)}); take "
            f"{TOKENIZER_FILE} of google/umt5-xxl again"
        ) from error
    for token_id, token in _SPECIAL_TOKENS.items():
        if (found := tokenizer.id_to_token(token_id)) != token:
            raise BundleError(
                f"{path}: token {token_id} is {found!r} where the text encoder expects {token!r}; "
                f"take {TOKENIZER_FILE} of google/umt5-xxl"
            )
    return tokenizer


def _padded(ids: Sequence[int], length: int) -> Ids:
    padded = np.full(length, PAD_ID, dtype=np.int64)
    padded[: len(ids)] = ids
    return padded


def _covered(text: str, encoding: Encoding, tokens: int) -> str:
    """The part of a text that its first tokens stand for."""
    return text[: max((end for _, end in encoding.offsets[:tokens]), default=0)].rstrip()
