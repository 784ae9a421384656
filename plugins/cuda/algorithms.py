"""Algorithms of cuBLASLt that were measured to be faster than the library's own first proposal.

They are data, ``algorithms.json``: by the GPU's name, the library's version and the product. So
the choice is the same, and with it every bit, on every host of the kind. The file is made by
``benchmarks/kernels/products.py``. Where it has nothing to say, the library's first proposal is
taken.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from longlive_trt.reading.documents import parse_json
from longlive_trt.reading.failures import InvalidFieldError
from longlive_trt.reading.files import MIB, read_bytes
from longlive_trt.reading.shapes import structured

TABLE = Path(__file__).with_name("algorithms.json")
ALGORITHM_BYTES = 64
_ignored = ContextVar("ignored", default=False)


@dataclass(frozen=True)
class Measured:
    """One choice. ``product`` is that of ``cublaslt.Product`` by its fields."""

    gpu: str
    library: int
    """The version, as cuBLASLt says it."""
    product: Mapping[str, Any]
    algorithm: str
    """What the library keeps of it, in hexadecimal digits; good for this version alone."""
    of_first: float
    """Its time as a share of the first proposal's: a record, nothing more."""

    def __post_init__(self) -> None:
        try:
            size = len(bytes.fromhex(self.algorithm))
        except ValueError:
            size = 0
        if size != ALGORITHM_BYTES:
            allowed = f"{2 * ALGORITHM_BYTES} hexadecimal digits"
            raise InvalidFieldError("algorithm", self.algorithm, allowed)


@dataclass(frozen=True)
class Table:
    products: tuple[Measured, ...]


def read_table(path: Path = TABLE) -> Table:
    return structured(Table, parse_json(read_bytes(path, MIB)))


def measured(gpu: str, library: int, product: Any) -> bytes | None:
    """What was measured for a product (a dataclass) on such a GPU, if anything was."""
    found = _by_key().get(_key(gpu, library, asdict(product)))
    return None if found is None else bytes.fromhex(found.algorithm)


@contextmanager
def ignored() -> Iterator[None]:
    """For comparisons: products that are met first inside take the library's first proposal."""
    token = _ignored.set(True)
    try:
        yield
    finally:
        _ignored.reset(token)


def is_ignored() -> bool:
    return _ignored.get()


@cache
def _by_key() -> Mapping[Any, Measured]:
    return {_key(each.gpu, each.library, each.product): each for each in read_table().products}


def _key(gpu: str, library: int, product: Mapping[str, Any]) -> Any:
    return gpu, library, tuple(sorted(product.items()))
