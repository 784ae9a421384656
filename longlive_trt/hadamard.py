"""The orthonormal Hadamard matrix that queries and keys of attention in int8 are multiplied by.

It leaves their products as they are, and shares out what a few channels of a head have more than
the others: eight bits, of which the largest channel decides the unit, then suit all of them.
"""

from typing import Any

import numpy as np
import numpy.typing as npt


def block_size(channels: int) -> int:
    """Channels that are multiplied together: the largest power of two that divides all."""
    return channels & -channels


def unit(channels: int) -> float:
    """Its entries are this number or its negative."""
    return float(block_size(channels) ** -0.5)


def signs(channels: int) -> npt.NDArray[np.float32]:
    """[channels, channels] of 1 and -1, in blocks along the diagonal; exact in every type.

    In Sylvester's order: entry (i, j) is negative where i and j share an odd number of bits.
    """
    size = block_size(channels)
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.kron(np.eye(channels // size, dtype=np.float32), matrix)


def multiplied(x: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """The last axis times the matrix, in float32."""
    channels = x.shape[-1]
    product: npt.NDArray[np.float32] = x @ signs(channels) * np.float32(unit(channels))
    return product
