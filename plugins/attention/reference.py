"""What the kernels compute, in numpy float64, and the layouts they read."""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

VALUE_GROUP = 16  # keys whose order is permuted inside the transposed 8-bit layout


def attention(
    q: npt.ArrayLike,
    pieces: Sequence[tuple[npt.ArrayLike, npt.ArrayLike, int]],
    scale: float,
) -> Array:
    """softmax(scale q k^T) v over the valid prefixes of the pieces.

    All are [batch, tokens, heads, dim]. Without a single valid key the result is zero.
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
    """The token that lies at each position of the layout; ``tokens`` is a multiple of 16."""
    order = np.empty(tokens, dtype=np.int64)
    for token in range(tokens):
        order[value_position(token)] = token
    return order


def padded_tokens(tokens: int) -> int:
    return -(-tokens // VALUE_GROUP) * VALUE_GROUP


def transposed_values(v: npt.NDArray[np.generic], pitch: int | None = None) -> npt.NDArray[Any]:
    """[batch, tokens, heads, dim] of any dtype in the transposed layout, zeros where padded."""
    batch, tokens, heads, dim = v.shape
    padded = padded_tokens(tokens) if pitch is None else pitch
    result = np.zeros((batch, heads, dim, padded), dtype=v.dtype)
    positions = [value_position(token) for token in range(tokens)]
    result[..., positions] = v.transpose(0, 2, 3, 1)
    return result


def rounded(x: npt.ArrayLike, dtype: str) -> Array:
    """To a 16-bit type and back."""
    narrow = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return np.asarray(x).astype(np.float32).astype(narrow).astype(np.float64)


def norm_rope(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    cosine: npt.ArrayLike,
    sine: npt.ArrayLike,
    *,
    heads: int,
    dtype: str,
    epsilon: float = 1e-6,
) -> Array:
    """RMS norm over the whole row, weight, rotation of neighboring pairs, split into heads.

    The result is not rounded once more: kernels round it to what they write.
    """
    rows = np.asarray(x, dtype=np.float64)
    batch, tokens, dim = rows.shape
    inverse = 1.0 / np.sqrt((rows**2).mean(axis=-1, keepdims=True) + epsilon)
    scaled = rounded(rounded(rows * inverse, dtype) * np.asarray(weight, np.float64), dtype)
    pairs = scaled.reshape(batch, tokens, heads, dim // heads // 2, 2)
    cos = np.asarray(cosine, np.float64)[None, :, None, :]
    sin = np.asarray(sine, np.float64)[None, :, None, :]
    turned = np.stack(
        [
            pairs[..., 0] * cos - pairs[..., 1] * sin,
            pairs[..., 0] * sin + pairs[..., 1] * cos,
        ],
        axis=-1,
    )
    return turned.reshape(batch, tokens, heads, dim // heads)


def norm_modulate(
    x: npt.ArrayLike,
    scale: npt.ArrayLike,
    shift: npt.ArrayLike,
    *,
    dtype: str,
    affine: bool = False,
    epsilon: float = 1e-6,
) -> Array:
    rows = np.asarray(x, dtype=np.float64)
    per_group = rows.shape[0] // np.asarray(scale).shape[0]
    factor = np.repeat(np.asarray(scale, np.float64), per_group, axis=0)
    offset = np.repeat(np.asarray(shift, np.float64), per_group, axis=0)
    mean = rows.mean(axis=-1, keepdims=True)
    normal = (rows - mean) / np.sqrt(rows.var(axis=-1, keepdims=True) + epsilon)
    if affine:
        return rounded(normal * factor + offset, dtype)
    product = rounded(rounded(normal, dtype) * rounded(1.0 + factor, dtype), dtype)
    return rounded(product + offset, dtype)


def gated_residual(
    residual: npt.ArrayLike, update: npt.ArrayLike, gate: npt.ArrayLike, *, dtype: str
) -> Array:
    base = np.asarray(residual, dtype=np.float64)
    per_group = base.shape[0] // np.asarray(gate).shape[0]
    gates = np.repeat(np.asarray(gate, np.float64), per_group, axis=0)
    return rounded(base + rounded(np.asarray(update, np.float64) * gates, dtype), dtype)


def relative_error(actual: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """L2 of the difference over L2 of what is expected; NaN if anything is NaN."""
    wanted = np.asarray(expected, dtype=np.float64)
    difference = np.asarray(actual, dtype=np.float64) - wanted
    return float(np.linalg.norm(difference) / np.linalg.norm(wanted))
