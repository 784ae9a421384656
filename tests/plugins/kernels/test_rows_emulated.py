"""The source that norms, turns, mixes and rounds queries and keys, thread by thread on a CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.fakes.emulation import COMPILER, EmulatedGpu, aligned, emulated
from tests.plugins.kernels.test_transformer import (
    DTYPES,
    Case,
    empty,
    found_of,
    integer_qkv,
    integer_qkv_beside_plain_keys,
    integer_rotate,
    mixed_qkv,
    qkv,
    relative,
    with_transposed_values,
)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")
CASES = {
    "plain keys": qkv(3, 128, True),
    "mixed": mixed_qkv(3, 128),
    # Of 640 channels, some lanes have none.
    "mixed, heads of 64": mixed_qkv(10, 64),
    "int8": integer_qkv(3, 128),
    "int8, heads of 64": integer_qkv(5, 64),
    "int8 beside plain keys": integer_qkv_beside_plain_keys(3, 128),
    "int8, values transposed": with_transposed_values(integer_qkv(1, 128)),
    "int8, values transposed, heads of 64": with_transposed_values(integer_qkv(5, 64)),
    # Of 640 channels, some lanes have none.
    "turned into int8": integer_rotate(5, 128),
    "turned into int8, heads of 64": integer_rotate(10, 64),
}
QUICK = ("int8", "int8, values transposed")


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmulatedGpu:
    return emulated(tmp_path, monkeypatch)


def few_rows(case: Case, rows: int) -> list[Any]:
    """Threads are slow here: of each of the two in a batch, so many tokens."""
    x, *others = case.rounded("float16")
    tokens = x.shape[1]
    few = (each[:rows].copy() if len(each) == tokens else each for each in others)
    return [x[:, :rows].copy(), *few]


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.exhaustive) for name in CASES],
)
def test_the_source_is_what_numpy_says(gpu: EmulatedGpu, name: str) -> None:
    case = CASES[name]
    # Rows that do not fill the last thread block.
    inputs = [aligned(x) for x in few_rows(case, 3)]
    expected = case.computed(inputs, "float16")
    kernel, found = case.make(), []
    for index, shape in enumerate(kernel.output_shapes([x.shape for x in inputs])):
        found.append(aligned(empty(shape, case.type_of(index, "float16"))))
    gpu.run(kernel, inputs, found)
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.dtype == DTYPES[case.type_of(index, "float16")]
        present = found_of(case, index, one.astype(np.float64), inputs[0].shape[1])
        error = relative(present, other.astype(np.float64))
        # The last bit of a float, or a value between two of eight bits, which may go either way.
        is_rounded = case.type_of(index, "float16") != "float32"
        assert error <= (3e-3 if is_rounded else 1e-6), (index, error)


def test_a_row_of_zeros_has_a_unit(gpu: EmulatedGpu) -> None:
    case = CASES["int8"]
    inputs = [aligned(x) for x in few_rows(case, 2)]
    inputs[0][...] = 0
    kernel = case.make()
    shapes = kernel.output_shapes([x.shape for x in inputs])
    found = [aligned(empty(shape, case.type_of(i, "float16"))) for i, shape in enumerate(shapes)]
    gpu.run(kernel, inputs, found)
    assert not found[0].any()
    assert (found[3] > 0).all() and np.isfinite(found[3]).all()
