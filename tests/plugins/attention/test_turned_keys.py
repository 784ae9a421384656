"""Attention in int8 to keys that are kept in 16 bits, and turned and rounded in one pass.

Against float64 on the same 16-bit queries and keys, at the positions of a window of whole frames.
"""

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from longlive_trt import hadamard
from longlive_trt.export.models.transformer import rope_table
from longlive_trt.plugins.kernels.rows import INT8, Rotate, in_eight_bits, rotated, row_scales
from tests.plugins.attention.integer_model import Array, Rounded, attended, exact
from tests.plugins.attention.test_integer_error import ALLOWED, DIM, KEYS, SETS, error
from tests.plugins.kernels.arrays import launched

FRAMES, GRID = 12, (30, 52)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Window:
    """One head's keys, not turned, and queries of the last frames."""

    q: Array
    k: Array
    v: Array
    cosine: Array
    sine: Array
    places: Array
    """Of the queries."""

    @classmethod
    def of(cls, name: str) -> "Window":
        q, k, v = SETS[name]
        angles = rope_table(torch.arange(FRAMES), GRID, DIM)
        tables = [table.numpy().astype(np.float32) for table in (angles.cos(), angles.sin())]
        places = np.linspace(KEYS * 3 // 4, KEYS - 1, len(q)).astype(int)
        return cls(q.astype(BFLOAT16), k.astype(BFLOAT16), v, *tables, places)

    def exact(self) -> Array:
        tables = [table.astype(np.float64) for table in (self.cosine, self.sine)]
        q = rotated(self.q.astype(np.float64)[None, :, None], *(t[self.places] for t in tables))
        k = rotated(self.k.astype(np.float64)[None, :, None], *tables)
        return exact(q[0, :, 0], k[0, :, 0], self.v)

    def key_inputs(self) -> list[Array]:
        """Of the kernel that turns and rounds keys, whose unit is that of the largest."""
        mixed = hadamard.multiplied(self._turned(self.k, slice(None)))
        unit = np.array([np.abs(mixed).max() / 127], np.float32)
        return [self.k[None, :, None], self.cosine, self.sine, unit]

    def rounded(self, keys: Array, unit: Array) -> Rounded:
        q = hadamard.multiplied(self._turned(self.q, self.places))
        rows = row_scales(q)[:, None]
        values = Rounded.of(self.q.astype(float), self.k.astype(float), self.v)
        narrow = in_eight_bits(q, rows, INT8).astype(np.float64)
        return replace(values, q=narrow, k=keys, q_scale=rows, k_scale=float(unit[0]))

    def _turned(self, x: Array, places: slice | Array) -> Array:
        single = x.astype(np.float32)[None, :, None]
        turned: Array = rotated(single, self.cosine[places], self.sine[places])[0, :, 0]
        return turned


def computed_keys(inputs: list[Array]) -> Array:
    keys = np.full(inputs[0].shape, -128, np.int8)
    Rotate().compute(inputs, [keys])
    return keys[0, :, 0].astype(np.float64)


@pytest.mark.parametrize(
    "name",
    [
        name if name == "outliers" else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in SETS
    ],
)
def test_the_error_is_that_of_keys_at_their_positions(name: str) -> None:
    window = Window.of(name)
    inputs = window.key_inputs()
    found = attended(window.rounded(computed_keys(inputs), inputs[3])).output
    assert error(found, window.exact()) <= ALLOWED[name]


@pytest.mark.gpu
@pytest.mark.parametrize("name", SETS)
def test_the_kernels_err_no_more_than_their_model(name: str, need_gpu) -> None:
    """Keys are turned and rounded on the device, and attended to there."""
    need_gpu((9, 0), exactly=True)
    from tests.plugins.attention.test_eight_bit import launched_model

    window = Window.of(name)
    inputs = window.key_inputs()
    model_keys = computed_keys(inputs)
    (keys,) = launched(Rotate(), inputs, torch.int8)
    keys = keys[0, :, 0].astype(np.float64)
    # A value between two numbers may become either.
    assert np.abs(keys - model_keys).max() <= 1
    assert (keys != model_keys).mean() < 1e-2
    x, model = (window.rounded(each, inputs[3]) for each in (keys, model_keys))
    out, made = launched_model(x).numpy(), attended(model).output
    expected = window.exact()
    assert error(out, expected) <= ALLOWED[name]
    assert error(out, expected) <= 1.05 * error(made, expected)
