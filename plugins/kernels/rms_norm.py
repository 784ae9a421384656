"""The RMS norm of rows, split into heads."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from longlive_trt.basics import Array
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.parameters import FLOAT, INT, POINTER, ParameterStruct
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.tensors import DeviceTensor
from longlive_trt.plugins.kernels.base import OneKernel, Shape
from longlive_trt.plugins.kernels.rows import (
    check_rows,
    launch_rows,
    require_shape,
    rms_normalized,
    single,
    split_shape,
)


@dataclass(frozen=True)
class RmsNorm(OneKernel):
    """x [..., dim] and weight [dim] to [..., heads, head_dim]."""

    heads: int
    epsilon: float = 1e-6
    kernel: ClassVar[CudaKernel] = CudaKernel(
        "rows/rms_norm.cu",
        ParameterStruct(input=POINTER, weight=POINTER, output=POINTER, rows=INT, epsilon=FLOAT),
    )

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        x, weight = inputs
        require_shape("weight", weight, x[-1:])
        return [split_shape(x, self.heads)]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        x, weight = inputs
        rows, dim = math.prod(x.shape[:-1]), x.shape[-1]
        if rows == 0:
            return
        check_rows(x, [weight, *outputs], dim)
        parameters = {
            "input": x.pointer,
            "weight": weight.pointer,
            "output": outputs[0].pointer,
            "rows": rows,
            "epsilon": self.epsilon,
        }
        launch_rows(self.kernel, parameters, {}, x, dim, place)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        x, weight = map(single, inputs)
        outputs[0][...] = (rms_normalized(x, self.epsilon) * weight).reshape(outputs[0].shape)
