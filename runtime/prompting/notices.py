"""What whoever wrote a prompt should know about how it was read."""

from collections.abc import Sequence

from longlive_trt.configs import ModelConfig
from longlive_trt.runtime.prompting.tokenizer import TokenizedPrompt

_MOST_WORDS = 8


def notices(prompt: str, tokens: TokenizedPrompt, config: ModelConfig) -> list[str]:
    """One line each."""
    lines = []
    kept = tokens.truncated_at
    if kept is not None:
        lines.append(
            f"the prompt that begins {prompt[:30]!r} is longer than "
            f"{config.transformer.text_len} tokens; it was cut after {kept[-30:]!r}"
        )
    if tokens.unknown:
        known = config.prompts.knows
        lines.append(
            f"the model {config.name} has no word for {_listed(tokens.unknown)} and leaves that out"
            + (f"; it knows {known}" if known else "")
        )
    return lines


def _listed(words: Sequence[str]) -> str:
    named, rest = words[:_MOST_WORDS], len(words) - _MOST_WORDS
    return ", ".join(map(repr, named)) + (f" and {rest} more" if rest > 0 else "")
