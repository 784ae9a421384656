"""The layout in which 8-bit attention reads values, in numpy: [batch, heads, head_dim, pitch]."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

VALUE_GROUP = 16
"""Keys whose order is permuted inside the layout."""
TILE_TOKENS = 128
"""Of the layout, that one thread block of our kernels turns."""


def value_position(token: int) -> int:
    """Where a token of a piece lies along the last axis of the transposed 8-bit layout.

    The order is that in which a thread of the tensor core's accumulator holds its columns, so that
    probabilities need no exchange between threads.
    """
    group, key = divmod(token, VALUE_GROUP)
    return group * VALUE_GROUP + (key & 7) // 2 * 4 + (key >> 3) * 2 + (key & 1)


def value_positions(first: int, count: int) -> npt.NDArray[np.int64]:
    """Where so many tokens lie."""
    return np.array([value_position(token) for token in range(first, first + count)], np.int64)


def value_order(tokens: int) -> npt.NDArray[np.int64]:
    """The token that lies at each position of the layout; ``tokens`` is a multiple of 16."""
    order = np.empty(tokens, dtype=np.int64)
    order[value_positions(0, tokens)] = np.arange(tokens)
    return order


def padded_tokens(tokens: int) -> int:
    return -(-tokens // VALUE_GROUP) * VALUE_GROUP


def transposed_shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Of what has the shape [batch, tokens, heads, dim]."""
    batch, tokens, heads, dim = shape
    return batch, heads, dim, padded_tokens(tokens)


def transposed_values(v: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[batch, tokens, heads, dim] of any dtype in the transposed layout, zeros where padded."""
    result = np.zeros(transposed_shape(v.shape), dtype=v.dtype)
    result[..., value_positions(0, v.shape[1])] = v.transpose(0, 2, 3, 1)
    return result


def plain_values(transposed: npt.NDArray[Any], tokens: int) -> npt.NDArray[Any]:
    """The reverse: the first so many tokens, [batch, tokens, heads, dim]."""
    return transposed[..., value_positions(0, tokens)].transpose(0, 3, 1, 2)
