"""The layout in which 8-bit attention reads values, in numpy."""

from typing import Any

import numpy as np
import numpy.typing as npt

VALUE_GROUP = 16
"""Keys whose order is permuted inside the layout."""


def value_position(token: int) -> int:
    """Where a token of a piece lies along the last axis of the transposed 8-bit layout.

    The order is that in which a thread of the tensor core's accumulator holds its columns, so that
    probabilities need no exchange between threads.
    """
    group, key = divmod(token, VALUE_GROUP)
    return group * VALUE_GROUP + (key & 7) // 2 * 4 + (key >> 3) * 2 + (key & 1)


def value_order(tokens: int) -> npt.NDArray[np.int64]:
    """The token that lies at each position of the layout; ``tokens`` is a multiple of 16."""
    order = np.empty(tokens, dtype=np.int64)
    for token in range(tokens):
        order[value_position(token)] = token
    return order


def padded_tokens(tokens: int) -> int:
    return -(-tokens // VALUE_GROUP) * VALUE_GROUP


def transposed_values(v: npt.NDArray[np.generic]) -> npt.NDArray[Any]:
    """[batch, tokens, heads, dim] of any dtype in the transposed layout, zeros where padded."""
    batch, tokens, heads, dim = v.shape
    result = np.zeros((batch, heads, dim, padded_tokens(tokens)), dtype=v.dtype)
    positions = [value_position(token) for token in range(tokens)]
    result[..., positions] = v.transpose(0, 2, 3, 1)
    return result
