"""The node that multiplies matrices, which cuBLASLt does."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

from longlive_trt.architectures import Architecture
from longlive_trt.basics import Array
from longlive_trt.errors import PluginError
from longlive_trt.plugins.cuda.cublaslt import WORKSPACE_BYTES, Matmul, Product, alignment_of
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.tensors import DeviceTensor
from longlive_trt.plugins.kernels.base import Shape
from longlive_trt.plugins.kernels.rows import Float32, narrowed, single, split_shape

_ACTIVATIONS = ("none", "gelu")
_Tensor = TypeVar("_Tensor")


@dataclass(frozen=True)
class Gemm:
    """x [..., in] times weight [in, out], plus bias [out] if there is one, then the activation.

    With ``heads`` the last axis of the result is split into heads. With ``scale`` x and weight are
    float8_e4m3, the weight is [out, in], and their product is in units of it. With ``narrow`` the
    result is float8_e4m3 too, and the last input, float32 [1], is what it is multiplied by.
    """

    activation: str = "none"
    heads: int | None = None
    scale: float | None = None
    narrow: bool = False
    matmuls: dict[Product, Matmul] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.activation not in _ACTIVATIONS:
            raise PluginError(
                f"activation is {self.activation!r}: choose one of {', '.join(_ACTIVATIONS)}"
            )
        if self.narrow and self.scale is None:
            raise PluginError("a narrow result needs factors in 8 bits, and their scale")

    @classmethod
    def cuda_kernels(cls, architecture: Architecture) -> Sequence[CudaKernel]:
        """They are the library's."""
        del architecture
        return ()

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        x, weight = inputs[:2]
        if len(weight) != 2 or x[-1] != self._inner_and_columns(weight)[0]:
            raise PluginError(f"rows of {x[-1]} values do not fit a weight of shape {list(weight)}")
        shape = (*x[:-1], self._inner_and_columns(weight)[1])
        return [split_shape(shape, self.heads) if self.heads else shape]

    def _inner_and_columns(self, weight: Shape) -> tuple[int, int]:
        first, second = weight
        return (first, second) if self.scale is None else (second, first)

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        x, weight = inputs[:2]
        bias, factor = self._addresses(inputs)
        product = self._product(inputs, outputs[0])
        if product.rows == 0:
            return
        if product not in self.matmuls:
            self.matmuls[product] = Matmul(product, device=x.device)
        self.matmuls[product](
            x.pointer,
            weight.pointer,
            outputs[0].pointer,
            workspace=_workspace(place),
            bias=bias,
            scale=1.0 if self.scale is None else self.scale,
            out_factor=factor,
            stream=place.stream.handle,
        )

    def _addresses(self, inputs: Sequence[DeviceTensor]) -> tuple[int, int]:
        bias, factor = self._bias_and_factor(inputs)
        return bias.pointer if bias else 0, factor.pointer if factor else 0

    def _bias_and_factor(self, inputs: Sequence[_Tensor]) -> tuple[_Tensor | None, _Tensor | None]:
        rest = list(inputs[2:])
        factor = rest.pop() if self.narrow else None
        return rest[0] if rest else None, factor

    def _product(self, inputs: Sequence[DeviceTensor], out: DeviceTensor) -> Product:
        x, weight = inputs[:2]
        bias, _ = self._bias_and_factor(inputs)
        inner, columns = self._inner_and_columns(weight.shape)
        return Product(
            rows=int(np.prod(x.shape[:-1])),
            inner=inner,
            columns=columns,
            dtype=x.dtype,
            out_dtype=out.dtype,
            bias=bias is not None,
            bias_dtype=bias.dtype if bias else "",
            activation=self.activation,
            transposed=self.scale is not None,
            alignment_bytes=alignment_of(*(tensor.pointer for tensor in (*inputs[:3], out))),
        )

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        x, weight = map(single, inputs[:2])
        bias, factor = self._bias_and_factor(inputs)
        product = x @ weight if self.scale is None else x @ weight.T * np.float32(self.scale)
        if bias is not None:
            product += single(bias)
        if self.activation == "gelu":
            product = gelu(product)
        result = product if factor is None else narrowed(product, 1 / single(factor))
        outputs[0][...] = result.reshape(outputs[0].shape)


def _workspace(place: Placement) -> int:
    reserve = partial(
        place.gpu.reserve, WORKSPACE_BYTES, "a workspace of matrix products", zeroed=True
    )
    return place.shared("cuBLASLt", reserve).pointer


def gelu(x: Float32) -> Float32:
    """The form with the hyperbolic tangent."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)
    result: Float32 = np.float32(0.5) * x * (1 + np.tanh(inner))
    return result
