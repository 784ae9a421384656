"""The VAE as a stream, against recorded frames of the public model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from longlive_trt.engines.base import Engine
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.loader import load_engine
from longlive_trt.runtime.decoding.host import VaeStream

RECORDED = load_file(Path(__file__).parents[2] / "data" / "vae" / "decode.safetensors")
LATENTS = RECORDED["latents"]

Engines = tuple[Engine, Engine]
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def engines(small_vae_bundle: Path) -> Iterator[Engines]:
    with opened(small_vae_bundle) as both:
        yield both


@pytest.fixture(scope="module")
def golden_engines(golden_vae_bundle: Path) -> Iterator[Engines]:
    with opened(golden_vae_bundle) as both:
        yield both


@contextmanager
def opened(folder: Path) -> Iterator[Engines]:
    bundle = open_bundle(folder)
    with (
        load_engine(bundle, "vae_first", threads=1) as first,
        load_engine(bundle, "vae_next", threads=1) as following,
    ):
        yield first, following


@pytest.fixture(scope="module")
def frames(engines: Engines) -> Array:
    return VaeStream(*engines, 1, "frames").decode(LATENTS)


def decoded(stream: VaeStream, sizes: list[int], latents: Array = LATENTS) -> Array:
    ends = np.cumsum(sizes)
    pieces = [
        stream.decode(latents[:, end - size : end]) for end, size in zip(ends, sizes, strict=True)
    ]
    return np.concatenate(pieces, axis=1)


@pytest.mark.exhaustive
def test_the_recorded_chunks(
    golden_engines: Engines, relative_error: Callable[[object, object], float]
) -> None:
    stream = VaeStream(*golden_engines, 1, "frames")
    for number, latents in enumerate((LATENTS[:, :3], LATENTS[:, 3:6], LATENTS[:, 6:])):
        found = stream.decode(latents)
        assert relative_error(found, RECORDED[f"cached.chunk{number}"]) <= 1e-5
    assert stream.latent_frames == 7


@pytest.mark.exhaustive
def test_the_recorded_one_shot_decode(
    golden_engines: Engines, relative_error: Callable[[object, object], float]
) -> None:
    frames = VaeStream(*golden_engines, 1, "frames").decode(LATENTS)
    expected = RECORDED["decode.raw"].transpose(0, 2, 1, 3, 4).clip(-1, 1)
    assert relative_error(frames, expected) <= 1e-5


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.sets(st.integers(1, 6)))
def test_chunking_changes_no_bit(engines: Engines, frames: Array, cuts: set[int]) -> None:
    bounds = [0, *sorted(cuts), 7]
    sizes = [end - start for start, end in pairwise(bounds)]
    assert np.array_equal(decoded(VaeStream(*engines, 1, "frames"), sizes), frames)


def test_pixels_are_the_frames_as_bytes(engines: Engines, frames: Array) -> None:
    pixels = VaeStream(*engines, 1).decode(LATENTS)
    assert pixels.dtype == np.uint8
    expected = np.floor((frames.astype(np.float64) * 0.5 + 0.5).clip(0, 1) * 255)
    difference = np.abs(pixels.transpose(0, 1, 4, 2, 3) - expected)
    # A value on the edge between two numbers may fall to either side.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_rows_of_a_batch_are_videos_of_their_own(
    engines: Engines, frames: Array, relative_error: Callable[[object, object], float]
) -> None:
    both = np.concatenate([LATENTS, LATENTS[:, ::-1]])
    found = VaeStream(*engines, 2, "frames").decode(both)
    assert relative_error(found[:1], frames) <= 1e-5
    alone = VaeStream(*engines, 1, "frames").decode(both[1:])
    assert relative_error(found[1:], alone) <= 1e-5


def test_frames_are_the_callers_own(engines: Engines) -> None:
    stream = VaeStream(*engines, 1, "frames")
    first = stream.decode(LATENTS[:, :2])
    kept = first.copy()
    stream.decode(LATENTS[:, 2:4])
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_restored_stream_goes_on_with_the_same_bits(
    engines: Engines, frames: Array, cut: int
) -> None:
    stream = VaeStream(*engines, 1, "frames")
    stream.decode(LATENTS[:, :cut])
    saved = {name: cache.copy() for name, cache in stream.caches.items()}
    other = VaeStream(*engines, 1, "frames")
    other.decode(LATENTS[:, ::-1])
    other.restore(stream.latent_frames, saved)
    assert np.array_equal(other.decode(LATENTS[:, cut:]), frames[:, 4 * cut - 3 :])
