"""The weights of an export folder, as the models take them: the way back from its graphs."""

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from longlive_trt.contract import COMPONENT_OF, weight_prefix
from longlive_trt.errors import UsageError
from longlive_trt.export.checkpoints.weights import Weights
from longlive_trt.exports import ExportRecord, load_graph, transposed_weights


class ExportedWeights(Weights):
    def __init__(
        self, folder: Path, record: ExportRecord, component: str, expected: Mapping[str, object]
    ) -> None:
        self._digest = record.checkpoints[component]
        # Tensors map their file when they are first read, which two threads must not do at once.
        self._reading = threading.Lock()
        self._tensors: dict[str, ir.TensorProtocol] = {}
        self._transposed: set[str] = set()
        for graph in record.graphs:
            if COMPONENT_OF[graph] == component:
                self._add_graph(folder / f"{graph}.onnx", component)
        missing = expected.keys() - self._tensors.keys()
        if missing:
            raise UsageError(f"{folder}: no weights of {min(missing)} inside; export again")
        self._tensors = {name: self._tensors[name] for name in expected}

    def _add_graph(self, path: Path, component: str) -> None:
        model, prefix = load_graph(path), weight_prefix(component)
        self._transposed |= transposed_weights(model, path)
        for name, value in model.graph.initializers.items():
            if name.startswith(prefix) and value.const_value is not None:
                self._tensors[name.removeprefix(prefix)] = value.const_value

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        stored = self._tensors[name].shape.numpy()
        return tuple(reversed(stored)) if name in self._transposed else tuple(stored)

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32

    def load(self, name: str) -> torch.Tensor:
        with self._reading:
            stored = self._tensors[name].numpy()
        if name in self._transposed:
            stored = _turned(stored)
        return torch.from_numpy(stored.astype("float32"))

    def digest(self) -> str:
        """That of the checkpoint: a calibration fits an export of any precision."""
        return self._digest


def _turned(matrix: np.ndarray) -> np.ndarray:
    """Before it is widened, when it has the fewest bytes; torch's copy is the faster one."""
    # A copy, because torch takes no memory that cannot be written to, which mapped files are.
    codes = torch.from_numpy(np.array(matrix).view(f"i{matrix.itemsize}"))
    return codes.t().contiguous().numpy().view(matrix.dtype)
