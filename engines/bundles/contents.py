"""Whether a manifest lists all that its graphs need."""

from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.engines.registry import KINDS
from longlive_trt.errors import BundleError
from longlive_trt.exports import TOKENIZER_NAME


def require_complete(bundle: Bundle) -> None:
    """Refuse a bundle that lacks a file, be its manifest ever so true to what is there."""
    manifest = bundle.manifest
    kind = KINDS.get(manifest.engine.kind)
    needed = {
        name: f"graph {graph}"
        for graph in manifest.graphs
        for name in (kind.needed_files(bundle, graph) if kind is not None else ())
    }
    if TOKENIZER_NAME in manifest.onnx:
        needed[TOKENIZER_NAME] = "reading prompts"
    missing = sorted(needed.keys() - manifest.files.keys())
    if missing:
        raise BundleError(
            f"{bundle.folder}: its manifest does not list {missing[0]}, which {needed[missing[0]]} "
            "needs; build or fetch the bundle again"
        )
