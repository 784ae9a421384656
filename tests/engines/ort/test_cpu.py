"""ONNX Runtime engines: what they promise their callers, and what they refuse."""

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longlive_trt.engines.base import TensorSpec
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.loader import load_engine
from longlive_trt.engines.ort.cpu import OnnxRuntimeEngine
from longlive_trt.errors import EngineError
from longlive_trt.runtime.memory.base import HostMemory, buffers


@pytest.fixture(scope="module")
def prompt(mini_bundle: Callable[[str], Path]) -> Iterator[Any]:
    with load_engine(open_bundle(mini_bundle("relative")), "prompt", threads=1) as engine:
        yield engine


def states(batch: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(batch).standard_normal((batch, 5, 12), np.float32)


def outputs(prompt: Any, batch: int = 1) -> dict[str, Any]:
    return HostMemory().reserve(buffers(prompt.outputs.values(), batch=batch), "a context")


def test_specifications(prompt: Any) -> None:
    assert dict(prompt.inputs) == {
        "text_states": TensorSpec("text_states", np.dtype(np.float32), ("batch", 5, 12))
    }
    assert {spec.shape for spec in prompt.outputs.values()} == {("batch", 5, 3, 12)}


def test_a_binding_reads_and_writes_the_callers_memory(prompt: Any) -> None:
    given, found = states(), outputs(prompt)
    binding = prompt.bind({"text_states": given}, found)
    binding.run()
    first = found["context_k.0"].copy()
    assert first.any()
    given[...] = states(2)[1:]
    binding.run()
    assert not np.array_equal(found["context_k.0"], first)
    given[...] = states()
    binding.run()
    assert np.array_equal(found["context_k.0"], first)


def test_a_binding_keeps_its_arrays_alive(prompt: Any) -> None:
    found = outputs(prompt)
    expected = outputs(prompt)
    prompt.bind({"text_states": states()}, expected).run()
    binding = prompt.bind({"text_states": states()}, found)
    gc.collect()
    _ = [np.full((1, 5, 12), np.nan, np.float32) for _ in range(50)]
    binding.run()
    assert np.array_equal(found["context_v.1"], expected["context_v.1"])


def test_bindings_end_with_their_engine(mini_bundle: Callable[[str], Path]) -> None:
    engine = load_engine(open_bundle(mini_bundle("relative")), "prompt")
    binding = engine.bind({"text_states": states()}, outputs(engine))
    binding.run()
    session = weakref.ref(engine._session)  # type: ignore[attr-defined]
    engine.close()
    gc.collect()
    assert session() is None
    with pytest.raises(EngineError, match="was closed with its engine"):
        binding.run()


def test_outputs_may_be_those_that_are_wanted(prompt: Any) -> None:
    found = outputs(prompt)
    one = {"context_v.1": np.zeros_like(found["context_v.1"])}
    for wanted in (found, one):
        prompt.bind({"text_states": states()}, wanted).run()
    assert np.array_equal(one["context_v.1"], found["context_v.1"])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (states()[0], r"text_states is \[5, 12\], expected \['batch', 5, 12\]"),
        (states()[:, :4], r"text_states is \[1, 4, 12\]"),
        (states().astype(np.float64), r"text_states is float64, expected float32"),
        (states(2).transpose(1, 0, 2)[:, :, :][:, :1], r"expected \['batch', 5, 12\]"),
        (np.asfortranarray(states(2)), r"text_states is not contiguous"),
    ],
)
def test_arrays_that_do_not_fit(prompt: Any, array: Any, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        prompt.bind({"text_states": array}, outputs(prompt))


def test_names_that_do_not_fit(prompt: Any) -> None:
    with pytest.raises(EngineError, match="inputs are missing: text_states"):
        prompt.bind({}, outputs(prompt))
    with pytest.raises(EngineError, match="graph prompt has no tensor nothing"):
        prompt.bind({"text_states": states()}, {"nothing": states()})
    with pytest.raises(EngineError, match="graph prompt has no tensor more"):
        prompt.bind({"text_states": states(), "more": states()}, outputs(prompt))


def test_a_failing_run_is_one_line(prompt: Any, capfd: pytest.CaptureFixture[str]) -> None:
    found = outputs(prompt, batch=2)
    binding = prompt.bind({"text_states": states(3)}, found)
    with pytest.raises(EngineError, match="graph prompt failed in onnxruntime") as caught:
        binding.run()
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [b"", b"junk"])
def test_what_is_no_graph(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "step.onnx").write_bytes(content)
    with pytest.raises(EngineError, match=r"step\.onnx: onnxruntime cannot load the graph") as e:
        OnnxRuntimeEngine(tmp_path / "step.onnx")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("shape", "sizes", "sized"),
    [
        (("batch", 3), {"batch": 2}, (2, 3)),
        (("batch", "24*cache_frames"), {"batch": 1, "cache_frames": 9}, (1, 216)),
        (("frames * 6",), {"frames": 3}, (18,)),
        ((), {}, ()),
        (("24*cache_frames",), {"cache_frames": 0}, (0,)),
    ],
)
def test_named_sizes(
    shape: tuple[int | str, ...], sizes: dict[str, int], sized: tuple[int, ...]
) -> None:
    assert TensorSpec("x", np.dtype(np.float32), shape).sized(**sizes) == sized
