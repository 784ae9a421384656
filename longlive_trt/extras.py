"""Which optional dependency brings which module, and the command that adds it."""

from collections.abc import Iterator
from contextlib import contextmanager

EXTRA_OF_MODULE = {
    "onnx_ir": "export",
    "onnxscript": "export",
    "torch": "export",
    "PIL": "quantize",
    "huggingface_hub": "quantize",
    "modelopt": "quantize",
    "requests": "quantize",
    "fastapi": "serve",
    "prometheus_client": "serve",
    "uvicorn": "serve",
    "websockets": "serve",
    "cuda": "gpu",
    "polygraphy": "tensorrt",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "tensorrt_rtx_bindings": "tensorrt-rtx",
}


def install_command(extra: str) -> str:
    return f"pip install 'longlive-trt[{extra}]'"


def missing_module_message(module: str) -> str | None:
    """What to do about a module that cannot be imported; None if no extra brings it."""
    top_level = module.partition(".")[0]
    extra = EXTRA_OF_MODULE.get(top_level)
    if extra is None:
        return None
    return f"this command needs {top_level}, which is not installed: {install_command(extra)}"


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
