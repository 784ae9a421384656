"""Graphs as they were written."""

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir

from longlive_trt.contract import KERNEL_DOMAIN


def specs_in(graph: Path) -> list[dict[str, Any]]:
    """What its nodes of ours say, in running order."""
    nodes = [node for node in ir.load(graph).graph if node.domain == KERNEL_DOMAIN]
    return [json.loads(node.attributes["spec"].as_string()) for node in nodes]
