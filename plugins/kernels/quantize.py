"""Between the compute type and eight bits: rows and heads."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from longlive_trt.basics import Array
from longlive_trt.dtypes import name_of
from longlive_trt.errors import PluginError
from longlive_trt.plugins.attention.variants import ELEMENTS
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.parameters import FLOAT, INT, LONG, POINTER, ParameterStruct
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.tensors import DeviceTensor, require_alignment, require_dtype
from longlive_trt.plugins.kernels.base import OneKernel, Shape, require_scale
from longlive_trt.plugins.kernels.rows import (
    FLOAT8,
    HALVES,
    INT8,
    TO_FLOAT8,
    TO_INT8,
    in_eight_bits,
    narrowed,
    single,
)

_THREADS = 256
_VECTOR = 8
_FORMATS = {FLOAT8: TO_FLOAT8, INT8: TO_INT8}

_OF_HEADS = ParameterStruct(input=POINTER, output=POINTER, scale=POINTER, vectors=LONG, heads=INT)


@dataclass(frozen=True)
class Quantize(OneKernel):
    """x [..., dim] to float8_e4m3, in units of ``scale``."""

    scale: float
    kernel: ClassVar[CudaKernel] = CudaKernel(
        "rows/quantize.cu",
        ParameterStruct(input=POINTER, output=POINTER, vectors=LONG, factor=FLOAT),
    )

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        return [inputs[0]]

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        (x,), (out,) = inputs, outputs
        parameters = {
            "input": x.pointer,
            "output": out.pointer,
            "vectors": _vectors(x, out),
            "factor": 1.0 / self.scale,
        }
        _launch(self.kernel, parameters, {"LL_ELEMENT": ELEMENTS[x.dtype]}, place)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        outputs[0][...] = narrowed(single(inputs[0]), self.scale)


class _OfHeads(OneKernel):
    """x [B, tokens, heads, head_dim], and a scale for each head, float32 [heads]."""

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]:
        x, scale = inputs
        require_scale(scale, x[2])
        return [x]


@dataclass(frozen=True)
class NarrowHeads(_OfHeads):
    """To eight bits, in units of the scale."""

    kernel: ClassVar[CudaKernel] = CudaKernel("rows/narrow_heads.cu", _OF_HEADS)

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        wide_and_narrow = (inputs[0], outputs[0])
        _launch_heads(self.kernel, inputs, outputs[0], wide_and_narrow, place)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        scale = single(inputs[1])[:, None]
        outputs[0][...] = in_eight_bits(inputs[0], scale, name_of(outputs[0].dtype))


@dataclass(frozen=True)
class WidenHeads(_OfHeads):
    """The reverse: eight bits times the scale."""

    kernel: ClassVar[CudaKernel] = CudaKernel("rows/widen_heads.cu", _OF_HEADS)

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        wide_and_narrow = (outputs[0], inputs[0])
        _launch_heads(self.kernel, inputs, outputs[0], wide_and_narrow, place)

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        outputs[0][...] = single(inputs[0]) * single(inputs[1])[:, None]


def _launch_heads(
    kernel: CudaKernel,
    inputs: Sequence[DeviceTensor],
    out: DeviceTensor,
    wide_and_narrow: tuple[DeviceTensor, DeviceTensor],
    place: Placement,
) -> None:
    x, scale = inputs
    wide, narrow = wide_and_narrow
    require_dtype(scale, "scale", ["float32"])
    heads, head_dim = x.shape[2:]
    if head_dim % _VECTOR:
        raise PluginError(f"heads of {head_dim} values: they must be multiples of {_VECTOR}")
    parameters = {
        "input": x.pointer,
        "output": out.pointer,
        "scale": scale.pointer,
        "vectors": _vectors(wide, narrow),
        "heads": heads,
    }
    constants = {
        "LL_ELEMENT": ELEMENTS[wide.dtype],
        "LL_FORMAT": _FORMATS[narrow.dtype],
        "LL_HEAD_DIM": head_dim,
    }
    _launch(kernel, parameters, constants, place)


def _vectors(wide: DeviceTensor, narrow: DeviceTensor) -> int:
    require_dtype(wide, "the wide tensor", HALVES)
    require_dtype(narrow, "the narrow tensor", list(_FORMATS))
    values = math.prod(wide.shape)
    if values == 0:
        return 0
    require_alignment(wide, "the wide tensor")
    require_alignment(narrow, "the narrow tensor", _VECTOR)
    if values % _VECTOR:
        raise PluginError(f"a tensor of {values} values: they must be a multiple of {_VECTOR}")
    return values // _VECTOR


def _launch(
    kernel: CudaKernel,
    parameters: Mapping[str, Any],
    constants: Mapping[str, int],
    place: Placement,
) -> None:
    vectors = parameters["vectors"]
    if vectors:
        kernel.launch(
            parameters,
            grid=(-(-vectors // _THREADS),),
            threads=_THREADS,
            constants=constants,
            device=place.device,
            stream=place.stream.handle,
        )
