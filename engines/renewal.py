"""Which histories of a decoder a run may renew in the memory that it read them from.

That holds where all that reads a history comes before what writes the next one, however the nodes
are ordered: then one set of histories is enough, and no two take turns.
"""

from collections.abc import Iterator

import onnx_ir as ir

from longlive_trt.contract import (
    HISTORY,
    KERNEL_DOMAIN,
    KERNEL_KEY,
    KERNEL_SPEC,
    next_of,
    stem_of,
)
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.engines.registry import KINDS
from longlive_trt.reading.documents import parse_json
from longlive_trt.reading.failures import ReadingError

_SAME_MEMORY = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
"""Their result is what they read, and whoever reads it reads that."""
_READS_FIRST = "vae_stack"
"""A kernel whose next history may take the old one's memory: a thread reads a pixel's, and then
writes it."""


def renewed_in_place(bundle: Bundle, graph: str) -> frozenset[str]:
    """By the names that they have as inputs; none of compilers that may order work anew."""
    if not KINDS[bundle.manifest.engine.kind].keeps_order:
        return frozenset()
    return renewable(ir.load(bundle.folder / f"{graph}.onnx"))


def renewable(model: ir.Model) -> frozenset[str]:
    outputs = {str(value.name): value for value in model.graph.outputs}
    histories = [v for v in model.graph.inputs if stem_of(str(v.name)) == HISTORY]
    return frozenset(
        str(value.name)
        for value in histories
        if _is_read_before(value, outputs[next_of(str(value.name))])
    )


def _is_read_before(history: ir.Value, renewed: ir.Value) -> bool:
    writer = renewed.producer()
    readers = set(_readers(history))
    if writer is None or not readers:
        return False
    if writer in readers and not _reads_first(writer):
        return False
    return readers - {writer} <= _before(writer)


def _readers(value: ir.Value) -> Iterator[ir.Node]:
    for node in value.consumers():
        yield node
        if node.op_type in _SAME_MEMORY:
            yield from _readers(node.outputs[0])


def _reads_first(node: ir.Node) -> bool:
    if node.domain != KERNEL_DOMAIN:
        return False
    attribute = node.attributes.get(KERNEL_SPEC)
    try:
        spec = parse_json(attribute.as_string() if attribute is not None else "")
    except ReadingError:
        return False
    return isinstance(spec, dict) and spec.get(KERNEL_KEY) == _READS_FIRST


def _before(node: ir.Node) -> set[ir.Node]:
    """All whose results it needs."""
    found: set[ir.Node] = set()
    waiting = [node]
    while waiting:
        for value in waiting.pop().inputs:
            source = value.producer() if value is not None else None
            if source is not None and source not in found:
                found.add(source)
                waiting.append(source)
    return found
