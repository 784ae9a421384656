"""Our kernels as nodes of ONNX graphs: what such a node is, whoever runs the graph.

A node has the domain ``longlive.cuda``, an operator named after the type of its outputs, and one
attribute ``spec``: JSON with the kernel's name and its parameters.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from longlive_trt.basics import Array
from longlive_trt.contract import KERNEL_KEY
from longlive_trt.errors import PluginError
from longlive_trt.plugins.cuda.tensors import DeviceTensor

Shape = tuple[int, ...]
Parameters = Mapping[str, Any]


class GraphKernel(Protocol):
    """One node. Tensors come in the order of the graph, contiguous."""

    def output_shapes(self, inputs: Sequence[Shape]) -> Sequence[Shape]: ...

    def launch(
        self, inputs: Sequence[DeviceTensor], outputs: Sequence[DeviceTensor], stream: int
    ) -> None:
        """Queue the work. Nothing may be allocated or waited for: it may be under capture."""
        ...

    def compute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """The same with numpy, into given arrays: what the kernel must agree with."""
        ...


def spec_of(kernel: str, parameters: Parameters) -> str:
    return json.dumps({KERNEL_KEY: kernel, **parameters}, sort_keys=True)


def kernel_of(spec: str) -> GraphKernel:
    parameters = json.loads(spec)
    name = parameters.pop(KERNEL_KEY)
    table = kernel_table()
    if name not in table:
        raise PluginError(
            f"the graph has a kernel {name!r}, which this version does not know; known are "
            f"{', '.join(sorted(table))}"
        )
    return table[name](parameters)


def kernel_table() -> Mapping[str, Callable[[Parameters], GraphKernel]]:
    """Every kernel by name. Imported late: the families use what is above."""
    from longlive_trt.plugins.kernels.gemm import TRANSFORMER_KERNELS
    from longlive_trt.plugins.kernels.vae import VAE_KERNELS

    return {**TRANSFORMER_KERNELS, **VAE_KERNELS}
