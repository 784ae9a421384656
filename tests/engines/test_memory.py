"""What a bundle takes at least: the same figures for a catalog and for a session's budget."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from longlive_trt.configs.loader import configure
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.memory import attended_frames, engines_bytes, least_bytes, tensors_bytes
from longlive_trt.exports import TensorInfo
from longlive_trt.runtime.memory.budget import session_budget
from longlive_trt.runtime.ring import RingLayout


@pytest.fixture
def bundle(mini_bundle: Callable[[str], Path]) -> Bundle:
    return open_bundle(mini_bundle("relative"))


@pytest.mark.parametrize(
    "rollout",
    [
        {"rope": "relative"},
        {"rope": "relative", "window_frames": 9, "sink_frames": 0},
        {"rope": "absolute", "window_frames": -1, "sink_frames": 3},
    ],
)
def test_attended_frames_are_those_of_the_ring(rollout: dict[str, object]) -> None:
    config = configure({"rollout": rollout}, origin="test_memory")
    longest = None if rollout["rope"] == "relative" else 1020
    layout = RingLayout.of(config, longest)
    assert attended_frames(config) == layout.window
    assert attended_frames(config) - config.rollout.frames_per_block == layout.slots


def test_a_catalog_counts_what_a_session_counts(bundle: Bundle) -> None:
    parts = session_budget(bundle, bundle.config, decode=False).parts
    manifest = bundle.manifest
    assert engines_bytes(manifest, ["step", "prompt"]) == parts["weights"]
    least = least_bytes(manifest)
    assert parts["weights"] + parts["keys and values"] < least
    # The prompt's graph has its text states, and the context once more.
    assert least < 2 * (parts["weights"] + parts["keys and values"])


def test_the_engines_of_a_graph_are_its_own_files(bundle: Bundle) -> None:
    files = bundle.manifest.files
    for graph in ("step", "prompt"):
        own = files[f"{graph}.onnx"].bytes + files[f"{graph}.weights"].bytes
        assert engines_bytes(bundle.manifest, [graph]) == own
    assert engines_bytes(bundle.manifest, ["text"]) == 0


def test_shared_weights_count_once_for_each_graph(bundle: Bundle) -> None:
    files = {"vae.weights": replace(bundle.manifest.files["step.weights"], bytes=1000)}
    manifest = replace(bundle.manifest, files=files)
    assert engines_bytes(manifest, ["vae_first", "vae_next"]) == 2000
    assert engines_bytes(manifest, ["step"]) == 0


def test_tensors() -> None:
    tensors = [
        TensorInfo("k_cache.0", "float16", ("batch", "6*cache_frames", 2)),
        TensorInfo("sigma", "float", (1,)),
    ]
    assert tensors_bytes(tensors, {"batch": 2, "cache_frames": 9}) == 2 * 54 * 2 * 2 + 4
