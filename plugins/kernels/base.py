"""Our kernels as nodes of ONNX graphs: what such a node is, whoever runs the graph.

A node has the domain ``longlive.cuda``, an operator named after the type of its outputs, and one
attribute ``spec``: JSON with the kernel's name and its parameters.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from longlive_trt.architectures import Architecture
from longlive_trt.basics import Array
from longlive_trt.contract import KERNEL_KEY
from longlive_trt.errors import PluginError
from longlive_trt.plugins.cuda.kernel import CudaKernel
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.tensors import DeviceTensor

Shape = tuple[int, ...]


class GraphKernel(Protocol):
    """One node. Tensors come in the order of the graph, contiguous."""

    @classmethod
    def cuda_kernels(cls, architecture: Architecture) -> Sequence[CudaKernel]:
        """What it launches on a GPU of this architecture."""
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
    def cuda_kernels(cls, architecture: Architecture) -> Sequence[CudaKernel]:
        del architecture
        return (cls.kernel,)


def spec_of(kernel: str, parameters: Mapping[str, Any]) -> str:
    return json.dumps({KERNEL_KEY: kernel, **parameters}, sort_keys=True)


def require_scale(scale: Shape, heads: int) -> None:
    if tuple(scale) != (heads,):
        raise PluginError(f"scale has shape {list(scale)}: it must be [{heads}]")
