"""How a video changes its prompt: all at once, or over several blocks."""

import re
from dataclasses import dataclass
from typing import get_args

from longlive_trt.console.printing import quoted
from longlive_trt.errors import UsageError
from longlive_trt.runtime.ring import Recache

_BLEND = re.compile(r"blend:([1-9][0-9]{0,5})")


@dataclass(frozen=True)
class SwitchMode:
    recache: Recache = "exact"
    blend_blocks: int | None = None

    @classmethod
    def parse(cls, text: str, where: str = "--switch") -> "SwitchMode":
        """``where`` is the option or the argument that the text comes from."""
        recaches: tuple[Recache, ...] = get_args(Recache)
        for recache in recaches:
            if text == recache:
                return cls(recache)
        if match := _BLEND.fullmatch(text):
            # A re-cache would be the very jump that a blend is there to avoid.
            return cls("none", int(match[1]))
        raise UsageError(
            f"{where} {quoted(text)}: no way to change the prompt; choose exact, partial, none, or "
            f"blend:N with a number of blocks from 1 to 999999, such as blend:4"
        )

    def __str__(self) -> str:
        return self.recache if self.blend_blocks is None else f"blend:{self.blend_blocks}"


EXACT = SwitchMode()
"""As upstream does."""
