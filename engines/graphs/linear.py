"""Linear maps of hand-written graphs by checkpoint name: in the compute type, or quantized to FP8.

A map is in FP8 where the exported graph's is. Its weights have one scale for each output there and
one for all here, because that is what the tensor cores' library multiplies fastest. The scales of
a calibration are powers of two, so that no weight is rounded again.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from longlive_trt.contract import INPUT_SCALE, WEIGHT_SCALE
from longlive_trt.dtypes import FLOAT8
from longlive_trt.engines.graphs.builder import GraphBuilder, GraphWeights
from longlive_trt.plugins.kernels.rows import narrowed

Array = npt.NDArray[Any]
_FLOAT8 = ir.DataType(FLOAT8.onnx)


@dataclass(frozen=True)
class LinearScales:
    """Of the quantized maps of one input."""

    input: float
    weight: float


class Linears:
    """``transposed`` are the weights that are stored [in, out], by checkpoint name."""

    def __init__(
        self,
        graph: GraphBuilder,
        weights: GraphWeights,
        transposed: Collection[str],
        is_separate: Callable[[str], bool] = lambda _name: False,
    ) -> None:
        """Maps that are ``is_separate`` take their matrices as inputs of the graph."""
        self._graph, self._weights, self._transposed = graph, weights, transposed
        self._is_separate = is_separate
        self.separate: dict[str, tuple[str, ...]] = {}
        """The maps whose matrices [in, out] lie side by side in each of such inputs."""

    def __call__(
        self, x: ir.Value, *names: str, joined: str = "", into: str = "", **parameters: Any
    ) -> ir.Value:
        """Several maps of the same rows become one, their results side by side.

        ``into`` is the map that takes the result and nothing else does.
        """
        name, scales = joined or names[0], self._scales(names)
        if scales is None:
            return self._multiply(x, name, names, **parameters)
        if x.dtype != _FLOAT8:
            x = self._graph.kernel("quantize", x, dtype=FLOAT8.name, scale=scales.input)
        parameters["scale"] = scales.input * scales.weight
        weight, bias = self._quantized_weight(name, names, scales), self._bias(name, names)
        result_scale = self.input_scale(into) if into else None
        if result_scale is None:
            return self._gemm(x, weight, bias, **parameters)
        factor = self._graph.constant([1.0 / result_scale], np.float32)
        has_gelu = parameters.get("activation") == "gelu"
        value: ir.Value = self._graph.kernel(
            "gelu_product" if has_gelu else "gemm",
            *(x, weight, bias, factor),
            dtype=FLOAT8.name,
            narrow=True,
            **parameters,
        )
        return value

    def input_scale(self, *names: str) -> float | None:
        """The unit of the quantized rows that these maps take; None for the compute type."""
        scales = self._scales(names)
        return None if scales is None else scales.input

    def _scales(self, names: Sequence[str]) -> LinearScales | None:
        """Maps that are not all quantized alike are multiplied as one in the compute type."""
        if not all(self._is_quantized(name) for name in names):
            return None
        inputs = {float(self._weights.array(f"{name}.{INPUT_SCALE}")) for name in names}
        if len(inputs) > 1:
            return None
        by_output = [self._weights.array(f"{name}.{WEIGHT_SCALE}") for name in names]
        return LinearScales(inputs.pop(), max(float(scales.max()) for scales in by_output))

    def _gemm(self, *inputs: ir.Value, **parameters: Any) -> ir.Value:
        value: ir.Value = self._graph.kernel("gemm", *inputs, **parameters)
        return value

    def _multiply(
        self, x: ir.Value, name: str, names: Sequence[str], **parameters: Any
    ) -> ir.Value:
        return self._gemm(x, self._own_matrix(name, names), self._bias(name, names), **parameters)

    def _own_matrix(self, name: str, names: Sequence[str]) -> ir.Value:
        full_name, shape = f"{self._weights.prefix}{name}.weight", self._joined_shape(names)
        if all(map(self._is_separate, names)):
            self.separate[full_name] = tuple(names)
            return self._graph.input(full_name, shape)
        return self.weight(
            f"{name}.weight",
            shape,
            lambda: np.concatenate([self._matrix(n) for n in names], axis=1),
        )

    def _quantized_weight(self, name: str, names: Sequence[str], scales: LinearScales) -> ir.Value:
        def make() -> Array:
            unit = np.float32(scales.weight)
            parts = (narrowed(self._matrix(n).T, unit) for n in names)
            return np.concatenate(list(parts))

        inner, columns = self._joined_shape(names)
        full_name = self._weights.prefix + f"{name}.weight"
        tensor = ir.LazyTensor(
            lambda: ir.tensor(np.ascontiguousarray(make()), name=full_name),
            dtype=_FLOAT8,
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
        return self.weight(name, self._weights.shape(name), lambda: self._weights.array(name))

    def _matrix(self, name: str) -> Array:
        """[in, out]; a convolution of patches is a map of their values."""
        stored = self._weights.array(f"{name}.weight")
        if self._is_quantized(name):
            scales = self._weights.array(f"{name}.{WEIGHT_SCALE}").astype(np.float32)
            product: Array = stored.astype(np.float32) * scales
            return product
        matrix = stored.reshape(stored.shape[0], -1)
        return matrix if self._stored_by_inputs(name) else matrix.T

    def _joined_shape(self, names: Sequence[str]) -> tuple[int, int]:
        shapes = [self._matrix_shape(name) for name in names]
        return shapes[0][0], sum(columns for _, columns in shapes)

    def _matrix_shape(self, name: str) -> tuple[int, int]:
        first, *others = self._weights.shape(f"{name}.weight")
        rest = int(np.prod(others))
        return (first, rest) if self._stored_by_inputs(name) else (rest, first)

    def _stored_by_inputs(self, name: str) -> bool:
        """As [in, out]: what is quantized always is."""
        return self._is_quantized(name) or f"{name}.weight" in self._transposed

    def _is_quantized(self, name: str) -> bool:
        return self._weights.has(f"{name}.{WEIGHT_SCALE}")
