"""Work on threads: results in order, few of them at once, and failures where they are asked for."""

import threading
from collections.abc import Iterator

import pytest

from longlive_trt.ahead import ahead


def test_results_come_in_order_whichever_is_ready_first() -> None:
    others_began = threading.Event()

    def make(item: int) -> int:
        if item == 0:
            others_began.wait(10)
        else:
            others_began.set()
        return item * item

    assert list(ahead(make, range(20))) == [item * item for item in range(20)]


def test_few_are_made_before_they_are_asked_for() -> None:
    begun: list[int] = []
    results = ahead(lambda item: begun.append(item) or item, range(1000))
    assert next(results) == 0
    assert len(begun) <= 10
    assert sum(results) == sum(range(1000))


def test_a_failure_comes_in_its_turn() -> None:
    def make(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    results: Iterator[int] = ahead(make, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
