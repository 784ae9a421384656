"""Which kind of file holds the weights, and what every kind has in common."""

import enum
import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from longlive_trt.adapters import quoted_names as quoted_names
from longlive_trt.errors import CheckpointError
from longlive_trt.reading.failures import refusing
from longlive_trt.reading.files import open_file


class FileKind(enum.Enum):
    SAFETENSORS = "safetensors"
    TORCH_ZIP = "PyTorch archive"
    PICKLE = "pickle"
    JSON = "JSON"


_LOOKS_LIKE = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the weights with `git lfs pull`"),
    (b"<", "a web page, not weights: download the file itself"),
    (b"GGUF", "a GGUF file: the original, unquantized weights are needed"),
    (b"\x1f\x8b", "gzip-compressed: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed: unpack it first"),
    (b"7z\xbc\xaf", "7z-compressed: unpack it first"),
    (b"\x93NUMPY", "a NumPy array: save the weights as safetensors"),
    (b"\x89HDF", "an HDF5 file: save the weights as safetensors"),
)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still on disk."""

    file: "TensorFile"
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self) -> torch.Tensor:
        tensor = self.file.read(self.key)
        if tuple(tensor.shape) != self.shape:
            raise CheckpointError(
                f"{self.file.path} was changed while it was being read: try again"
            )
        require_finite(tensor, f"{self.key} in {self.file.path}")
        return tensor


class TensorFile(ABC):
    path: Path
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]

    @abstractmethod
    def read(self, key: str) -> torch.Tensor:
        """A private, contiguous copy of one tensor; no other tensor is read."""


@dataclass(frozen=True)
class Entries:
    """Where in a pickled dictionary the state dict lies: the first of `names` that is there."""

    names: Sequence[str]
    bare: bool = True
    advice: str = ""


def file_kind(path: Path) -> FileKind:
    head = _read_head(path)
    # First of all, since the length that a safetensors file begins with may look like anything.
    if head[8:9] == b"{" and head[4:8] == bytes(4):
        return FileKind.SAFETENSORS
    if head.startswith(b"PK\x03\x04"):
        return FileKind.TORCH_ZIP
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return FileKind.PICKLE
    if head.lstrip()[:1] == b"{":
        return FileKind.JSON
    raise CheckpointError(f"{path} is {_describe(path, head)}")


def file_sha256(path: Path) -> str:
    status = path.stat()
    return _cached_sha256(path.resolve(), status.st_size, status.st_mtime_ns)


def require_finite(tensor: torch.Tensor, where: str) -> None:
    # Minimum and maximum carry NaN and Inf along without a mask as large as the tensor.
    if tensor.numel() and not all(bound.isfinite() for bound in tensor.aminmax()):
        raise CheckpointError(
            f"{where} holds NaN or infinite values: the weights are damaged, get them again"
        )


def _read_head(path: Path) -> bytes:
    with refusing(CheckpointError, path, "give a file of weights"), open_file(path) as file:
        return file.read(512)


def _describe(path: Path, head: bytes) -> str:
    if not head:
        return "empty: download it again"
    for magic, description in _LOOKS_LIKE:
        if head.lstrip().startswith(magic):
            return description
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if path.suffix == ".safetensors":
        return "no safetensors file, or a cut-off one: download it again"
    return "neither a PyTorch checkpoint (.pt, .pth) nor safetensors"


@functools.lru_cache(maxsize=64)
def _cached_sha256(path: Path, size_bytes: int, modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
