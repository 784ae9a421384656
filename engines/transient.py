"""An engine that is in memory only while it runs: for what is rarely needed, and large."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from longlive_trt.engines.base import Engine, TensorSpec, TensorTable


class TransientEngine(TensorTable):
    def __init__(
        self,
        load: Callable[[], Engine],
        inputs: Mapping[str, TensorSpec],
        outputs: Mapping[str, TensorSpec],
        settle: Callable[[], None],
    ) -> None:
        """``settle`` waits until a run that was queued is over."""
        self._load, self._settle = load, settle
        self._inputs, self._outputs = inputs, outputs

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> "_TransientBinding":
        return _TransientBinding(self._load, self._settle, dict(inputs), dict(outputs))

    def close(self) -> None:
        """It is not in memory."""


@dataclass(frozen=True)
class _TransientBinding:
    _load: Callable[[], Engine]
    _settle: Callable[[], None]
    _inputs: Mapping[str, Any]
    _outputs: Mapping[str, Any]

    def run(self) -> None:
        with self._load() as engine:
            engine.bind(self._inputs, self._outputs).run()
            self._settle()
