"""Why a build failed, in words that help."""

import psutil

from longlive_trt.engines.trt.report import GraphReport
from longlive_trt.errors import EngineError

_GIB = 1 << 30
_OUT_OF_MEMORY = ("out of memory", "outofmemory", "bad_alloc", "insufficient memory")
_NO_KERNEL = "not supported by a dedicated kernel"

# Measured: the plan, the weights as read, and the compiler's copies of them.
_COPIES_OF_WEIGHTS = 3.0
_COMPILER_BYTES = _GIB // 4

_LESS_MEMORY = (
    "export with --precision fp16 (weights are then never converted), close other programs, or "
    "build on a larger machine and copy the bundle here"
)


def require_memory(graph: str, weights_bytes: int) -> None:
    """Refuse at once what the system would end without a word much later."""
    needed = weights_bytes * _COPIES_OF_WEIGHTS + _COMPILER_BYTES
    free = psutil.virtual_memory().available
    if needed > free:
        raise EngineError(
            f"graph {graph}: building it takes about {needed / _GIB:.1f} GiB of memory, and "
            f"{free / _GIB:.1f} GiB are free; {_LESS_MEMORY}"
        )


def explain_failure(graph: str, errors: list[str], weights_bytes: int) -> EngineError:
    reasons = "; ".join(dict.fromkeys(errors)) or "no reason was given"
    if any(word in reasons.lower() for word in _OUT_OF_MEMORY):
        return EngineError(
            f"graph {graph}: the compiler ran out of memory ({reasons}); its weights alone are "
            f"{weights_bytes / _GIB:.1f} GiB; lower --workspace-gib or --optimization-level if "
            f"the GPU's memory was short, and if this machine's was: {_LESS_MEMORY}"
        )
    if _NO_KERNEL in reasons:
        return EngineError(
            f"graph {graph}: the compiler has no fused kernel for this attention on this GPU; "
            f"build with --precision fp16 or for another --gpu, or accept slow engines with "
            f"--allow-decomposed-attention"
        )
    return EngineError(f"graph {graph}: the compiler failed: {reasons}")


def require_attention(report: GraphReport) -> None:
    faults = report.attention.faults
    if not report.layers:
        raise EngineError(
            f"graph {report.graph}: the compiler listed no layers, so nobody knows whether "
            f"attention is fused; pass --allow-decomposed-attention to build regardless"
        )
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise EngineError(
            f"graph {report.graph}: attention is not one kernel: {'; '.join(faults[:3])}{more}; "
            f"pass --allow-decomposed-attention to build regardless"
        )
