"""Engines on a machine with few cores: one runs at a time, and has all of them.

Two that run at once there wait for each other's threads: on two cores the demo's video is made a
fifth faster so.
"""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longlive_trt.engines.base import Binding, Engine, TensorTable

FEW_CORES = 2


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


class Turns:
    """A lock that threads get in the order in which they asked."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asked = self._served = 0

    def __enter__(self) -> None:
        with self._changed:
            mine = self._asked
            self._asked += 1
            self._changed.wait_for(lambda: self._served == mine)

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._served += 1
            self._changed.notify_all()


class EngineInTurn(TensorTable):
    def __init__(self, engine: Engine, turns: Turns) -> None:
        self._engine, self._turns = engine, turns
        self._inputs, self._outputs = engine.inputs, engine.outputs

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> "_BindingInTurn":
        return _BindingInTurn(self._engine.bind(inputs, outputs), self._turns)

    def close(self) -> None:
        self._engine.close()

    def __getattr__(self, name: str) -> Any:
        """What an engine offers beyond the protocol."""
        return getattr(self._engine, name)


@dataclass(frozen=True)
class _BindingInTurn:
    _binding: Binding
    _turns: Turns

    def run(self) -> None:
        with self._turns:
            self._binding.run()
