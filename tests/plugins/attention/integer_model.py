"""What the Hopper kernel computes of int8 queries and keys, block by block, in numpy's float64.

Exact sums of integers; a row's maximum that is replaced late; probabilities in float8 under it; and
sums of their products in float32. How late, and how large probabilities get, is read in the source.
"""

import re
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from longlive_trt import hadamard
from longlive_trt.plugins.cuda.compilation import SOURCE_DIR
from longlive_trt.plugins.kernels.rows import in_eight_bits, row_scales

Array = npt.NDArray[Any]
BLOCK_KEYS = 128
LARGEST_FLOAT8 = 448.0
_SOURCE = (SOURCE_DIR / "attention" / "attention_tile.cuh").read_text()


def constant(name: str) -> float:
    """That of eight bits."""
    found = re.search(rf"constexpr float {name} = kBytes \? ([\d.]+)f", _SOURCE)
    assert found is not None, name
    return float(found[1])


RESCALE_LIMIT = constant("kRescaleLimit")
PROBABILITY_EXPONENT = constant("kProbabilityExponent")


def exact(q: Array, k: Array, v: Array) -> Array:
    logits = q @ k.T * q.shape[-1] ** -0.5
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    result: Array = weights @ v / weights.sum(-1, keepdims=True)
    return result


@dataclass(frozen=True)
class Rounded:
    """One head's tensors as the kernel is given them."""

    q: Array
    k: Array
    v: Array
    q_scale: Array
    k_scale: float
    v_scale: float
    center: Array
    """What was taken from the values, and is added to the output."""

    @classmethod
    def of(
        cls,
        q: Array,
        k: Array,
        v: Array,
        *,
        mixes: bool = True,
        centers: bool = True,
        dtype: str = "int8",
    ) -> "Rounded":
        """As int8 is, or in float8: then q and k have a unit each."""
        center = v.mean(0) * centers
        single = [x.astype(np.float32) for x in (q, k)]
        q, k = map(hadamard.multiplied, single) if mixes else single
        is_int8 = dtype == "int8"
        largest = 127 if is_int8 else LARGEST_FLOAT8
        rows = row_scales(q)[:, None]
        if not is_int8:
            rows = np.full_like(rows, np.abs(q).max() / largest)
        key_unit, value_unit = np.abs(k).max() / largest, np.abs(v - center).max() / LARGEST_FLOAT8
        wide = [
            in_eight_bits(q, rows, dtype),
            in_eight_bits(k, key_unit, dtype),
            in_eight_bits(v - center, value_unit, "float8_e4m3"),
        ]
        q, k, v = (x.astype(np.float64) for x in wide)
        return cls(q, k, v, rows, float(key_unit), float(value_unit), center)

    @property
    def values(self) -> tuple[Array, Array, Array]:
        """What was rounded, as plain numbers."""
        return self.q * self.q_scale, self.k * self.k_scale, self.v * self.v_scale


@dataclass
class Attended:
    output: Array
    largest: float
    """Of all probabilities before they were rounded."""


def attended(x: Rounded, *, limit: float = RESCALE_LIMIT) -> Attended:
    rows, dim = x.q.shape
    unit = x.q_scale * x.k_scale * dim**-0.5 * np.log2(np.e)
    maximum, total = np.full((rows, 1), -np.inf), np.zeros((rows, 1))
    sums, largest = np.zeros((rows, dim)), 0.0
    for start in range(0, len(x.k), BLOCK_KEYS):
        scores = x.q @ x.k[start : start + BLOCK_KEYS].T * unit
        highest = scores.max(-1, keepdims=True)
        grew = highest - maximum > limit
        factor = np.where(grew, np.exp2(maximum - highest), 1.0)
        maximum = np.where(grew, highest, maximum)
        powers = np.exp2(scores - maximum + PROBABILITY_EXPONENT)
        largest = max(largest, float(powers.max()))
        narrow = np.minimum(powers, LARGEST_FLOAT8).astype(ml_dtypes.float8_e4m3fn)
        total = total * factor + powers.sum(-1, keepdims=True)
        sums = sums * factor + narrow.astype(np.float64) @ x.v[start : start + BLOCK_KEYS]
    return Attended(sums / total * x.v_scale + x.center, largest)
