"""The transformer's matrices apart from its engines, so that they can be exchanged while those run.

A bundle that was built for it (``build --lora-ready``) has them in a file of their own, as they
were exported. Engines take them as inputs, whose places are reserved once: captured passes read
whatever lies there.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from longlive_trt.basics import Array
from longlive_trt.contract import PROMPT, STEP, TRANSFORMER, weight_prefix
from longlive_trt.engines.base import Binding, Engine, TensorSpec, TensorTable
from longlive_trt.errors import BundleError, UsageError
from longlive_trt.exports import GraphInfo, transposed_weights
from longlive_trt.reading.documents import parse_json
from longlive_trt.reading.failures import refusing
from longlive_trt.reading.shapes import field
from longlive_trt.reading.tensors import NUMPY_TYPES, TensorHeader, read_header

MATRICES_NAME = "matrices.safetensors"
GRAPHS = (STEP, PROMPT)
OPTION = "lora_ready"
_LAYERS = "layers"
_ADAPTED = re.compile(r"blocks\.\d+\.(?:(?:self|cross)_attn\.[qkvo]|ffn\.[02])")
_SUFFIX = ".weight"

Layout = dict[str, tuple[str, ...]]
"""Of one graph's inputs: the modules whose matrices [in, out] lie side by side in each."""


def is_adapted(module: str) -> bool:
    """Whether LoRA adapters of this kind of model change it."""
    return _ADAPTED.fullmatch(module) is not None


class SeparateMatrices:
    """Collects, while a bundle is built, what its graphs take from outside."""

    def __init__(self) -> None:
        self._stored: dict[str, ir.TensorProtocol] = {}
        self._layouts: dict[str, Layout] = {}

    def collect(self, model: ir.Model, path: Path) -> None:
        """The matrices of an exported graph."""
        transposed, prefix = transposed_weights(model, path), weight_prefix(TRANSFORMER)
        for name, value in model.graph.initializers.items():
            module = name.removeprefix(prefix).removesuffix(_SUFFIX)
            if value.const_value is None or not (name.startswith(prefix) and is_adapted(module)):
                continue
            if not name.endswith(_SUFFIX):
                continue
            if f"{module}{_SUFFIX}" not in transposed:
                raise UsageError(f"{path}: {module} is not stored [in, out]; export again")
            self._stored[module] = value.const_value

    def reuse(self, donor: Path) -> None:
        """Those of a bundle whose engines are used again; its file comes with them."""
        self._layouts = dict(MatricesFile.open(donor).layouts)

    def lay_out(self, graph: str, layout: Layout) -> None:
        self._layouts[graph] = layout

    def open_inputs(self, graph: str, model: ir.Model) -> None:
        """Make the matrices of a graph its inputs."""
        prefix, layout = weight_prefix(TRANSFORMER), Layout()
        for module in self._stored:
            value = model.graph.initializers.pop(f"{prefix}{module}{_SUFFIX}", None)
            if value is not None:
                value.const_value = None
                model.graph.inputs.append(value)
                layout[str(value.name)] = (module,)
        self.lay_out(graph, layout)

    def described(self, graph: str, info: GraphInfo) -> GraphInfo:
        """A graph's tensors as sessions know them."""
        own = self._layouts.get(graph, {})
        return GraphInfo(tuple(t for t in info.inputs if t.name not in own), info.outputs)

    def write(self, folder: Path) -> None:
        """Unless the file came with engines that are used again."""
        if not self._stored:
            return
        entries: dict[str, Any] = {"__metadata__": {_LAYERS: json.dumps(self._layouts)}}
        position = 0
        for module, tensor in self._stored.items():
            array = tensor.numpy()
            end = position + array.nbytes
            entries[module] = {
                "dtype": _code_of(array.dtype),
                "shape": list(array.shape),
                "data_offsets": [position, end],
            }
            position = end
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        with (folder / MATRICES_NAME).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for tensor in self._stored.values():
                file.write(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data)


def _code_of(dtype: np.dtype[Any]) -> str:
    return next(code for code, known in NUMPY_TYPES.items() if known == dtype)


@dataclass(frozen=True)
class MatricesFile:
    """What a bundle keeps of them."""

    header: TensorHeader
    layouts: Mapping[str, Layout]

    @classmethod
    def open(cls, folder: Path) -> "MatricesFile":
        path = folder / MATRICES_NAME
        with refusing(BundleError, path, "build the bundle again"):
            header = read_header(path)
            layouts: dict[str, Layout] = field(
                dict[str, Layout], parse_json(header.metadata.get(_LAYERS, "")), _LAYERS
            )
        return cls(header, layouts)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """As a checkpoint has them: [out, in]."""
        entries = self.header.entries
        return {
            f"{module}{_SUFFIX}": tuple(reversed(entry.shape)) for module, entry in entries.items()
        }

    def read(self, module: str) -> Array:
        """[in, out], as exported."""
        return self.header.read(module)


class SuppliedEngine(TensorTable):
    """An engine that is given some of its inputs here, and not by who binds it."""

    def __init__(self, engine: Engine, supplied: Mapping[str, Any]) -> None:
        self._engine, self._supplied = engine, dict(supplied)
        self.name = str(getattr(engine, "name", ""))
        self._inputs = {n: spec for n, spec in engine.inputs.items() if n not in supplied}
        self._outputs = engine.outputs

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Binding:
        return self._engine.bind({**inputs, **self._supplied}, outputs)

    def close(self) -> None:
        self._engine.close()


def supplied_specs(engine: Engine, names: Iterable[str]) -> dict[str, TensorSpec]:
    missing = [name for name in names if name not in engine.inputs]
    if missing:
        raise BundleError(f"an engine has no input {missing[0]}; build the bundle again")
    return {name: engine.inputs[name] for name in names}
