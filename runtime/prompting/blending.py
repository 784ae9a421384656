"""Prompts that change over several blocks: for each, a mixture of two prompts' text states."""

from dataclasses import dataclass, replace

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.runtime.noise import FloatArray


@dataclass(frozen=True, eq=False)
class Blend:
    """A change of prompt that has come so far; the last of its blocks is all the new prompt's."""

    start: FloatArray
    """Text states [1 or B, text_len, text_dim]."""
    target: FloatArray
    blocks: int
    made: int = 0

    @classmethod
    def between(cls, start: Array, target: Array, blocks: int) -> "Blend":
        # In half precision the mixture would be rounded at every step of its own arithmetic.
        return cls(start.astype(np.float32), target.astype(np.float32), blocks)

    @property
    def is_over(self) -> bool:
        return self.made == self.blocks

    @property
    def states(self) -> FloatArray:
        """What the block that was made last is conditioned on."""
        if self.is_over:
            return self.target
        # In this form a blend of two equal prompts leaves every bit as it is.
        mixed = self.start + np.float32(self.made / self.blocks) * (self.target - self.start)
        return np.asarray(mixed, np.float32)

    def advanced(self) -> "Blend":
        return replace(self, made=self.made + 1)
