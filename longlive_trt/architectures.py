"""GPU architectures: ``sm90``, compute capability 9.0 and (9, 0) are one thing."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Architecture:
    major: int
    minor: int

    @classmethod
    def of(cls, capability: tuple[int, int]) -> "Architecture":
        return cls(*capability)

    @classmethod
    def of_capability(cls, text: str) -> "Architecture":
        """As drivers write it: ``9.0``."""
        major, _, minor = text.partition(".")
        return cls(int(major), int(minor))

    @classmethod
    def named(cls, text: str) -> "Architecture | None":
        """``sm90``, ``sm_90``, ``sm_90a`` or ``SM90``; None for what is no name."""
        name = re.fullmatch(r"sm_?(\d+)(\d)[af]?", text, re.IGNORECASE)
        return cls(int(name[1]), int(name[2])) if name else None

    def __str__(self) -> str:
        return f"sm{self.major}{self.minor}"

    @property
    def capability(self) -> str:
        return f"{self.major}.{self.minor}"

    @property
    def has_fp8(self) -> bool:
        return self >= FIRST_WITH_FP8

    @property
    def has_hopper_attention(self) -> bool:
        """Our fastest attention kernel runs on this one alone, on none that came later."""
        return self == HOPPER

    @property
    def compiled(self) -> str:
        """What our kernels are compiled for: Hopper's own instructions there."""
        return f"sm_{self.major}{self.minor}{'a' if self == HOPPER else ''}"


AMPERE = Architecture(8, 0)
FIRST_WITH_FP8 = Architecture(8, 9)
HOPPER = Architecture(9, 0)
WITH_KERNELS = (AMPERE, Architecture(8, 6), FIRST_WITH_FP8, HOPPER, Architecture(10, 0))
"""Those that our kernels are compiled for."""
