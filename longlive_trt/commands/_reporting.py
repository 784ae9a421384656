"""What several commands write down or show in the same way."""

import shlex
import sys

from longlive_trt.console.printing import storable
from longlive_trt.exports import TensorInfo


def command_line() -> str:
    """What was typed, for a record of what made a file."""
    return storable(shlex.join(["longlive-trt", *sys.argv[1:]]))


def folded(tensors: tuple[TensorInfo, ...]) -> list[tuple[str, str, str]]:
    """One row for the tensors that come once a layer."""
    rows: dict[tuple[str, str, str], int] = {}
    for tensor in tensors:
        stem, _, number = tensor.name.rpartition(".")
        name = f"{stem}.*" if number.isdigit() else tensor.name
        key = (name, tensor.dtype, " x ".join(map(str, tensor.shape)))
        rows[key] = rows.get(key, 0) + 1
    return [
        (f"{name} ({count})" if name.endswith(".*") else name, dtype, shape)
        for (name, dtype, shape), count in rows.items()
    ]
