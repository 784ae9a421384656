"""The RMS norm of rows, split into heads, and what attention in int8 makes of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from longlive_trt import hadamard
from longlive_trt.basics import Array
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.parameters import FLOAT, INT, POINTER, ParameterStruct
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.tensors import DeviceTensor
from longlive_trt.plugins.kernels.base import OneKernel, Shape
from longlive_trt.plugins.kernels.rows import (
    INT8,
    check_head_dim,
    check_narrow,
    check_rows,
    in_eight_bits,
    launch_rows,
    require_shape,
    rms_normalized,
    row_scales,
    single,
    split_shape,
)


@dataclass(frozen=True)
class RmsNorm(OneKernel):
    """x [..., dim] and weight [dim] to [..., heads, head_dim].

    With ``hadamard`` each head is multiplied by the matrix of ``longlive_trt.hadamard`` and leaves
    as int8; the second output is the scale of each row of it, float32 [..., heads].
    """

    heads: int
    epsilon: float = 1e-6
    hadamard: bool = False
    kernel: ClassVar[CudaKernel] = CudaKernel(
        "rows/rms_norm.cu",
        ParameterStruct(
            input=POINTER,
            weight=POINTER,
            output=POINTER,
            row_scale=POINTER,
            rows=INT,
            epsilon=FLOAT,
        ),
    )

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        x, weight = inputs
        require_shape("weight", weight, x[-1:])
        shape = split_shape(x, self.heads)
        return [shape, shape[:-1]] if self.hadamard else [shape]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        x, weight = inputs
        rows, dim = math.prod(x.shape[:-1]), x.shape[-1]
        if rows == 0:
            return
        check_rows(x, [weight, *([] if self.hadamard else outputs)], dim)
        parameters = {
            "input": x.pointer,
            "weight": weight.pointer,
            "output": outputs[0].pointer,
            "row_scale": outputs[1].pointer if self.hadamard else 0,
            "rows": rows,
            "epsilon": self.epsilon,
        }
        constants = {}
        if self.hadamard:
            check_narrow(outputs, [INT8])
            constants = {"LL_INT8": 1, "LL_HEAD_DIM": check_head_dim(dim, self.heads)}
        launch_rows(self.kernel, parameters, constants, x, dim, place)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        x, weight = map(single, inputs)
        normed = (rms_normalized(x, self.epsilon) * weight).reshape(outputs[0].shape)
        if self.hadamard:
            mixed = hadamard.multiplied(normed)
            outputs[1][...] = row_scales(mixed)
            outputs[0][...] = in_eight_bits(mixed, outputs[1][..., None], INT8)
        else:
            outputs[0][...] = normed
