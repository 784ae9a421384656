"""A LoRA adapter of any published file as safetensors, which running models take.

python -m longlive_trt.export.checkpoints.adapter_file lora.pt lora.safetensors
"""

import sys
from pathlib import Path

from safetensors.torch import save_file

from longlive_trt.errors import LongLiveError
from longlive_trt.export.checkpoints.lora import open_lora
from longlive_trt.files import publish_file


def convert(source: Path, target: Path) -> None:
    """Tensors and what the file says of rank and alpha stay as they are."""
    lora = open_lora(source)
    with publish_file(target, overwrite=False) as partial:
        tensors = {name: stored.read() for name, stored in lora.tensors.items()}
        save_file(tensors, partial, dict(lora.metadata))


if __name__ == "__main__":
    try:
        convert(*map(Path, sys.argv[1:3]))
    except (LongLiveError, OSError, TypeError) as error:
        sys.exit(f"error: {error}")
