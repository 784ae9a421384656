"""Which optional dependency brings which module, and the command that adds it."""

import importlib.util
import json
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from longlive_trt.errors import MissingExtraError
from longlive_trt.probes import has_nvidia_gpu, installed_version

DISTRIBUTION = "longlive-trt"
ENGINE_MODULE = "onnxruntime"
ENGINE_PACKAGES = ("onnxruntime-gpu", "onnxruntime")
EXTRA_OF_MODULE = {
    "onnxscript": "export",
    "torch": "export",
    "huggingface_hub": "quantize",
    "modelopt": "quantize",
    "requests": "quantize",
    "transformers": "quality",
    "fastapi": "serve",
    "prometheus_client": "serve",
    "uvicorn": "serve",
    "websockets": "serve",
    "ray": "cluster",
    "cuda": "gpu",
    "polygraphy": "tensorrt",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "tensorrt_rtx_bindings": "tensorrt-rtx",
}

EXPORTING = ("torch", "onnxscript", ENGINE_MODULE)
"""What exports are made with, and compared with torch."""
QUANTIZING = (*EXPORTING, "modelopt", "requests", "huggingface_hub")
SERVING = (ENGINE_MODULE, "fastapi", "uvicorn", "websockets", "prometheus_client")
CLUSTER = (*SERVING, "ray")

_ROOT = Path(__file__).resolve().parents[1]


def missing_module_message(module: str, others: Iterable[str] = ()) -> str | None:
    """What to do about a module that cannot be imported; None if no extra brings it.

    ``others`` will be needed too: those that are missing as well are added by the same command.
    """
    missing = [module.partition(".")[0]]
    missing += [other for other in others if other not in missing and not _is_there(other)]
    extras = list(dict.fromkeys(filter(None, map(_extra_of, missing))))
    if _extra_of(missing[0]) is None:
        return None
    listed = " and ".join([*([", ".join(missing[:-1])] if missing[1:] else []), missing[-1]])
    are = "are" if missing[1:] else "is"
    return f"this needs {listed}, which {are} not installed: {install_command(','.join(extras))}"


def require_modules(modules: Iterable[str]) -> None:
    """Refuse, before any work, what some modules are missing for, and name all of them."""
    missing = [module for module in modules if not _is_there(module)]
    message = missing_module_message(missing[0], missing[1:]) if missing else None
    if message is not None:
        raise MissingExtraError(message)


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _extra_of(module: str) -> str | None:
    return engine_extra() if module == ENGINE_MODULE else EXTRA_OF_MODULE.get(module)


@contextmanager
def with_install_hint() -> Iterator[None]:
    """A module that is missing and that an extra brings is said with the command that adds it."""
    try:
        yield
    except ModuleNotFoundError as error:
        hint = missing_module_message(error.name or "")
        if hint is not None:
            error.add_note(hint)
        raise


def engine_extra() -> str:
    """The extra with the engine for this machine."""
    return "gpu" if has_nvidia_gpu() else "cpu"


def engine_command(extra: str) -> str:
    """Makes ``extra``'s engine the only one: ``cpu`` and ``gpu`` write the same files."""
    return f"pip uninstall -y onnxruntime onnxruntime-gpu && {install_command(extra)}"


def engine_upgrade(version: str) -> str:
    """What brings the engine in this version at least."""
    installed = (package for package in ENGINE_PACKAGES if installed_version(package))
    package = next(installed, None)
    return f"pip install '{package}>={version}'" if package else install_command(engine_extra())


def install_command(extra: str) -> str:
    """For pip, from where this package came from: an index, a checkout, a file or a repository."""
    if (_ROOT / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(f'{_ROOT}[{extra}]')}"
    return f"pip install {shlex.quote(_requirement(extra, _direct_origin()))}"


def _direct_origin() -> dict[str, Any]:
    """What pip notes of an installation that is not from an index (PEP 610)."""
    from importlib import metadata

    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        text = None
    origin: dict[str, Any] = json.loads(text) if text else {}
    return origin


def _requirement(extra: str, origin: dict[str, Any]) -> str:
    url = urlsplit(origin.get("url", ""))
    path = unquote(url.path)
    if url.scheme == "file" and Path(path).exists():
        return f"{path}[{extra}]"
    if url.scheme in ("", "file"):
        return f"{DISTRIBUTION}[{extra}]"
    repository = origin.get("vcs_info")
    address = url.geturl()
    if repository:
        address = f"{repository['vcs']}+{address}@{repository['commit_id']}"
    return f"{DISTRIBUTION}[{extra}] @ {address}"
