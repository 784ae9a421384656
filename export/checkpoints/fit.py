"""Whether stored tensors are the ones a model expects; if not, what they are instead."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from longlive_trt.adapters import format_problems
from longlive_trt.errors import CheckpointError
from longlive_trt.export.checkpoints.components import (
    Component,
    describe_sizes,
    recognize,
    strip_wrappers,
)
from longlive_trt.export.checkpoints.files import StoredTensor
from longlive_trt.export.checkpoints.folders import TensorSet

Shapes = Mapping[str, tuple[int, ...]]

_READABLE = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass
class _Renamed:
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    unknown: dict[str, StoredTensor] = field(default_factory=dict)


def fit(component: Component, found: TensorSet, expected: Shapes) -> dict[str, StoredTensor]:
    """The stored tensor of every expected name, whichever layout the names are in."""
    layouts = [
        _rename(component, found, expected, key_of)
        for key_of in (lambda name: name, component.diffusers_key)
    ]
    renamed = max(layouts, key=lambda layout: len(layout.tensors))
    problems = _problems(renamed, expected)
    if problems:
        raise CheckpointError(_misfit(component, found, renamed, expected, problems))
    return {name: renamed.tensors[name] for name in expected}


def _rename(
    component: Component,
    found: TensorSet,
    expected: Shapes,
    key_of: Callable[[str], str | None],
) -> _Renamed:
    renamed = _Renamed()
    for raw, tensor in found.tensors.items():
        plain = strip_wrappers(raw)
        name = key_of(plain)
        if name is not None and name in expected and name not in renamed.tensors:
            renamed.tensors[name] = tensor
        elif not (component.unneeded.match(plain) or _repeats(renamed, name, plain)):
            renamed.unknown[name or raw] = tensor
    return renamed


def _repeats(renamed: _Renamed, name: str | None, plain: str) -> bool:
    """Tied weights, such as UMT5's embedding, may be stored under both of their names."""
    first = renamed.tensors.get(name) if name else None
    return first is not None and strip_wrappers(first.key) != plain


def _problems(renamed: _Renamed, expected: Shapes) -> dict[str, str]:
    problems = {
        name: f"unknown here, found {list(tensor.shape)}"
        for name, tensor in renamed.unknown.items()
    }
    for name, shape in expected.items():
        problem = _problem(renamed.tensors.get(name), shape)
        if problem:
            problems[name] = problem
    return problems


def _problem(tensor: StoredTensor | None, shape: tuple[int, ...]) -> str | None:
    if tensor is None:
        return f"missing, expected {list(shape)}"
    if tensor.shape != tuple(shape):
        return f"expected {list(shape)}, found {list(tensor.shape)}"
    if tensor.dtype not in _READABLE:
        return f"stored as {str(tensor.dtype).removeprefix('torch.')}, quantized or not weights"
    return None


def _misfit(
    component: Component,
    found: TensorSet,
    renamed: _Renamed,
    expected: Shapes,
    problems: Mapping[str, str],
) -> str:
    shapes = {name: tensor.shape for name, tensor in (renamed.tensors | renamed.unknown).items()}
    if not _is_shard(found) and _is_nothing_of_it(found, renamed, expected):
        return _nothing_of_it(component, found)
    summary = (
        f"{found.path} does not fit the {component.title}; tensors that differ: {len(problems)}"
    )
    explanation = _explain(component, found, shapes, expected)
    return "\n".join(filter(None, [summary, format_problems(problems), explanation]))


def _explain(component: Component, found: TensorSet, shapes: Shapes, expected: Shapes) -> str:
    what = recognize(found.tensors)
    ours = what is not None and what.startswith(f"a {component.title}:")
    if (ours or what is None) and _is_shard(found):
        return "It is one shard of several: give the *.index.json beside it, or the folder"
    if what is None:
        return "Too few of the others are there to tell what it is: give another file"
    if not ours:
        return f"It is {what}"
    differences = _size_differences(component, shapes, expected)
    if differences:
        return f"It is a {component.title} of another size ({differences}): check --config"
    return f"It is a {component.title} of this size, but not a whole or unmodified one"


def _is_shard(found: TensorSet) -> bool:
    return re.search(r"-\d{5}-of-\d{5}", found.path.name) is not None


def _is_nothing_of_it(found: TensorSet, renamed: _Renamed, expected: Shapes) -> bool:
    """No tensor fits, and none tells what they are of."""
    fits = (tensor.shape == tuple(expected[name]) for name, tensor in renamed.tensors.items())
    return not any(fits) and recognize(found.tensors) is None


def _nothing_of_it(component: Component, found: TensorSet) -> str:
    names = sorted(found.tensors)
    held = f"its only tensor, {names[0]}," if len(names) == 1 else f"of its {len(names)} tensors"
    said = "is none of its weights" if len(names) == 1 else f"({names[0]}, ...) none is its weight"
    return (
        f"{found.path} holds nothing of the {component.title}: {held} {said}; these are "
        "no weights of a LongLive model, or too few to tell: give another file"
    )


def _size_differences(component: Component, shapes: Shapes, expected: Shapes) -> str:
    here, wanted = describe_sizes(component, shapes), describe_sizes(component, expected)
    return ", ".join(
        f"{title} {here[title]}, expected {wanted[title]}"
        for title in wanted
        if title in here and here[title] != wanted[title]
    )
