"""Weights of networks that judge pictures: files of the user's own, and nothing is executed."""

from pathlib import Path
from typing import Any

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
    return {name: tensor.float() for name, tensor in tensors.items() if tensor.is_floating_point()}


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
            values = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            # What a foreign file makes torch raise is of any kind.
            reason = str(error).strip().splitlines()
            raise ReadingError(f"no weights that torch reads ({_first(reason)})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{option} {path}: no state dict, but a {type(values).__name__}")
    return values


def _first(lines: list[str]) -> str:
    return lines[0].split(". ")[0][:120] if lines else "it is empty"
