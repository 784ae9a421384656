"""What is there to run steps on, asked without a context on any GPU."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

from benchmarks.gpu.steps import Step
from benchmarks.harness import cpu_name

_QUESTIONS = (
    *("index", "uuid", "name", "compute_cap", "driver_version"),
    *("power.limit", "clocks.sm", "clocks.max.sm"),
    *("memory.total", "temperature.gpu"),
)


_EVERYWHERE = (
    *("torch", "onnx", "onnxscript", "onnxruntime", "av", "ftfy", "safetensors", "tokenizers"),
    *("zstandard", "cuda.bindings", "cuda.core"),
)
"""What all steps import, or the program that they start."""
_GPU_ENGINE, _GPU_LIBRARY = "onnxruntime-gpu", "libonnxruntime_providers_cuda.so"


def _is_installed(module: str) -> bool:
    if module == _GPU_ENGINE:
        engine = find_spec("onnxruntime")
        folders = (engine and engine.submodule_search_locations) or ()
        return any(Path(each, "capi", _GPU_LIBRARY).is_file() for each in folders)
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        # Of a package that is not there.
        return False


def _is_program(name: str) -> bool:
    return which(name) is not None


@dataclass(frozen=True)
class Machine:
    gpus: tuple[dict[str, str], ...]
    """Of each, what ``nvidia-smi`` calls its properties."""
    has_module: Callable[[str], bool] = _is_installed
    has_program: Callable[[str], bool] = _is_program

    @property
    def capability(self) -> tuple[int, int]:
        major, minor = self.gpus[0]["compute_cap"].split(".")
        return int(major), int(minor)

    @property
    def names(self) -> dict[str, str]:
        """What commands and files call the GPU."""
        if not self.gpus:
            return {"card": "gpu", "sm": "sm90"}
        model = re.search(r"[A-Z]+\d+\w*", self.gpus[0]["name"])
        major, minor = self.capability
        return {"card": model[0].lower() if model else "gpu", "sm": f"sm{major}{minor}"}

    def lacks(self, step: Step) -> str | None:
        """Why a step cannot run here."""
        if len(self.gpus) < step.gpus:
            return f"needs {_gpus(step.gpus)}, and {_gpus(len(self.gpus))} can be used"
        if step.gpus and self.capability < step.capability:
            wanted, found = (".".join(map(str, one)) for one in (step.capability, self.capability))
            return f"needs compute capability {wanted}, and this GPU has {found}"
        program = step.command.split()[0]
        if program not in ("python", "longlive-trt") and not self.has_program(program):
            return f"{program} is not installed"
        modules = (*_EVERYWHERE, *([_GPU_ENGINE] if step.gpus else ()), *step.modules)
        missing = [module for module in modules if not self.has_module(module)]
        return f"not installed: {', '.join(missing)}" if missing else None

    def facts(self) -> dict[str, Any]:
        return {"gpus": self.gpus, "processor": cpu_name(), "python": sys.version.split()[0]}


def this_machine() -> Machine:
    return Machine(tuple(visible(_asked(), os.environ.get("CUDA_VISIBLE_DEVICES"))))


def visible(gpus: list[dict[str, str]], chosen: str | None) -> list[dict[str, str]]:
    """Those that programs may use here, in the order in which they count them."""
    if chosen is None:
        return gpus
    named = {gpu[key]: gpu for gpu in gpus for key in ("index", "uuid")}
    return [named[each] for each in chosen.split(",") if each in named]


def _asked() -> list[dict[str, str]]:
    question = ["nvidia-smi", f"--query-gpu={','.join(_QUESTIONS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.split(", ") for line in answer.stdout.splitlines()]
    return [dict(zip(_QUESTIONS, row, strict=True)) for row in rows]


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count or 'no'} GPUs"
