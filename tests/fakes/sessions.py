"""Sessions of ONNX Runtime on a CPU whose kernel nodes are computed with numpy."""

from pathlib import Path
from typing import Any

import onnxruntime as ort

from longlive_trt.plugins.onnxruntime_bridge import SessionNodes


def kernel_session(model: Path | bytes, library: Path | None = None) -> Any:
    """Its nodes live as long as it does."""
    options, nodes = ort.SessionOptions(), SessionNodes(library=library)
    options.log_severity_level = 4
    nodes.register(options)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    session.kernel_nodes = nodes
    return session
