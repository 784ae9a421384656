"""Graphs as they were written, and prompts that they can be given."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from longlive_trt.contract import CONTEXT_OF, CONTEXT_TOKENS, KERNEL_DOMAIN, stem_of

TOKENS = 4
"""Of a prompt; the last of them stands for its padding."""
ADDED_INPUT = CONTEXT_TOKENS, "tensor(int64)", [1, 1]
"""What exported graphs of a pass do not have: they attend to the padding."""


def specs_in(graph: Path) -> list[dict[str, Any]]:
    """What its nodes of ours say, in running order."""
    nodes = [node for node in ir.load(graph).graph if node.domain == KERNEL_DOMAIN]
    return [json.loads(node.attributes["spec"].as_string()) for node in nodes]


def padded(given: dict[str, Any]) -> dict[str, Any]:
    """The same inputs with a prompt's keys and values alike behind its tokens."""
    for name, tensor in given.items():
        if stem_of(name) in CONTEXT_OF.values():
            tensor[:, TOKENS:] = tensor[:, TOKENS - 1 : TOKENS]
    return {**given, CONTEXT_TOKENS: np.array([[TOKENS]])}
