"""A bundle's graphs as engines, whatever compiled them."""

from ..errors import BundleError
from . import onnxruntime
from .base import Engine
from .bundle import Bundle


def require_runnable(bundle: Bundle) -> None:
    """Refuse a bundle whose engines cannot run here, before any of them is loaded."""
    engine = bundle.manifest.engine
    if engine.kind != onnxruntime.KIND:
        raise BundleError(
            f"{bundle.folder}: engines of kind {engine.kind}, which this version cannot run; "
            f"build with --engine {onnxruntime.KIND}"
        )
    onnxruntime.require_compatible(engine.version)


def load_engine(bundle: Bundle, graph: str, *, threads: int | None = None) -> Engine:
    path = bundle.folder / f"{graph}{onnxruntime.SUFFIX}"
    return onnxruntime.OnnxRuntimeEngine(path, threads=threads)
