"""What is wrong with something that was read; whoever reads it says where, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from longlive_trt.console.printing import quoted
from longlive_trt.errors import LongLiveError


class ReadingError(Exception):
    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.problem, self.line = problem, line


class InvalidFieldError(ReadingError):
    """One field's value is impossible."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key} is {quoted(value)}; allowed: {allowed}")
        self.key, self.value, self.allowed = key, value, allowed

    def within(self, section: str) -> "InvalidFieldError":
        return type(self)(f"{section}.{self.key}", self.value, self.allowed)


@contextmanager
def refusing(kind: type[LongLiveError], where: object, advice: str = "") -> Iterator[None]:
    """A problem inside becomes an error of ours that names the place and the remedy."""
    try:
        yield
    except ReadingError as error:
        at = f", line {error.line}" if error.line else ""
        remedy = f"; {advice}" if advice else ""
        raise kind(f"{where}{at}: {error.problem}{remedy}") from None
