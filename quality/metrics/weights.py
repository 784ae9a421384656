"""Weights of networks that judge pictures: files of the user's own, and nothing is executed."""

import warnings
from pathlib import Path
from typing import Any

from longlive_trt.console.printing import plain
from longlive_trt.errors import CheckpointError, UsageError
from longlive_trt.reading.failures import ReadingError, refusing
from longlive_trt.reading.files import file_size

_SAFETENSORS = ".safetensors"


def load_tensors(path: Path, option: str) -> dict[str, Any]:
    """All tensors of a file of torch's or of safetensors, as float32."""
    with refusing(UsageError, f"{option} {path}", "give the file with the weights"):
        file_size(path)
    values = _safetensors(path, option) if path.suffix == _SAFETENSORS else _pickled(path, option)
    import torch

    tensors = {n: t for n, t in values.items() if isinstance(n, str) and torch.is_tensor(t)}
    if len(tensors) != len(values) or not tensors:
        raise CheckpointError(
            f"{option} {path}: not tensors by name alone; give a state dict, such as "
            "torch.save(model.state_dict(), ...) writes"
        )
    numbers = {name: t.float() for name, t in tensors.items() if t.is_floating_point()}
    odd = next((name for name, t in numbers.items() if not torch.isfinite(t).all()), None)
    if odd is not None:
        raise CheckpointError(
            f"{option} {path}: {plain(odd)} holds NaN or infinity; fetch the file again"
        )
    return numbers


def _safetensors(path: Path, option: str) -> dict[str, Any]:
    import torch

    from longlive_trt.reading.tensors import read_header

    with refusing(CheckpointError, f"{option} {path}", "fetch the file again"):
        header = read_header(path)
        return {name: torch.from_numpy(array) for name, array in header.read_all().items()}


def _pickled(path: Path, option: str) -> dict[str, Any]:
    import torch

    with refusing(CheckpointError, f"{option} {path}", "give a file of weights alone"):
        try:
            with warnings.catch_warnings(action="ignore"):
                values = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            # What a foreign file makes torch raise is of any kind.
            raise ReadingError(f"no weights that torch reads{_reason(error)}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{option} {path}: no state dict, but a {type(values).__name__}")
    return values


def _reason(error: Exception) -> str:
    """In brackets, where it has words."""
    lines = str(error).strip().splitlines()
    first = lines[0].split(". ")[0][:120] if lines else ""
    return f" ({first})" if " " in first else ""
