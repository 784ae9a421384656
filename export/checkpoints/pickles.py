"""PyTorch's own files: memory-mapped where they are archives, and never executed."""

import pickle
import re
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from longlive_trt.errors import CheckpointError
from longlive_trt.export.checkpoints.files import (
    Entries,
    FileKind,
    StoredTensor,
    TensorFile,
    file_kind,
    quoted_names,
)

# Mapped pages count as resident memory until the file is closed, so it is reopened now and then.
_REOPEN_AFTER_BYTES = 512 * 2**20


class PickleFile(TensorFile):
    def __init__(self, path: Path, entries: Entries) -> None:
        self.path = path
        self.metadata: Mapping[str, str] = {}
        # torch.load takes any file of that name for a safetensors file, unless given it open.
        self._mapped = file_kind(path) is FileKind.TORCH_ZIP and path.suffix != ".safetensors"
        tree = self._unpickle()
        self.entry = _choose_entry(path, tree, entries)
        self._state: Mapping[str, torch.Tensor] = tree[self.entry] if self.entry else tree
        self._bytes_read = 0
        self._reading = threading.Lock()
        _require_tensors(path, self._state)
        self.tensors = {
            key: StoredTensor(self, key, tuple(tensor.shape), tensor.dtype)
            for key, tensor in self._state.items()
        }

    def read(self, key: str) -> torch.Tensor:
        with self._reading:
            if self._mapped and self._bytes_read > _REOPEN_AFTER_BYTES:
                self._reopen()
            tensor = self._state[key].detach()
            self._bytes_read += tensor.nbytes
            return tensor.clone(memory_format=torch.contiguous_format)

    def _reopen(self) -> None:
        self._state = {}
        tree = self._unpickle()
        self._state = tree[self.entry] if self.entry else tree
        self._bytes_read = 0

    def _unpickle(self) -> Mapping[str, Any]:
        try:
            tree = self._load()
        except pickle.UnpicklingError as error:
            raise _refused(self.path, str(error)) from error
        except Exception as error:  # a damaged pickle raises whatever its first wrong byte leads to
            raise CheckpointError(
                f"{self.path} cannot be read as a PyTorch checkpoint: it is damaged, cut off, or "
                f"written by something else ({_first_line(error)}). Get the file again"
            ) from error
        if not isinstance(tree, Mapping):
            raise CheckpointError(
                f"{self.path} holds a {type(tree).__name__}, not a dictionary of tensors: "
                "save the model's state_dict()"
            )
        return tree

    def _load(self) -> Any:
        with self.path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(
                self.path if self._mapped else file,
                map_location="cpu",
                weights_only=True,
                mmap=self._mapped,
            )


def _choose_entry(path: Path, tree: Mapping[str, Any], entries: Entries) -> str:
    for name in entries.names:
        if isinstance(tree.get(name), Mapping):
            return name
    if entries.bare and any(isinstance(value, torch.Tensor) for value in tree.values()):
        return ""
    wanted = " or ".join(entries.names)
    raise CheckpointError(
        f"{path} has no entry {wanted}; it holds {quoted_names(list(tree)) or 'nothing'}. "
        f"{entries.advice}".rstrip()
    )


def _require_tensors(path: Path, state: Mapping[Any, Any]) -> None:
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path}: the entry {key!r} is of type {type(value).__name__}, not a named tensor: "
                "save the model's state_dict() alone"
            )
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise CheckpointError(
                f"{path}: {key} is a sparse, quantized or empty-handed tensor: save plain tensors"
            )


def _refused(path: Path, message: str) -> CheckpointError:
    found = re.search(r"GLOBAL ([\w.]+)", message)
    if not found:
        return CheckpointError(
            f"{path} is a damaged or cut-off pickle, or holds more than tensors: get it again"
        )
    return CheckpointError(
        f"{path} is a pickle that asks for {found[1]}. Only tensors and plain containers are read "
        "from pickles; nothing was executed. Use a safetensors file, or one from its first source"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
