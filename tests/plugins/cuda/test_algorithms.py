"""Which algorithm a product takes: what was measured, or the library's first proposal."""

import ctypes
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from longlive_trt.plugins.cuda import algorithms, cublaslt
from longlive_trt.plugins.cuda.algorithms import ALGORITHM_BYTES, Measured, ignored, read_table
from longlive_trt.plugins.cuda.cublaslt import (
    WORKSPACE_BYTES,
    Algorithm,
    Product,
    chosen_algorithm,
)
from longlive_trt.reading.failures import ReadingError

PRODUCT = Product(4680, 1536, 1536, "float8_e4m3", "bfloat16", bias=True, transposed=True)
GPU, VERSION = "NVIDIA H200", 130100
MEASURED, FIRST = bytes(range(ALGORITHM_BYTES)), b"\x07" * ALGORITHM_BYTES


class Library:
    """As much of cuBLASLt as chooses an algorithm."""

    def __init__(self) -> None:
        self.version, self.refuses, self.workspace_bytes = VERSION, False, 4096
        self.checked: list[bytes] = []

    def cublasLtGetVersion(self) -> int:  # noqa: N802
        return self.version

    def cublasLtMatmulAlgoGetHeuristic(self, *arguments: Any) -> int:  # noqa: N802
        *_, most, proposed, count = arguments
        assert most.value >= 2
        for index, state in enumerate((FIRST, MEASURED)):
            ctypes.memmove(proposed[index].algorithm, state, len(state))
        count._obj.value = 2
        return 0

    def cublasLtMatmulAlgoCheck(self, *arguments: Any) -> int:  # noqa: N802
        *_, kept, result = arguments
        self.checked.append(bytes(kept._obj))
        result._obj.workspace_bytes = self.workspace_bytes
        return 15 if self.refuses else 0

    def __getattr__(self, name: str) -> Any:
        assert name.startswith("cublasLt")
        return lambda *_: 0


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Library]:
    found = Library()
    monkeypatch.setattr(cublaslt, "_library", lambda: found)
    monkeypatch.setattr(cublaslt, "_handle", lambda device: 1)
    monkeypatch.setattr(cublaslt, "device_facts", lambda device: SimpleNamespace(name=GPU))
    row = Measured(GPU, VERSION, asdict(PRODUCT), MEASURED.hex(), 0.894)
    path = tmp_path / "algorithms.json"
    path.write_text(json.dumps({"products": [asdict(row)]}))
    monkeypatch.setattr(algorithms, "read_table", lambda: read_table(path))
    caches = (algorithms._by_key, cublaslt._measured, cublaslt._first)
    for each in caches:
        each.cache_clear()
    yield found
    for each in caches:
        each.cache_clear()


def state_of(algorithm: Algorithm) -> bytes:
    return bytes(algorithm.algorithm)


def test_what_was_measured_is_taken(library: Library) -> None:
    assert state_of(chosen_algorithm(PRODUCT, 0)) == MEASURED
    assert library.checked == [MEASURED]


def test_other_products_and_versions_take_the_first_proposal(library: Library) -> None:
    other = Product(**{**asdict(PRODUCT), "rows": 4681})
    assert state_of(chosen_algorithm(other, 0)) == FIRST
    library.version += 1
    cublaslt._measured.cache_clear()
    assert state_of(chosen_algorithm(PRODUCT, 0)) == FIRST
    assert library.checked == []


def test_the_table_can_be_ignored_for_a_comparison(library: Library) -> None:
    with ignored():
        assert state_of(chosen_algorithm(PRODUCT, 0)) == FIRST
    assert state_of(chosen_algorithm(PRODUCT, 0)) == MEASURED


@pytest.mark.parametrize("fault", ["refused", "too large a workspace"])
def test_what_cannot_be_used_is_said_and_left(
    library: Library, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    library.refuses = fault == "refused"
    library.workspace_bytes = WORKSPACE_BYTES + (fault != "refused")
    assert state_of(chosen_algorithm(PRODUCT, 0)) == FIRST
    assert "the algorithm that was measured for Product(rows=4680" in caplog.text


def test_the_table_that_is_shipped_can_be_read() -> None:
    for row in read_table().products:
        assert Product(**row.product).dtype == "float8_e4m3"
        assert 0 < row.of_first < 1


@pytest.mark.parametrize("algorithm", ["", "00" * 63, "zz" * 64])
def test_a_damaged_table_is_refused(algorithm: str, tmp_path: Path) -> None:
    row = {"gpu": GPU, "library": 1, "product": {}, "algorithm": algorithm, "of_first": 0.9}
    path = tmp_path / "algorithms.json"
    path.write_text(json.dumps({"products": [row]}))
    with pytest.raises(ReadingError, match="128 hexadecimal digits"):
        read_table(path)


@pytest.mark.gpu
def test_a_kept_algorithm_is_the_one_that_was_proposed(need_gpu: Any) -> None:
    """What the library proposed, kept as bytes and restored, is accepted by it."""
    need_gpu((8, 9))
    product = Product(**{**asdict(PRODUCT), "bias_dtype": "bfloat16"})
    for proposed in cublaslt.proposals(product, 0):
        restored = cublaslt._restored(product, 0, state_of(proposed))
        assert restored is not None and state_of(restored) == state_of(proposed)


@pytest.mark.gpu
def test_every_algorithm_that_is_shipped_for_this_gpu_can_be_used(need_gpu: Any) -> None:
    need_gpu((8, 9))
    gpu, version = cublaslt.device_facts(0).name, cublaslt.library_version()
    for row in read_table().products:
        if (row.gpu, row.library) == (gpu, version):
            product = Product(**row.product)
            assert cublaslt._restored(product, 0, bytes.fromhex(row.algorithm)) is not None
