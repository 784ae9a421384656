"""Engines that take turns."""

import threading
import time
from collections.abc import Mapping
from typing import Any

from longlive_trt.engines.base import TensorSpec
from longlive_trt.engines.turns import EngineInTurn, Turns, cores


class Running:
    """Notes who runs, and fails where somebody else does."""

    def __init__(self, notes: list[str], running: threading.Lock) -> None:
        self._notes, self._running = notes, running
        self.inputs: Mapping[str, TensorSpec] = {}
        self.outputs: Mapping[str, TensorSpec] = {}
        self.is_closed = False

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> "Running":
        self._name = inputs["name"]
        return self

    def run(self) -> None:
        assert self._running.acquire(blocking=False)
        time.sleep(0.002)
        self._notes.append(self._name)
        self._running.release()

    def close(self) -> None:
        self.is_closed = True


def test_one_runs_at_a_time() -> None:
    notes: list[str] = []
    running, turns = threading.Lock(), Turns()
    engines: list[Any] = [EngineInTurn(Running(notes, running), turns) for _ in range(3)]

    def work(number: int) -> None:
        binding = engines[number].bind({"name": str(number)}, {})
        for _ in range(5):
            binding.run()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(notes) == sorted("012" * 5)


def test_whoever_asks_first_is_first() -> None:
    turns, order = Turns(), list[int]()

    def work(number: int) -> None:
        with turns:
            order.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    with turns:
        for number, thread in enumerate(threads):
            thread.start()
            while turns._asked < number + 2:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]


def test_a_failed_run_gives_its_turn_away() -> None:
    turns = Turns()
    try:
        with turns:
            raise RuntimeError
    except RuntimeError:
        pass
    with turns:
        assert cores() >= 1


def test_closing_closes_the_engine() -> None:
    engine: Any = Running([], threading.Lock())
    EngineInTurn(engine, Turns()).close()
    assert engine.is_closed
