"""Our kernels as nodes of ONNX graphs: what such a node is, whoever runs the graph.

A node has the domain ``longlive.cuda``, an operator named after the type of its outputs, and one
attribute ``spec``: JSON with the kernel's name and its parameters.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from longlive_trt.basics import Array
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.tensors import DeviceTensor

DOMAIN = "longlive.cuda"
SPEC = "spec"
KERNEL_KEY = "kernel"

Shape = tuple[int, ...]
Capability = tuple[int, int]

OPERATORS = {
    "float16": "KernelFloat16",
    "bfloat16": "KernelBFloat16",
    "float32": "KernelFloat",
    "uint8": "KernelUInt8",
    "float8_e4m3": "KernelFloat8E4M3",
    "int8": "KernelInt8",
    "float32, float8_e4m3": "KernelFloatAndFloat8E4M3",
    "float16, float8_e4m3": "KernelFloat16AndFloat8E4M3",
    "bfloat16, float8_e4m3": "KernelBFloat16AndFloat8E4M3",
}
"""Operator by the type that all outputs of the node have, or by those of its two outputs."""


class GraphKernel(Protocol):
    """One node. Tensors come in the order of the graph, contiguous."""

    @classmethod
    def cuda_kernels(cls, capability: Capability) -> Sequence[CudaKernel]:
        """What it launches on a GPU of this compute capability."""
        ...

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]: ...

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], place: Placement
    ) -> None:
        """Queue the work. Nothing may be waited for, and after the first call nothing allocated:
        it may be under capture."""
        ...

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """The same with numpy, into given arrays: what the kernel must agree with."""
        ...


class OneKernel:
    """A node that has one kernel of its own, the same on every GPU, and of the same name."""

    kernel: ClassVar[CudaKernel]

    @classmethod
    def cuda_kernels(cls, capability: Capability) -> Sequence[CudaKernel]:
        del capability
        return (cls.kernel,)


def spec_of(kernel: str, parameters: Mapping[str, Any]) -> str:
    return json.dumps({KERNEL_KEY: kernel, **parameters}, sort_keys=True)
