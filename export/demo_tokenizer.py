"""A tokenizer for demo models: one token per byte, so that any small vocabulary can have one."""

import os
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, processors

from longlive_trt.errors import ConfigError

PAD, END, UNKNOWN = SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
SMALLEST_VOCAB = len(SPECIAL_TOKENS) + 256


def require_demo_vocab(vocab: int) -> None:
    if vocab < SMALLEST_VOCAB:
        raise ConfigError(
            f"text_encoder.vocab is {vocab}; the demo tokenizer needs {SMALLEST_VOCAB} or more "
            "(a token for every byte)"
        )


def write_demo_tokenizer(folder: Path, vocab: int) -> None:
    require_demo_vocab(vocab)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(_byte_tokenizer().to_str(pretty=True) + "\n", encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _byte_tokenizer() -> Tokenizer:
    tokens = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256))]
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], unk_token=UNKNOWN, byte_fallback=True))
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, ids[END])]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer
