"""One component's weights in one file, which all of its graphs refer to."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from longlive_trt.ahead import ahead
from longlive_trt.errors import ExportError
from longlive_trt.export.checkpoints.opening import Weights
from longlive_trt.export.torch_types import TORCH_TYPES
from longlive_trt.export.tracing import TracedGraph, in_compute_type
from longlive_trt.precision import Precision

# Offsets at which a file can be mapped into memory on every common system. Small tensors are not
# worth the gaps.
_ALIGNMENT_BYTES = 65_536
_SMALL_ALIGNMENT_BYTES = 256
_MAGNITUDE = 127

OnTensor = Callable[[int, int], None]
"""(tensors written, tensors in all)"""


def write_weights(
    path: Path,
    weights: Weights,
    graphs: Sequence[TracedGraph],
    precision: Precision,
    on_tensor: OnTensor,
) -> None:
    """Write what the graphs use, a few tensors at a time, and let the graphs refer to it."""
    users = _users(graphs)
    names = [name for name in weights.names if name in users]

    def stored(name: str) -> Tensor:
        return _stored(name, weights.load(name), precision, users[name])

    position = 0
    with path.open("wb") as file:
        for done, (name, tensor) in enumerate(zip(names, ahead(stored, names), strict=True), 1):
            position += file.write(bytes(-position % _alignment_bytes(tensor.nbytes)))
            length = file.write(tensor.flatten().view(torch.uint8).numpy().data)
            for graph in users[name]:
                _refer(graph.weights[name], path, position, length, tensor.shape)
            position += length
            on_tensor(done, len(names))


def _alignment_bytes(length: int) -> int:
    return _ALIGNMENT_BYTES if length >= _ALIGNMENT_BYTES else _SMALL_ALIGNMENT_BYTES


def _users(graphs: Sequence[TracedGraph]) -> Mapping[str, list[TracedGraph]]:
    users: dict[str, list[TracedGraph]] = {}
    for graph in graphs:
        for name in graph.weights:
            users.setdefault(name, []).append(graph)
    return users


def _stored(
    name: str, tensor: Tensor, precision: Precision, users: Sequence[TracedGraph]
) -> Tensor:
    (transposed,) = {name in graph.transposed for graph in users}
    converted = in_compute_type(tensor, TORCH_TYPES[precision.name])
    if not _is_finite(converted):
        raise ExportError(
            f"{name} has values beyond the range of {precision.name} "
            f"(largest {tensor.abs().max().item():.3g}); export with --precision fp32 or bf16"
        )
    return converted.t().contiguous() if transposed else converted.contiguous()


def _is_finite(tensor: Tensor) -> bool:
    """In one pass: of numbers that are not, the least or the largest is not."""
    if tensor.numel() == 0 or tensor.dtype == torch.int8:
        return True
    if tensor.dtype == torch.float8_e4m3fn:
        # It has no infinity. Not a number are the codes of which all bits but the sign's are set.
        return bool((tensor.view(torch.int8) & _MAGNITUDE).amax() < _MAGNITUDE)
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def _refer(
    value: ir.Value,
    path: Path,
    position: int,
    length: int,
    shape: Sequence[int],
) -> None:
    assert value.name is not None and value.dtype is not None
    value.const_value = ir.ExternalTensor(
        path.name,
        position,
        length,
        value.dtype,
        shape=ir.Shape(shape),
        name=value.name,
        base_dir=path.parent,
    )
