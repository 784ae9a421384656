"""What the demo model knows, in one line, and whether a prompt speaks of any of it."""

from longlive_trt.demo.captions import (
    COLORS,
    DIRECTIONS,
    NOUNS,
    PACED_VERBS,
    PACES,
    PLACES,
    TIMES,
    VERBS,
    WEATHERS,
    words,
)
from longlive_trt.demo.scenes import ATTRIBUTES

_COMMON = (
    "a above across against all an and as at bright by country down fine for from full "
    "goes good heavy here high in is it its little middle moves no of off on one or out "
    "over past same speed tall that the then there this through to toward under up very "
    "way we while with without your"
)


def known_words() -> frozenset[str]:
    """Words that tell the model something by themselves."""
    tables = (NOUNS, COLORS, DIRECTIONS, PACES, PLACES, TIMES, VERBS, WEATHERS)
    phrases = [p for table in tables for choices in table.values() for p in choices]
    phrases += [p for verbs in PACED_VERBS.values() for choices in verbs.values() for p in choices]
    return frozenset(word for phrase in phrases for word in words(phrase)) - frozenset(
        _COMMON.split()
    )


def speaks_of_the_world(prompt: str) -> bool:
    return not known_words().isdisjoint(words(prompt))


def what_it_knows() -> str:
    """One line for someone whose prompt names nothing of it."""
    parts = [f"{_plural(name)} ({', '.join(values)})" for name, values in ATTRIBUTES.items()]
    return f"the demo model knows {', '.join(parts[:-1])} and {parts[-1]}"


def _plural(name: str) -> str:
    return {"weather": "weather"}.get(name, f"{name}s")
