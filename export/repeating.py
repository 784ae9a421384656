"""Graphs of many layers out of four that were traced: what is alike is copied, not traced again.

The first layer and the last have neighbours that others have not. The two between differ in
nothing but the names of what belongs to a layer, so that the later of them can be written once
more, after itself, for every layer that is missing.
"""

import re
from collections.abc import Iterable, Mapping

import onnx_ir as ir
from torch import nn

TRACED_LAYERS = 4
_NO_LAYER, _FIRST, _EARLIER, _LATER, _LAST = range(-1, TRACED_LAYERS)
_NUMBER = re.compile(r"(\d+)")

Names = tuple[str, str]
"""Of an input or output of the graph: in the earlier layer between, and in the later one."""


class NotAlikeError(Exception):
    """Layers that differ in more than names."""


def are_alike(layers: Iterable[nn.Module]) -> bool:
    """As far as modules tell."""
    return len({_kind(layer) for layer in layers}) == 1


def _kind(layer: nn.Module) -> tuple[str, str]:
    parameters = [(name, p.shape, p.dtype) for name, p in layer.named_parameters()]
    return str(layer), str(parameters)


def repeat(graph: ir.Graph, layers: int, owned: Mapping[str, int]) -> None:
    """Make a graph of so many layers out of one of ``TRACED_LAYERS``.

    ``owned``: the layers that inputs belong to, by name. Others may belong to one too, where a
    layer takes them together with its own. What is added to inputs and outputs comes last.
    """
    _Repeating(graph, owned).run(layers)


class _Repeating:
    def __init__(self, graph: ir.Graph, owned: Mapping[str, int]) -> None:
        self._graph, self._outputs = graph, frozenset(graph.outputs)
        self._layer_of = _layers(graph, owned)
        self._nodes: list[list[ir.Node]] = [[] for _ in range(TRACED_LAYERS)]
        for node in graph:
            layer = self._layer_of[node.outputs[0]]
            if layer != _NO_LAYER:
                self._nodes[layer].append(node)
        self._later_of: dict[ir.Value, ir.Value] = {}
        """Of what the earlier layer computes."""
        self._names: dict[ir.Value, Names] = {}
        """Of the later layer's inputs and outputs of the graph."""
        self._pair()
        self._require_last()

    def run(self, layers: int) -> None:
        last = self._nodes[_LAST]
        self._graph.remove(last)
        self._rename_last(layers - 1)
        made: dict[ir.Value, ir.Value] = {}
        for layer in range(_LAST, layers - 1):
            made = self._add(layer, made)
        for node in last:
            for index, value in enumerate(node.inputs):
                if value in made:
                    node.replace_input_with(index, made[value])
        self._graph.extend(last)

    def _pair(self) -> None:
        """Find what is the same in both layers between, and that nothing else is in them."""
        earlier, later = self._nodes[_EARLIER], self._nodes[_LATER]
        if [_meaning(node) for node in earlier] != [_meaning(node) for node in later]:
            raise NotAlikeError("nodes")
        for one, other in zip(earlier, later, strict=True):
            for before, value in zip(one.outputs, other.outputs, strict=True):
                self._later_of[before] = value
                if (before in self._outputs) != (value in self._outputs):
                    raise NotAlikeError(f"{value.name}: an output of the graph in one of them")
                if value in self._outputs:
                    self._names[value] = _name(before), _name(value)
        for one, other in zip(earlier, later, strict=True):
            for given, taken in zip(one.inputs, other.inputs, strict=True):
                if given is not None and taken is not None:
                    self._pair_inputs(given, taken)

    def _pair_inputs(self, before: ir.Value, value: ir.Value) -> None:
        """Of nodes that are the same: of the same layer, of the one before, of none, or from
        outside. What was found of the first layer, as the size of its cache, may serve all."""
        if before is value:
            alike = self._layer_of[value] in (_NO_LAYER, _FIRST)
        elif before.const_value is not None and value.const_value is not None:
            alike = _plain(before.const_value) == _plain(value.const_value)
        elif value in self._later_of:
            alike = self._layer_of[before] == _FIRST
        elif _is_input(before) and _is_input(value):
            self._names[value] = _name(before), _name(value)
            alike = True
        else:
            alike = self._later_of.get(before) is value
        if not alike:
            raise NotAlikeError(f"{value.name} is not what {before.name} is in the layer before")

    def _require_last(self) -> None:
        for node in self._nodes[_LAST]:
            for value in node.inputs:
                if value is not None and self._layer_of[value] == _EARLIER:
                    raise NotAlikeError(f"{value.name} is used by a layer far behind")

    def _rename_last(self, layer: int) -> None:
        """What was traced as the fourth layer is the last of all."""
        traced = {_renumbered(names, _LAST): names for names in self._names.values()}
        for value in (*self._graph.inputs, *self._graph.outputs):
            if value.name in traced:
                value.name = _renumbered(traced[value.name], layer)

    def _add(self, layer: int, before: Mapping[ir.Value, ir.Value]) -> dict[ir.Value, ir.Value]:
        """One more layer after that of which ``before`` says what the later one's values are.

        Returns the same of the new one.
        """
        made: dict[ir.Value, ir.Value] = {}
        for node in self._nodes[_LATER]:
            inputs = [self._input(value, layer, before, made) for value in node.inputs]
            for value in node.outputs:
                made[value] = self._output(value, layer)
            copy = ir.Node(
                node.domain,
                node.op_type,
                inputs,
                node.attributes.values(),
                overload=node.overload,
                outputs=[made[value] for value in node.outputs],
                version=node.version,
                name=f"{node.name}.layer{layer}",
            )
            self._graph.append(copy)
        return made

    def _input(
        self,
        value: ir.Value | None,
        layer: int,
        before: Mapping[ir.Value, ir.Value],
        made: dict[ir.Value, ir.Value],
    ) -> ir.Value | None:
        if value is None or value in made:
            return value and made[value]
        if value in self._later_of:
            later = self._later_of[value]
            return before.get(later, later)
        if value not in self._names:
            return value
        made[value] = _like(value, _renumbered(self._names[value], layer))
        self._graph.inputs.append(made[value])
        return made[value]

    def _output(self, value: ir.Value, layer: int) -> ir.Value:
        if value not in self._outputs:
            return _like(value, f"{value.name}.layer{layer}")
        made = _like(value, _renumbered(self._names[value], layer))
        self._graph.outputs.append(made)
        return made


