"""Runs commands in this process."""

import shutil
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from longlive_trt.cli import main

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parents[1] / "data" / "transformer"
ONE_BLOCK = ("--frames", "3")
OUT = ("--latents-out", "l.safetensors")
PROMPT = ("--prompt", "a cat")


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def succeeds(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def generate_latents(bundle: Path, *arguments: object, out: str = "latents.safetensors") -> Any:
    succeeds(
        "generate", "--bundle", bundle, *arguments, "--latents-out", out, "--overwrite", "--quiet"
    )
    return load_file(out)["latents"]


def changed_copy(bundle: Path, name: str = "changed") -> Path:
    shutil.copytree(bundle, name)
    return Path(name)
