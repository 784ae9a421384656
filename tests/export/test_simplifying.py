"""Graphs come out as onnxscript's optimizer leaves them, which takes far longer for large ones."""

import onnx_ir as ir
import onnxscript.optimizer
import pytest

from longlive_trt.configs import load_config
from longlive_trt.export import tracing
from longlive_trt.export.components import Sources, components
from longlive_trt.export.simplifying import simplify
from longlive_trt.export.tracing import GraphSpec, trace


def specs() -> dict[str, GraphSpec]:
    parts = components(load_config("tiny"), Sources(random_seed=0))
    return {spec.name: spec for part in parts for spec in part.graphs}


@pytest.mark.parametrize(
    "graph",
    [
        "prompt",
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in ("step", "vae_first", "vae_next", "encode_first", "encode_next", "text")
        ),
    ],
)
def test_the_same_graph(graph: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def both(model: ir.Model) -> None:
        before = ir.to_proto(model)
        ours, theirs = (ir.from_proto(before) for _ in range(2))
        simplify(ours)
        onnxscript.optimizer.optimize(theirs)
        compared.append(tuple(ir.to_proto(each).SerializeToString() for each in (ours, theirs)))
        simplify(model)

    monkeypatch.setattr(tracing, "simplify", both)
    trace(specs()[graph])
    ((ours, theirs),) = compared
    assert ours == theirs
