"""How much of a prompt is padding, which an engine may read once for all of it.

Text states are zero behind a prompt's tokens, so the keys and values made of them are all alike.
"""

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.runtime.memory.base import Buffer

TOKENS = Buffer((1, 1), np.dtype(np.int64))
"""The number of tokens to tell apart: a prompt's own, and one that stands for its padding."""


def tokens_of_states(states: Array) -> Array:
    """Of text states [B, text_len, text_dim]."""
    return _counted(np.any(states, axis=(0, 2)))


def tokens_of_keys(*parts: Array) -> Array:
    """Of keys and values [B, text_len, heads, head_dim] whose prompt is not known any more."""
    differ = [np.any(part != part[:, -1:], axis=(0, 2, 3)) for part in parts]
    return _counted(np.any(differ, axis=0))


def _counted(is_own: Array) -> Array:
    """``is_own`` says of each token whether it is none of the padding's."""
    own = np.flatnonzero(is_own)
    count = min(own[-1] + 2 if own.size else 1, len(is_own))
    return np.full(TOKENS.shape, count, TOKENS.dtype)