def _layers(graph: ir.Graph, owned: Mapping[str, int]) -> dict[ir.Value, int]:
    """The last layer that each value is made with."""
    found = {value: owned.get(_name(value), _NO_LAYER) for value in graph.inputs}
    found |= dict.fromkeys(graph.initializers.values(), _NO_LAYER)
    for node in graph:
        layers = (found[value] for value in node.inputs if value is not None)
        layer = max(layers, default=_NO_LAYER)
        found |= dict.fromkeys(node.outputs, layer)
    return found


def _meaning(node: ir.Node) -> tuple[object, ...]:
    """All but names."""
    attributes = [(name, _plain(each.value)) for name, each in sorted(node.attributes.items())]
    given = [value is not None for value in node.inputs]
    results = [(str(value.type), str(value.shape)) for value in node.outputs]
    return node.op_identifier(), node.version, attributes, given, results


def _plain(value: object) -> object:
    if not isinstance(value, ir.TensorProtocol):
        return value
    return value.dtype, value.shape, value.tobytes()


def _is_input(value: ir.Value) -> bool:
    return value.is_graph_input() and not value.is_initializer()


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name


def _like(value: ir.Value, name: str) -> ir.Value:
    shape = None if value.shape is None else ir.Shape(list(value.shape))
    return ir.Value(name=name, shape=shape, type=value.type)


def _renumbered(names: Names, layer: int) -> str:
    """The number in which both names differ is the layer's."""
    earlier, later = map(_NUMBER.split, names)
    if len(earlier) != len(later):
        raise NotAlikeError(f"{names}")
    pairs = list(zip(earlier, later, strict=True))
    if {pair for pair in pairs if pair[0] != pair[1]} != {(str(_EARLIER), str(_LATER))}:
        raise NotAlikeError(f"{names}")
    return "".join(str(layer) if one != other else one for one, other in pairs)
