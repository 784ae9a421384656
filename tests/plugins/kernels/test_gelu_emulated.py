"""The source of the product with GELU, thread by thread on a CPU, against what its node means.

Barriers, turns, the ring, descriptors and the places of all results are those of the source; what
tensor cores and copy engine do is imagined.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

from longlive_trt.architectures import HOPPER
from longlive_trt.basics import Array
from longlive_trt.plugins.kernels import gelu_product
from longlive_trt.plugins.kernels.gelu_product import GeluProduct
from tests.fakes.emulation import COMPILER, EmulatedGpu, aligned, emulated, tensor_map
from tests.plugins.kernels.arrays import FLOAT8, computed
from tests.plugins.kernels.gelu_inputs import gelu_inputs

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")
_POISON = 0x7F


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmulatedGpu:
    gpu = emulated(tmp_path, monkeypatch, multiprocessors=2)
    facts = SimpleNamespace(architecture=HOPPER, multiprocessors=2)
    monkeypatch.setattr(gelu_product, "tensor_map", tensor_map)
    monkeypatch.setattr(gelu_product, "device_facts", lambda _device: facts)
    return gpu


def check(
    gpu: EmulatedGpu, rows: int, inner: int, columns: int, bias_type: str = "bfloat16"
) -> None:
    inputs, scale = gelu_inputs(rows, inner, columns, bias_type, seed=rows + columns)
    kernel = GeluProduct(activation="gelu", scale=scale, narrow=True)
    (wanted,) = computed(kernel, inputs, FLOAT8)
    # Nothing but the rows themselves is written.
    beyond = 3
    memory = aligned(np.full((rows + beyond, columns), _POISON, np.uint8))
    gpu.run(kernel, [aligned(array) for array in inputs], [memory[:rows].view(FLOAT8)])
    assert gpu.launches == 1
    assert np.all(memory[rows:] == _POISON)
    check_neighbors(memory[:rows].view(FLOAT8), wanted)


def check_neighbors(found: Array, wanted: Array) -> None:
    """Sums in another order round to the next number now and then."""
    one, other = found.astype(np.float32), wanted.astype(np.float32)
    assert np.all(np.abs(one - other) <= np.abs(other) / 8 + 2.0**-9)
    assert np.count_nonzero(one != other) <= 2 + 1e-3 * one.size


def test_blocks_change_their_weights(gpu: EmulatedGpu) -> None:
    """By turns of two warpgroups; the second block begins in the middle of the second columns."""
    check(gpu, 130, 256, 384, "float16")


def test_every_unit_has_its_own_weights(gpu: EmulatedGpu) -> None:
    check(gpu, 1, 128, 384)


def test_the_ring_of_a_whole_row(gpu: EmulatedGpu) -> None:
    check(gpu, 65, 1536, 128)


@pytest.mark.exhaustive
@pytest.mark.parametrize("columns", [128, 256, 640])
@pytest.mark.parametrize(("inner", "bias_type"), [(128, "bfloat16"), (640, "float16")])
@pytest.mark.parametrize("rows", [1, 33, 200, 321])
def test_shapes(gpu: EmulatedGpu, rows: int, inner: int, columns: int, bias_type: str) -> None:
    check(gpu, rows, inner, columns, bias_type)
