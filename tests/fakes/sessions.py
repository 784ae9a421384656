"""Sessions of ONNX Runtime on a CPU whose kernel nodes are computed with numpy."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from longlive_trt.basics import Given
from longlive_trt.dtypes import name_of
from longlive_trt.engines.base import TensorTable, require_fit
from longlive_trt.engines.ort.cpu import spec_of
from longlive_trt.plugins.onnxruntime_bridge import SessionNodes


def kernel_session(model: Path | bytes, library: Path | None = None) -> Any:
    """Its nodes live as long as it does."""
    options, nodes = ort.SessionOptions(), SessionNodes(library=library)
    options.log_severity_level = 4
    nodes.register(options)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    session.kernel_nodes = nodes
    return session


class KernelEngine(TensorTable):
    """A written graph as an engine over arrays of the host."""

    def __init__(self, path: Path) -> None:
        self.name, self._session = path.stem, kernel_session(path)
        self._inputs = {spec.name: spec for spec in map(spec_of, self._session.get_inputs())}
        self._outputs = {spec.name: spec for spec in map(spec_of, self._session.get_outputs())}

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> "_Run":
        self._require_inputs(inputs)
        for name, array in {**inputs, **outputs}.items():
            spec = self._inputs.get(name) or self._outputs.get(name)
            given = Given(array.shape, name_of(array.dtype), array.flags.c_contiguous)
            require_fit(self.name, name, spec, given)
        return _Run(self._session, inputs, outputs)

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class _Run:
    _session: Any
    _inputs: Mapping[str, Any]
    _outputs: Mapping[str, Any]

    def run(self) -> None:
        made = self._session.run(list(self._outputs), dict(self._inputs))
        for target, values in zip(self._outputs.values(), made, strict=True):
            target[...] = values
