"""Options that take a number: within the range that the function behind them allows."""

from typing import Any

import click

from longlive_trt.reading.ranges import Range


class _InRange:
    """The message names the limit that was passed; NaN is in no range."""

    allowed: Range

    def check(self, number: float, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if number in self.allowed:
            return number
        allowed = self.allowed
        limit = f"x{'>' if allowed.above else '>='}{allowed.low:g}"
        if number > allowed.high:
            limit = f"x<={allowed.high:.15g}"
        elif number != number:
            limit += f", x<={allowed.high:.15g}"
        raise click.BadParameter(f"{number} is not in the range {limit}.", ctx, param)


class _Whole(_InRange, click.IntRange):
    def __init__(self, allowed: Range) -> None:
        super().__init__(int(allowed.low), int(allowed.high))
        self.allowed = allowed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number: int = self.check(click.INT.convert(value, param, ctx), param, ctx)
        return number


class _Real(_InRange, click.FloatRange):
    def __init__(self, allowed: Range) -> None:
        super().__init__(allowed.low, allowed.high, min_open=allowed.above)
        self.allowed = allowed

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = self.check(click.FLOAT.convert(value, param, ctx), param, ctx)
        return number


def whole(allowed: Range) -> click.IntRange:
    return _Whole(allowed)


def real(allowed: Range) -> click.FloatRange:
    return _Real(allowed)
