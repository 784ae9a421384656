"""The sources that transpose values and move them, thread by thread on a CPU."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from longlive_trt.basics import Array
from longlive_trt.plugins.attention.value_layout import (
    padded_tokens,
    plain_values,
    transposed_values,
)
from longlive_trt.plugins.kernels.values import TransposedValues, move_values
from tests.fakes.emulation import COMPILER, EmulatedGpu, aligned, device_tensor, emulated

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")
HEADS, DIM = 2, 64


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmulatedGpu:
    return emulated(tmp_path, monkeypatch)


def values(tokens: int, seed: int = 0) -> Array:
    """Every byte but those that are no number."""
    codes = np.random.default_rng(seed).integers(0, 127, (1, tokens, HEADS, DIM), np.uint8)
    return codes.view(ml_dtypes.float8_e4m3fn)


@pytest.mark.parametrize(
    ("source_first", "target_first", "tokens"),
    [
        (0, 0, 48),
        # Of whole groups, and with neighbors at both ends, as frames of 1,560 tokens have them.
        (0, 24, 40),
        (24, 40, 24),
        (8, 8, 56),
        # Frames of an odd number of tokens.
        (5, 18, 41),
        (3, 3, 1),
        (7, 12, 0),
    ],
)
def test_values_are_moved_and_their_neighbors_stay(
    gpu: EmulatedGpu, source_first: int, target_first: int, tokens: int
) -> None:
    source, target = values(71), values(90, seed=1)
    expected = target.copy()
    taken = source[:, source_first : source_first + tokens]
    expected[:, target_first : target_first + tokens] = taken
    kept, given = aligned(transposed_values(target)), aligned(transposed_values(source))
    move_values(
        device_tensor(given),
        device_tensor(kept),
        source_first=source_first,
        target_first=target_first,
        tokens=tokens,
        stream=0,
    )
    assert plain_values(kept, 90).tobytes() == expected.tobytes()
    beyond = kept.view(np.uint8).sum() - expected.view(np.uint8).sum()
    assert beyond == 0 and kept.shape[-1] == padded_tokens(90)


@pytest.mark.parametrize("tokens", [16, 21])
def test_values_are_transposed(
    gpu: EmulatedGpu, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    monkeypatch.setattr("longlive_trt.plugins.kernels.values._require_eight_bits", lambda _: None)
    given = aligned(values(tokens))
    found = aligned(np.zeros((1, HEADS, DIM, padded_tokens(tokens)), given.dtype))
    gpu.run(TransposedValues(), [given], [found])
    assert found.tobytes() == transposed_values(given).tobytes()
