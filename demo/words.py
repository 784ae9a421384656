"""The demo's tokenizer: one id a word, in the file format that the product reads."""

import json

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Split

from longlive_trt.demo.captions import vocabulary, words

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
PAD_ID, END_ID, UNKNOWN_ID = range(3)


def word_ids() -> dict[str, int]:
    special = {PAD: PAD_ID, END: END_ID, UNKNOWN: UNKNOWN_ID}
    return special | {word: i for i, word in enumerate(vocabulary(), start=len(special))}


def tokenizer() -> Tokenizer:
    """What is no word of the vocabulary becomes the unknown word; punctuation is dropped."""
    made = Tokenizer(WordLevel(word_ids(), unk_token=UNKNOWN))
    made.normalizer = Lowercase()
    made.pre_tokenizer = Split(Regex("[a-z]+"), behavior="removed", invert=True)
    return made


def tokenizer_json() -> str:
    parsed = json.loads(tokenizer().to_str())
    return json.dumps(parsed, indent=1) + "\n"


def encode(text: str, ids: dict[str, int], text_len: int) -> list[int]:
    """As the product encodes a prompt: its words, the end, padding."""
    known = [ids.get(word, UNKNOWN_ID) for word in words(text)][: text_len - 1]
    return [*known, END_ID] + [PAD_ID] * (text_len - 1 - len(known))
