"""Clips of videos, their numbers, and clips that the demo's world draws."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import longlive_trt as ll
from longlive_trt.quality.cases import Case, Lengths, Span, cases
from longlive_trt.quality.instruments import World, starts_of
from longlive_trt.quality.metrics.clips import ClipCutter, ClipReader, clip_starts, numbers_of
from longlive_trt.quality.metrics.frechet import LEAST_VIDEOS, distance_of
from longlive_trt.quality.metrics.similarity import Pixels
from longlive_trt.quality.metrics.world import world_clips
from longlive_trt.quality.prompts import read_prompts, shipped_file


def test_numbers_are_of_each_channel() -> None:
    latents = np.zeros((3, 2, 4, 5), np.float32)
    latents[:, 0] = np.array([1, 2, 4])[:, None, None]
    latents[:, 1, :, ::2] = 5
    found = np.array(numbers_of(latents)).reshape(3, 2) / 10
    assert found[0] == pytest.approx([7 / 3, 3])
    assert found[1] == pytest.approx([0, np.std([5, 0, 5, 0, 5])]), "within a picture"
    assert found[2] == pytest.approx([1.5, 0]), "from frame to frame"


def test_clips_lie_within_stretches_and_never_overlap() -> None:
    starts = clip_starts([(0, 69), (40, 70), (80, 88), (90, 99)], 9)
    assert starts == [[0, 36], [45], [], [90]]
    every = [start for stretch in starts for start in stretch]
    assert all(b - a >= 9 for a, b in pairwise(every))


@pytest.mark.parametrize("sizes", [(9, 12, 12, 12), (45,), (1,) * 45, (4, 30, 11)])
def test_a_cutter_gives_what_a_slice_does(sizes: tuple[int, ...]) -> None:
    video = np.arange(45 * 3, dtype=np.uint8).reshape(45, 1, 1, 3)
    cutter, starts, clips = ClipCutter([0, 10, 36], 9), [0, 10, 36], list[Pixels]()
    for begin, end in pairwise(np.cumsum([0, *sizes])):
        clips += cutter.add(video[begin:end])
    assert len(clips) == 3
    for start, clip in zip(starts, clips, strict=True):
        assert np.array_equal(clip, video[start : start + 9])


def test_scenes_are_stretches_with_all_that_is_stated() -> None:
    spans = (
        Span("first", 0, 33, {"place": "sea"}),
        Span("changed", 57, 69, {"time": "night"}),
        Span("kept", 57, 69, {"place": "sea"}),
        Span("after 1", 33, 45, {"time": "night"}),
    )
    case = Case("timeline", 0, {0: "a"}, 6, 1, spans)
    first, second = case.scenes
    assert (first.begin, first.end, first.shows) == (0, 33, {"place": "sea"})
    assert (second.begin, second.end) == (57, 69)
    assert second.shows == {"time": "night", "place": "sea"}
    assert starts_of(case, 9) == [[0], [57]]


def test_the_world_draws_what_is_stated() -> None:
    shows = {"traveler": "boat", "color": "red", "time": "noon", "weather": "clear"}
    first, second = world_clips(shows, [0.0, 3.0], 9, seed=5)
    assert first.shape == (9, 96, 160, 3) and first.dtype == np.uint8
    assert np.array_equal(first, world_clips(shows, [0.0], 9, seed=5)[0])
    assert not np.array_equal(first, second), "the traveler goes on"
    assert not np.array_equal(first, world_clips(shows, [0.0], 9, seed=6)[0]), "another land"


@pytest.fixture(scope="module")
def reader(demo: ll.Pipeline) -> ClipReader:
    return ClipReader(demo.engines.encoder, demo.config)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ll.Pipeline]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "demo-cache"))
        with ll.load("demo") as pipeline:
            yield pipeline


@pytest.mark.exhaustive
def test_what_is_wrong_with_clips_is_seen(demo: ll.Pipeline, reader: ClipReader) -> None:
    """Of the world's own clips, changed as bad videos are, against other clips of the world."""
    asked = read_prompts(shipped_file(demo.config))
    every = cases(asked, demo.config, Lengths(prompts=LEAST_VIDEOS, timelines=0, long=0))
    world = World(reader, demo.config.fps)

    def points(change: Callable[[Pixels], Pixels], seed: int) -> list[np.ndarray]:  # type: ignore[type-arg]
        found = []
        for case in every:
            (scene,) = case.scenes
            clips = world_clips(scene.shows, [0.0, 3.0], reader.pictures, case.seed + seed)
            found.append(np.array([reader(change(clip)) for clip in clips]))
        return found

    others = points(lambda clip: clip, 2000)
    value = {}
    for name, change in CHANGES.items():
        pairs = list(zip(points(change, 0), others, strict=True))
        distance = distance_of(pairs)
        assert distance is not None
        value[name] = distance
    same = value.pop("as they are")
    assert same.value <= same.chance
    for name, distance in value.items():
        assert distance.value > distance.chance, (name, distance)
    assert world.values(every[0])["clips"], "a case's own clips have numbers too"


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "as they are": lambda clip: clip,
    "blurred": lambda clip: clip[:, ::8, ::8].repeat(8, 1).repeat(8, 2),
    "gray": lambda clip: clip.mean(-1, keepdims=True).repeat(3, -1).astype(np.uint8),
    "still": lambda clip: clip[:1].repeat(len(clip), 0),
    "noisy": lambda clip: np.clip(
        clip + np.random.default_rng(1).normal(0, 30, clip.shape), 0, 255
    ).astype(np.uint8),
}


def test_pictures_of_another_size_are_scaled(video_bundle: Path) -> None:
    with ll.load(video_bundle) as pipeline:
        reader = ClipReader(pipeline.engines.encoder, pipeline.config)
        height, width = pipeline.config.video_size or (0, 0)
        small = np.random.default_rng(0).integers(0, 256, (9, height, width, 3), np.uint8)
        large = small.repeat(2, 1).repeat(2, 2)
        assert reader(large) == pytest.approx(reader(small))
        assert len(reader(small)) == 3 * 16
