"""Graphs from other processes are those of this one."""

import signal
import subprocess
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import pytest

from longlive_trt.calibration.recipes import INT8, VAE_EXCLUDED
from longlive_trt.calibration.vae.decoder import quantized_vae_specs, select_convolutions
from longlive_trt.configs import VaeConfig, load_config
from longlive_trt.export import tracers as module
from longlive_trt.export.components import prompt_spec, vae_specs
from longlive_trt.export.tracers import Tracers
from longlive_trt.export.tracing import GraphSpec, TracedGraph, trace


def data(graph: TracedGraph) -> bytes:
    """With weights as inputs: they have no values yet, without which none are written."""
    model = graph.model
    for name, value in list(model.graph.initializers.items()):
        if value.const_value is None:
            model.graph.inputs.append(model.graph.initializers.pop(name))
    return ir.to_proto(model).SerializeToString()


@pytest.fixture
def spec() -> GraphSpec:
    return prompt_spec(load_config("tiny"))


def refuse(_spec: GraphSpec) -> TracedGraph:
    raise AssertionError("traced here")


def test_another_process_makes_the_same_bytes(
    spec: GraphSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trace(spec)
    with Tracers(2) as tracers:
        tracers.begin([spec])
        monkeypatch.setattr(module, "trace", refuse)
        found = tracers.trace(spec)
    assert (found.spec, found.transposed) == (spec, expected.transposed)
    assert found.weights.keys() == expected.weights.keys()
    assert data(found) == data(expected)


@pytest.mark.exhaustive
def test_what_is_in_eight_bits_survives_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("tiny")
    assert isinstance(config.vae, VaeConfig)
    chosen = select_convolutions(config.vae, VAE_EXCLUDED)
    spec, _ = quantized_vae_specs(vae_specs(config), chosen, INT8)
    with Tracers(2) as tracers:
        tracers.begin([spec])
        monkeypatch.setattr(module, "trace", refuse)
        found = tracers.trace(spec)
    assert data(found) == data(trace(spec))


def test_one_process_traces_when_it_is_asked(
    spec: GraphSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[GraphSpec] = []
    monkeypatch.setattr(module, "trace", asked.append)
    with Tracers(1) as tracers:
        tracers.begin([spec])
        assert not asked
        tracers.trace(spec)
    assert asked == [spec]


def nothing(_model: object) -> None:
    pass


@pytest.mark.parametrize("change", [{"adapt": nothing}, {"inputs": []}])
def test_what_was_traced_ahead_of_something_else_is_not_taken(
    spec: GraphSpec, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(spec, **change)
    asked: list[GraphSpec] = []
    monkeypatch.setattr(module, "trace", asked.append)
    monkeypatch.setattr(Tracers, "_run", lambda *_: None)
    with Tracers(2) as tracers:
        tracers.begin([spec])
        tracers.trace(other)
    assert asked == [other]


def fail(_model: object) -> None:
    raise ValueError("this model cannot be changed")


def test_what_fails_elsewhere_is_done_here_where_its_error_is_seen(spec: GraphSpec) -> None:
    with Tracers(2) as tracers, pytest.raises(ValueError, match="cannot be changed"):
        broken = replace(spec, adapt=fail)
        tracers.begin([broken])
        tracers.trace(broken)


def test_processes_end_with_what_they_were_begun_for(
    spec: GraphSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(module.subprocess, "Popen", Noted)
    with pytest.raises(KeyboardInterrupt), Tracers(2) as tracers:
        tracers.begin([spec])
        while not started:
            pass
        raise KeyboardInterrupt
    assert [process.returncode for process in started] == [-signal.SIGKILL]
