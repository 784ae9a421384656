"""Where tensors live. On a CPU they are numpy arrays that the engines read and write in place."""

from collections.abc import Iterable, Mapping

import numpy as np

from ..engines.base import Array, TensorSpec


def allocate(specs: Iterable[TensorSpec], **sizes: int) -> dict[str, Array]:
    """One zeroed array for every tensor, with its named sizes filled in."""
    return {spec.name: np.zeros(spec.sized(**sizes), spec.dtype) for spec in specs}


def named(specs: Mapping[str, TensorSpec], *prefixes: str) -> list[TensorSpec]:
    """The tensors that come one to a layer: ``k_cache.0``, ``k_cache.1``, ..."""
    return [spec for name, spec in specs.items() if name.rpartition(".")[0] in prefixes]


def total_bytes(arrays: Mapping[str, Array]) -> int:
    return sum(array.nbytes for array in arrays.values())
