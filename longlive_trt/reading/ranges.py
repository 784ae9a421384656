"""Numbers within limits, which the message names."""

import math
from dataclasses import dataclass
from typing import Any

from longlive_trt.console.printing import quoted
from longlive_trt.errors import UsageError


@dataclass(frozen=True)
class Range:
    """NaN and infinity are in none."""

    low: float
    high: float
    above: bool = False
    """The lower limit itself is out."""

    def __contains__(self, value: object) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not self.low <= value <= self.high:  # type: ignore[operator]
            return False
        return not (self.above and value == self.low)

    def __str__(self) -> str:
        if self.above:
            return f"a number above {_written(self.low)}, at most {_written(self.high)}"
        low, high = _written(self.low), _written(self.high)
        return f"{low} to {high}" if self.low != 1 else f"1 or more, at most {high}"

    def require(self, name: str, value: Any) -> None:
        """Of an option or an argument; None is one that was not given."""
        if value is not None and value not in self:
            raise UsageError(f"{name} is {quoted(value)}; allowed: {self}")


def _written(limit: float) -> str:
    is_whole = math.isfinite(limit) and limit == int(limit)
    return str(int(limit)) if is_whole else f"{limit:g}"
