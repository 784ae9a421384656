"""The weights of an export folder, as the models take them: the way back from its graphs."""

import json
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import torch

from longlive_trt.errors import UsageError
from longlive_trt.export.checkpoints.weights import Weights
from longlive_trt.export.tracing import TRANSPOSED_KEY
from longlive_trt.exports import GRAPH_COMPONENTS, ExportRecord


class ExportedWeights(Weights):
    def __init__(
        self, folder: Path, record: ExportRecord, component: str, expected: Mapping[str, object]
    ) -> None:
        self._digest = record.checkpoints[component]
        self._tensors: dict[str, ir.TensorProtocol] = {}
        self._transposed: set[str] = set()
        for graph in record.graphs:
            if GRAPH_COMPONENTS[graph] == component:
                self._add_graph(folder / f"{graph}.onnx", component)
        missing = expected.keys() - self._tensors.keys()
        if missing:
            raise UsageError(f"{folder}: no weights of {min(missing)} inside; export again")
        self._tensors = {name: self._tensors[name] for name in expected}

    def _add_graph(self, path: Path, component: str) -> None:
        model = ir.load(path)
        if TRANSPOSED_KEY not in model.metadata_props:
            raise UsageError(f"{path}: of an older version; export again with this version")
        self._transposed |= set(json.loads(model.metadata_props[TRANSPOSED_KEY]))
        for name, value in model.graph.initializers.items():
            if name.startswith(f"{component}.") and value.const_value is not None:
                self._tensors[name.removeprefix(f"{component}.")] = value.const_value

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        stored = self._tensors[name].shape.numpy()
        return tuple(reversed(stored)) if name in self._transposed else tuple(stored)

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32

    def load(self, name: str) -> torch.Tensor:
        array = self._tensors[name].numpy().astype("float32")
        tensor = torch.from_numpy(array)
        return tensor.t().contiguous() if name in self._transposed else tensor

    def digest(self) -> str:
        """That of the checkpoint: a calibration fits an export of any precision."""
        return self._digest
