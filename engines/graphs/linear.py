"""Linear maps of hand-written graphs by checkpoint name: in the compute type, or in FP8.

A map is in FP8 where the exported graph's is. Its weights have one scale for each output there and
one for all here, because that is what the tensor cores' library multiplies fastest. The scales of
a calibration are powers of two, so that no weight is rounded again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from longlive_trt.engines.graphs.builder import GraphBuilder, Weights
from longlive_trt.plugins.kernels.rows import FLOAT8, narrowed

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Narrow:
    """How the maps of one input are quantized."""

    input_scale: float
    weight_scale: float


class Linears:
    def __init__(self, graph: GraphBuilder, exported: ir.Model, weights: Weights) -> None:
        self._graph, self._weights = graph, weights
        self._initializers = exported.graph.initializers
        self._transposed = _transposed_weights(exported)

    def __call__(
        self, x: ir.Value, *names: str, joined: str = "", into: str = "", **parameters: Any
    ) -> ir.Value:
        """Several maps of the same rows become one, their results side by side.

        ``into`` is the map that takes the result and nothing else does.
        """
        name, narrow = joined or names[0], self._narrow(names)
        if narrow is None:
            return self._multiply(x, name, names, **parameters)
        if x.dtype != ir.DataType.FLOAT8E4M3FN:
            x = self._graph.kernel("quantize", x, dtype=FLOAT8, scale=narrow.input_scale)
        parameters["scale"] = narrow.input_scale * narrow.weight_scale
        weight, bias = self._narrow_weight(name, names, narrow), self._bias(name, names)
        result_scale = self.input_scale(into) if into else None
        if result_scale is None:
            return self._gemm(x, weight, bias, **parameters)
        factor = self._graph.constant([1.0 / result_scale], np.float32)
        return self._gemm(x, weight, bias, factor, dtype=FLOAT8, narrow=True, **parameters)

    def input_scale(self, *names: str) -> float | None:
        """The unit of the 8-bit rows that these maps take; None if they take the compute type."""
        narrow = self._narrow(names)
        return None if narrow is None else narrow.input_scale

    def _narrow(self, names: Sequence[str]) -> Narrow | None:
        """Maps that are not all quantized alike are multiplied as one in the compute type."""
        if not all(self._is_quantized(name) for name in names):
            return None
        inputs = {float(self._weights.array(f"{name}.input_scale")) for name in names}
        if len(inputs) > 1:
            return None
        largest = max(float(self._weights.array(f"{name}.weight_scale").max()) for name in names)
        return Narrow(inputs.pop(), largest)

    def _gemm(self, *inputs: ir.Value, **parameters: Any) -> ir.Value:
        value: ir.Value = self._graph.kernel("gemm", *inputs, **parameters)
        return value

    def _multiply(
        self, x: ir.Value, name: str, names: Sequence[str], **parameters: Any
    ) -> ir.Value:
        weight = self.weight(
            f"{name}.weight",
            self._joined_shape(names),
            lambda: np.concatenate([self._matrix(n) for n in names], axis=1),
        )
        return self._gemm(x, weight, self._bias(name, names), **parameters)

    def _narrow_weight(self, name: str, names: Sequence[str], narrow: Narrow) -> ir.Value:
        def make() -> Array:
            unit = np.float32(narrow.weight_scale)
            parts = (narrowed(self._matrix(n).T, unit) for n in names)
            return np.concatenate(list(parts))

        inner, columns = self._joined_shape(names)
        full_name = self._weights.prefix + f"{name}.weight"
        tensor = ir.LazyTensor(
            lambda: ir.tensor(np.ascontiguousarray(make()), name=full_name),
            dtype=ir.DataType.FLOAT8E4M3FN,
            shape=ir.Shape((columns, inner)),
            name=full_name,
        )
        return self._graph.weight(full_name, tensor)

    def _bias(self, name: str, names: Sequence[str]) -> ir.Value:
        return self.weight(
            f"{name}.bias",
            self._joined_shape(names)[1:],
            lambda: np.concatenate([self._weights.array(f"{n}.bias") for n in names]),
        )

    def weight(self, name: str, shape: Sequence[int], make: Callable[[], Array]) -> ir.Value:
        full_name = self._weights.prefix + name
        return self._graph.weight(full_name, self._weights.lazy(full_name, shape, make))

    def vector(self, name: str) -> ir.Value:
        return self.weight(name, self._shape(name), lambda: self._weights.array(name))

    def _matrix(self, name: str) -> Array:
        """[in, out]; a convolution of patches is a map of their values."""
        stored = self._weights.array(f"{name}.weight")
        if self._is_quantized(name):
            scales = self._weights.array(f"{name}.weight_scale").astype(np.float32)
            product: Array = stored.astype(np.float32) * scales
            return product
        matrix = stored.reshape(stored.shape[0], -1)
        return matrix.T if self._stored_by_outputs(name) else matrix

    def _joined_shape(self, names: Sequence[str]) -> tuple[int, int]:
        shapes = [self._matrix_shape(name) for name in names]
        return shapes[0][0], sum(columns for _, columns in shapes)

    def _matrix_shape(self, name: str) -> tuple[int, int]:
        first, *others = self._shape(f"{name}.weight")
        rest = int(np.prod(others))
        return (rest, first) if self._stored_by_outputs(name) else (first, rest)

    def _stored_by_outputs(self, name: str) -> bool:
        full_name = f"{self._weights.prefix}{name}.weight"
        return full_name in self._transposed or len(self._shape(f"{name}.weight")) > 2

    def _is_quantized(self, name: str) -> bool:
        return f"{self._weights.prefix}{name}.weight_scale" in self._initializers

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self._initializers[self._weights.prefix + name].shape
        assert shape is not None
        return shape.numpy()


def _transposed_weights(exported: ir.Model) -> set[str]:
    """Matrices that the graph multiplies transposed are stored [out, in]."""
    return {
        str(node.inputs[1].name)
        for node in exported.graph
        if node.op_type == "Gemm"
        and node.inputs[1] is not None
        and node.attributes.get_int("transB")
    }
