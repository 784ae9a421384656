"""Layers that are copied in a graph are those that would have been traced."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from hashlib import sha256

import numpy as np
import onnx_ir as ir
import pytest
from torch import nn

from longlive_trt.calibration.quantized import LayerSwapper, quantized_specs
from longlive_trt.calibration.recipes import FP8, INT8, Extras
from longlive_trt.calibration.targets import Selection, select_layers
from longlive_trt.configs import load_config
from longlive_trt.export import tracing
from longlive_trt.export.components import expected_shapes, prompt_spec, step_spec, text_spec
from longlive_trt.export.models.transformer import Transformer
from longlive_trt.export.repeating import NotAlikeError, are_alike, repeat
from longlive_trt.export.tracing import GraphSpec, TracedGraph, trace

LAYERS = 6


def specs() -> dict[str, GraphSpec]:
    overrides = [f"transformer.layers={LAYERS}", f"text_encoder.layers={LAYERS}"]
    config = load_config("tiny", overrides=overrides)
    layers = select_layers(config.transformer, Selection())
    swap = LayerSwapper(FP8, layers, frozenset(layers), Extras(attention=INT8))
    (quantized,) = quantized_specs([step_spec(config)], swap)
    plain = (prompt_spec(config), text_spec(config), step_spec(config))
    return {**{spec.name: spec for spec in plain}, "step in eight bits": quantized}


def meaning(graph: TracedGraph) -> tuple[Counter[str], list[tuple[str, ...]]]:
    """All nodes by what they compute from what, in any order, and the graph's ends.

    The size of a batch may be read from any input that has it.
    """
    model = graph.model
    known = {value: str(value.name) for value in model.graph.inputs}
    for name, value in model.graph.initializers.items():
        number = None if value.const_value is None else value.const_value.numpy()
        known[value] = name if number is None else digest(number.dtype, number.tobytes())
    nodes: Counter[str] = Counter()
    for node in model.graph:
        given = [None if value is None else known[value] for value in node.inputs]
        if node.op_type == "Shape" and node.attributes.get_int("end", 0) == 1:
            given = ["batch"]
        attributes = sorted((name, str(each.value)) for name, each in node.attributes.items())
        results = [(str(value.type), str(value.shape)) for value in node.outputs]
        made = digest(node.op_identifier(), attributes, given, results)
        nodes[made] += 1
        known |= {value: f"{made} {place}" for place, value in enumerate(node.outputs)}
    ends = (*model.graph.inputs, *model.graph.outputs)
    return nodes, [(str(v.name), str(v.shape), str(v.type), known[v]) for v in ends]


def digest(*parts: object) -> str:
    return sha256(repr(parts).encode()).hexdigest()


@pytest.mark.parametrize(
    "name",
    [
        "prompt",
        *(
            pytest.param(n, marks=pytest.mark.exhaustive)
            for n in ("text", "step", "step in eight bits")
        ),
    ],
)
def test_a_graph_of_copies_is_the_one_that_is_traced_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = specs()[name]
    wholes: list[int] = []
    whole = tracing._traced_whole

    def counted(spec: GraphSpec) -> tuple[ir.Model, dict[str, ir.Value]]:
        wholes.append(spec.layers)
        return whole(spec)

    monkeypatch.setattr(tracing, "_traced_whole", counted)
    found = trace(spec)
    monkeypatch.setattr(tracing, "TRACED_LAYERS", LAYERS)
    expected = trace(spec)
    assert wholes == [4, LAYERS]
    assert found.weights.keys() == expected.weights.keys()
    assert found.transposed == expected.transposed
    assert meaning(found) == meaning(expected)


@pytest.mark.exhaustive
def test_all_forty_layers_of_14b_are_in_its_graphs() -> None:
    config = load_config("wan-14b")
    found: dict[str, tuple[int, ...]] = {}
    for spec in (step_spec(config), prompt_spec(config)):
        graph = trace(spec)
        for name, value in graph.weights.items():
            assert value.shape is not None
            shape = tuple(value.shape.numpy())
            found[name] = shape[::-1] if name in graph.transposed else shape
    assert config.transformer.layers == 40
    assert found == expected_shapes(lambda: Transformer(config.transformer))


def test_layers_that_differ_are_all_traced() -> None:
    """As where one of them stays in 16 bits."""
    config = load_config("tiny", overrides=[f"transformer.layers={LAYERS}"])
    everything = select_layers(config.transformer, Selection(exclude=()))
    layers = tuple(name for name in everything if not name.startswith("blocks.4.cross_attn"))
    swap = LayerSwapper(FP8, layers, frozenset())
    (spec,) = quantized_specs([prompt_spec(config)], swap)
    weights = trace(spec).weights
    assert "blocks.3.cross_attn.k.weight_scale" in weights
    assert "blocks.4.cross_attn.k.weight_scale" not in weights


def test_modules_are_alike_up_to_the_values_of_their_parameters() -> None:
    assert are_alike([nn.Linear(2, 3), nn.Linear(2, 3)])
    assert not are_alike([nn.Linear(2, 3), nn.Linear(2, 4)])
    assert not are_alike([nn.Linear(2, 3), nn.Linear(2, 3, bias=False)])
    assert not are_alike([nn.Linear(2, 3), nn.Linear(2, 3).half()])


class Chain:
    """x + w.0, then + w.1, and so on: each sum is an output too."""

    def __init__(self, operators: str = "Add Add Add Add", outputs: str = "0123") -> None:
        kind, shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([2])
        ends = [
            ir.Value(name=n, type=kind, shape=shape) for n in ("x", *map("w.{}".format, "0123"))
        ]
        self.x, *self.w = ends
        self.nodes: list[ir.Node] = []
        value = self.x
        for layer, operator in enumerate(operators.split()):
            made = ir.Value(name=f"y.{layer}", type=kind, shape=shape)
            inputs = [value, self.w[layer]]
            self.nodes.append(ir.Node("", operator, inputs, outputs=[made], name=f"n{layer}"))
            value = made
        shown = [self.nodes[int(layer)].outputs[0] for layer in outputs]
        self.graph = ir.Graph(ends, shown, nodes=self.nodes, opset_imports={"": 24}, name="chain")

    def repeated(self, layers: int) -> ir.Graph:
        repeat(self.graph, layers, {f"w.{layer}": layer for layer in range(4)})
        return self.graph


@pytest.mark.parametrize("layers", [4, 5, 11])
def test_a_chain_gets_longer(layers: int) -> None:
    graph = Chain().repeated(layers)
    assert {v.name for v in graph.inputs} == {"x", *(f"w.{n}" for n in range(layers))}
    assert {v.name for v in graph.outputs} == {f"y.{n}" for n in range(layers)}
    assert len(list(graph)) == layers
    values = {
        v.name: np.float64(3.0 ** int(str(v.name)[2:] or 0)) for v in graph.inputs if v.name != "x"
    }
    values["x"] = np.float64(0.5)
    for node in graph:
        first, second = (values[v.name] for v in node.inputs if v is not None)
        values[node.outputs[0].name] = first + second
    for n in range(layers):
        assert values[f"y.{n}"] == 0.5 + sum(3.0**k for k in range(n + 1))


def skipping() -> Chain:
    """The fourth looks two back."""
    chain = Chain()
    chain.nodes[3].replace_input_with(0, chain.nodes[1].outputs[0])
    return chain


def with_other_names() -> Chain:
    chain = Chain()
    chain.w[2].name = "v.2"
    return chain


@pytest.mark.parametrize(
    "make",
    [
        partial(Chain, "Add Add Mul Add"),
        partial(Chain, outputs="023"),
        skipping,
        with_other_names,
    ],
)
def test_what_differs_in_more_than_names_is_not_repeated(
    make: Callable[[], Chain],
) -> None:
    chain = make()
    owned = {str(value.name): layer for layer, value in enumerate(chain.w)}
    with pytest.raises(NotAlikeError):
        repeat(chain.graph, 7, owned)
