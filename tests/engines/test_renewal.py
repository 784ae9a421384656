"""Which histories may be renewed where they lie: told from what reads them and what writes them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from longlive_trt.engines.graphs.builder import GraphBuilder
from longlive_trt.engines.renewal import renewable
from longlive_trt.precision import PRECISIONS

SHAPE = (1, 2, 4, 6, 16)


class Graph:
    """One history, a tensor of frames beside it, and what is made of both."""

    def __init__(self) -> None:
        self.builder = GraphBuilder("vae_next", PRECISIONS["fp16"])
        self.frames = self.builder.input("latents", SHAPE)
        self.history = self.builder.input("cache.0", SHAPE)

    def op(self, *arguments: Any, **options: Any) -> Any:
        return self.builder.op(*arguments, **options)

    def last_two(self, value: ir.Value) -> Any:
        start, end, axis = (self.builder.constant([n], np.int64) for n in (-2, 1 << 40, 1))
        return self.op("Slice", value, start, end, axis)

    def renewable(self, renewed: ir.Value) -> bool:
        self.builder.output("cache_next.0", renewed, SHAPE)
        return renewable(self.builder.model()) == {"cache.0"}


def test_what_is_cut_from_a_copy_comes_after_it() -> None:
    graph = Graph()
    both = graph.op("Concat", graph.history, graph.frames, axis=1)
    assert graph.renewable(graph.last_two(both))


def test_what_does_not_wait_for_the_readers_may_come_before_them() -> None:
    graph = Graph()
    graph.op("Concat", graph.history, graph.frames, axis=1)
    assert not graph.renewable(graph.last_two(graph.frames))


@pytest.mark.parametrize("is_later", [True, False])
def test_who_reads_the_same_memory_under_another_name_counts(is_later: bool) -> None:
    graph = Graph()
    shape = graph.builder.constant([1, 2, -1], np.int64)
    flat = graph.op("Reshape", graph.history, shape)
    read = graph.op("Relu", flat)
    back = graph.op("Reshape", read, graph.builder.constant(SHAPE, np.int64))
    source = back if is_later else graph.frames
    assert graph.renewable(graph.last_two(graph.op("Neg", source))) == is_later


@pytest.mark.parametrize(("kernel", "is_safe"), [("vae_stack", True), ("vae_quantize", False)])
def test_a_kernel_that_reads_and_writes_must_read_first(kernel: str, is_safe: bool) -> None:
    graph = Graph()
    _, renewed = graph.builder.kernel(kernel, graph.frames, graph.history, outputs=2, batch=1)
    assert graph.renewable(renewed) == is_safe


def test_a_convolution_that_reads_the_history_later_forbids_it() -> None:
    graph = Graph()
    stacked, renewed = graph.builder.kernel(
        "vae_stack", graph.frames, graph.history, outputs=2, batch=1
    )
    graph.builder.kernel("vae_conv", stacked, graph.history)
    assert not graph.renewable(renewed)


def test_every_history_of_a_bundle_for_a_cpu_is_renewed_in_place(small_vae_bundle: Path) -> None:
    model = ir.load(small_vae_bundle / "vae_next.onnx")
    histories = {str(v.name) for v in model.graph.inputs} - {"latents"}
    assert len(histories) > 10 and renewable(model) == histories
