"""What the kernels compute, in numpy float64, and the layouts they read."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

VALUE_GROUP = 16  # keys whose order is permuted inside the transposed 8-bit layout


def attention(
    q: npt.ArrayLike,
    pieces: Sequence[tuple[npt.ArrayLike, npt.ArrayLike, int]],
    scale: float,
) -> Array:
    """softmax(scale q k^T) v over the valid prefixes of the pieces, all [batch, tokens, heads, dim].

    Without a single valid key the result is zero.
    """
    queries = np.asarray(q, dtype=np.float64)
    keys = np.concatenate([np.asarray(k, np.float64)[:, :n] for k, _, n in pieces], axis=1)
    values = np.concatenate([np.asarray(v, np.float64)[:, :n] for _, v, n in pieces], axis=1)
    if keys.shape[1] == 0:
        return np.zeros_like(queries)
    scores = np.einsum("bqhd,bkhd->bhqk", queries, keys) * scale
    scores -= scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores)
    weights /= weights.sum(axis=-1, keepdims=True)
    result: Array = np.einsum("bhqk,bkhd->bqhd", weights, values)
    return result


def value_position(token: int) -> int:
    """Where a token of a piece lies along the last axis of the transposed 8-bit layout.

    The order is that in which a thread of the tensor core's accumulator holds its columns, so that
    probabilities need no exchange between threads.
    """
    group, key = divmod(token, VALUE_GROUP)
    return group * VALUE_GROUP + (key & 7) // 2 * 4 + (key >> 3) * 2 + (key & 1)


def value_order(tokens: int) -> npt.NDArray[np.int64]:
    """For each position of the layout, the token that lies there; ``tokens`` is a multiple of 16."""
    order = np.empty(tokens, dtype=np.int64)
    for token in range(tokens):
        order[value_position(token)] = token
    return order


def padded_tokens(tokens: int) -> int:
    return -(-tokens // VALUE_GROUP) * VALUE_GROUP
