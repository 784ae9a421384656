"""What a session takes on a GPU, told from the manifest, and what is refused before it starts."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from longlive_trt.configs import VaeConfig
from longlive_trt.engines.base import specs_of
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.loader import load_engine
from longlive_trt.engines.memory import engines_bytes
from longlive_trt.engines.transient import TransientEngine
from longlive_trt.errors import EngineError
from longlive_trt.plugins.cuda.streams import MemoryInfo
from longlive_trt.runtime.decoding.choice import decoder_named
from longlive_trt.runtime.memory.base import buffers, named, size_bytes
from longlive_trt.runtime.memory.budget import (
    Budget,
    decoding_bytes,
    require_memory,
    session_budget,
)
from longlive_trt.runtime.ring import RingLayout

GIB = 1 << 30


@pytest.fixture
def bundle(mini_bundle: Callable[[str], Path]) -> Bundle:
    return open_bundle(mini_bundle("relative"))


class FakeGpu:
    facts = SimpleNamespace(name="a small GPU")

    def __init__(self, free_bytes: int) -> None:
        self._free_bytes = free_bytes

    def memory(self) -> MemoryInfo:
        return MemoryInfo(self._free_bytes, 80 * GIB)


def test_keys_and_values_are_those_that_a_session_reserves(bundle: Bundle) -> None:
    parts = session_budget(bundle, bundle.config, decode=False).parts
    layout = RingLayout.of(bundle.config, None)
    with load_engine(bundle, "step", threads=1) as step:
        kept = named(step.inputs, "k_cache", "v_cache", "context_k", "context_v")
        made = named(step.outputs, "k_new", "v_new")
        sizes = {"batch": 1, "frames": layout.block, "cache_frames": layout.slots}
        assert parts["keys and values"] == size_bytes(buffers([*kept, *made], **sizes).values())
    assert parts["decoding"] == 0
    assert parts["weights"] >= sum(
        entry.bytes for name, entry in bundle.manifest.files.items() if name == "step.weights"
    )


def test_a_larger_batch_takes_more_but_the_weights(bundle: Bundle) -> None:
    one = session_budget(bundle, bundle.config, decode=False).parts
    three = session_budget(bundle, bundle.config, decode=False, batch=3).parts
    assert three["weights"] == one["weights"]
    assert three["keys and values"] == 3 * one["keys and values"]


def test_single_frames_have_an_engine_beside_that_of_blocks(small_vae_bundle: Path) -> None:
    """Its weights, and activations of its own, which are not there where all is frame by frame."""
    bundle = open_bundle(small_vae_bundle)
    decoder, config = decoder_named(bundle, None), bundle.config
    block = config.rollout.frames_per_block
    assert block > 1 and isinstance(decoder.config, VaeConfig)
    frames, blocks = (
        decoding_bytes(bundle, config, decoder, 1, way) for way in ("frames", "blocks")
    )
    height, width = config.video_size or (0, 0)
    pictures = 4 * 3 * height * width
    of_frame = 12 * 2 * decoder.config.dim * pictures // 3
    weights = engines_bytes(bundle.manifest, ["vae_next"])
    assert blocks - frames == (block - 1) * (3 * pictures + of_frame) + weights + of_frame


def test_what_fits_is_let_through() -> None:
    require_memory(FakeGpu(10 * GIB), Budget({"weights": 10 * GIB}), {})  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    wanted = Budget({"weights": 9 * GIB, "decoding": 3 * GIB, "nothing": 0})
    lesser = {"latents only": Budget({"weights": 9 * GIB}), "more": Budget({"a": 20 * GIB})}
    with pytest.raises(EngineError) as refused:
        require_memory(FakeGpu(10 * GIB), wanted, lesser)  # type: ignore[arg-type]
    message = str(refused.value)
    assert "a small GPU: about 12.0 GiB of memory are needed" in message
    assert "weights 9.0, decoding 3.0" in message
    assert "10.0 GiB are free" in message
    assert "what would fit: latents only (9.0 GiB)" in message
    assert "more" not in message


def test_where_nothing_fits_a_larger_gpu_is_named() -> None:
    with pytest.raises(EngineError, match="use a GPU with more memory"):
        require_memory(FakeGpu(0), Budget({"weights": GIB}), {})  # type: ignore[arg-type]


def test_a_transient_engine_is_loaded_for_each_run_and_computes_the_same(bundle: Bundle) -> None:
    loaded, settled = [], []

    def load() -> Any:
        loaded.append(load_engine(bundle, "prompt", threads=1))
        return loaded[-1]

    info = bundle.manifest.graphs["prompt"]
    transient = TransientEngine(
        load, specs_of(info.inputs), specs_of(info.outputs), lambda: settled.append(len(loaded))
    )
    spec = transient.inputs["text_states"]
    states = np.random.default_rng(0).standard_normal(spec.sized(batch=1)).astype(spec.dtype)
    found, expected = (
        {name: np.zeros(s.sized(batch=1), s.dtype) for name, s in transient.outputs.items()}
        for _ in range(2)
    )
    binding = transient.bind({"text_states": states}, found)
    assert not loaded
    binding.run()
    binding.run()
    assert settled == [1, 2]
    with load_engine(bundle, "prompt", threads=1) as engine:
        assert transient.inputs.keys() == engine.inputs.keys()
        engine.bind({"text_states": states}, expected).run()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    with pytest.raises(AttributeError):
        loaded[0].bind({"text_states": states}, found).run()
