"""What the transformer's hand-written graphs share: their tensors, and maps by checkpoint names."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from longlive_trt.configs import ModelConfig
from longlive_trt.contract import CACHE_OF, LEVEL_INPUTS, TRANSFORMER, numbered, weight_prefix
from longlive_trt.dtypes import BY_ONNX, FLOAT8, INT8, INT64, QUANTIZED_TYPES
from longlive_trt.engines.graphs.builder import GraphBuilder, GraphWeights, Size
from longlive_trt.engines.graphs.linear import Linears
from longlive_trt.errors import UsageError
from longlive_trt.exports import transposed_weights
from longlive_trt.plugins.attention.variants import NARROW_HEAD_DIM
from longlive_trt.precision import Precision

_KEPT_TYPES = tuple(ir.DataType(element.onnx) for element in (INT64, FLOAT8, INT8))

Table = npt.NDArray[np.float32]


class GraphWriter:
    """Has the inputs, the outputs and the weights of an exported graph; a subclass adds nodes."""

    def __init__(
        self,
        config: ModelConfig,
        source: Path,
        precision: Precision,
        *,
        hopper: bool,
        is_separate: Callable[[str], bool] = lambda _name: False,
    ) -> None:
        self._source, self._exported, self._hopper = source, ir.load(source), hopper
        self.config, self.sizes = config, config.transformer
        self.graph = GraphBuilder(str(self._exported.graph.name), precision)
        self.weights = GraphWeights(self._exported, weight_prefix(TRANSFORMER), precision)
        transposed = transposed_weights(self._exported, source)
        self.linear = Linears(self.graph, self.weights, transposed, is_separate)
        self.inputs = {str(value.name): self._input(value) for value in self._exported.graph.inputs}

    def _input(self, value: ir.Value) -> ir.Value:
        name = str(value.name)
        is_plain = name in LEVEL_INPUTS or value.dtype in _KEPT_TYPES
        return self.graph.input(name, self.sizes_of(value), value.dtype if is_plain else None)

    def finish(self, outputs: dict[str, ir.Value]) -> GraphBuilder:
        for value in self._exported.graph.outputs:
            name = str(value.name)
            dtype = value.dtype if value.dtype in _KEPT_TYPES else None
            self.graph.output(name, outputs[name], self.sizes_of(value), dtype)
        return self.graph

    def sizes_of(self, value: ir.Value) -> Sequence[Size]:
        """Of an input or an output of the exported graph, here."""
        assert value.shape is not None
        return [size if isinstance(size, int) else str(size.value) for size in value.shape]

    def kept_dtype(self, part: str) -> str | None:
        """Of cached keys or values ("k", "v"); None for the compute type."""
        name = numbered(CACHE_OF[part], 0)
        dtypes = {str(value.name): value.dtype for value in self._exported.graph.inputs}
        dtype = dtypes[name]
        element = BY_ONNX[int(dtype)] if dtype is not None else None
        return element.name if element in QUANTIZED_TYPES else None

    def per_layer(self, stem: str) -> list[ir.Value]:
        return [self.inputs[numbered(stem, layer)] for layer in range(self.sizes.layers)]

    def table(self, name: str) -> Table:
        """A constant table of the exported graph."""
        table = self.weights.table(name)
        if table is None:
            raise UsageError(f"{self._source}: of an older version; export again with this version")
        return table

    def constant_table(self, name: str, table: Table) -> ir.Value:
        return self.graph.weight(name, ir.tensor(np.ascontiguousarray(table), name=name))

    def rms_norm(self, x: ir.Value, name: str) -> ir.Value:
        value: ir.Value = self.graph.kernel(
            "rms_norm", x, self.linear.vector(name), heads=self.sizes.heads, epsilon=self.sizes.eps
        )
        return value

    def reshape(self, x: ir.Value, *shape: int) -> ir.Value:
        """0 keeps a size, -1 finds it."""
        value: ir.Value = self.graph.op("Reshape", x, self.graph.constant(shape, np.int64))
        return value

    def quantized_rows(self, maps: Sequence[str]) -> dict[str, Any]:
        """Parameters of a kernel whose one result only these maps read."""
        scale = self.linear.input_scale(*maps)
        return {} if scale is None else {"dtype": FLOAT8.name, "output_scale": scale}

    def quantized_attention(self, into: str) -> dict[str, Any]:
        """The same of attention.

        Heads of 64 leave in the compute type: the kernel writes whole 128-byte rows.
        """
        return self.quantized_rows([into]) if self.has_narrow_attention else {}

    @property
    def has_narrow_attention(self) -> bool:
        """Whether a kernel reads and writes its heads in eight bits."""
        return self._hopper and self.sizes.head_dim == NARROW_HEAD_DIM
