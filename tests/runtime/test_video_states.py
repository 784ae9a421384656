"""Videos that go on, go back, are closed, or cannot be."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import longlive_trt as ll
from longlive_trt.errors import EngineError, UsageError
from longlive_trt.runtime import assembly
from longlive_trt.runtime.state import load_state
from tests.videos import frames, generate, latents, make, same

pytestmark = pytest.mark.usefixtures("in_empty_folder")


@pytest.mark.parametrize("mode", ["exact", "blend:3"])
def test_a_saved_video_goes_on(pipeline: ll.Pipeline, mode: str) -> None:
    expected = make(pipeline, {0: "a cat", 3: "a dog"}, frames=15, switch=mode, seed=7)
    blocks = []
    with pipeline.video("a cat", frames=6, switch=mode, seed=7) as video:
        blocks.append(next(video))
        video.prompt("a dog")
        blocks.append(next(video))
        video.save_state("deep/state")
    with pipeline.video(resume="deep/state", frames=9) as video:
        assert video.blocks_made == 2
        blocks += video
    assert [block.first_frame for block in blocks] == [0, 9, 21, 33, 45]
    assert {block.prompt for block in blocks[1:]} == {"a dog"}
    assert same((latents(blocks), frames(blocks)), expected)


def test_states_of_the_command_and_of_videos_are_one(
    pipeline: ll.Pipeline, video_bundle: Path
) -> None:
    options = ("--prompt", "a cat", "--frames", 6, "--seed", 2)
    generate(video_bundle, *options, "--save-state", "theirs")
    with pipeline.video("a cat", frames=6, seed=2) as video:
        list(video)
        video.save_state("ours")
    ours, theirs = load_state(Path("ours")), load_state(Path("theirs"))
    assert replace(ours, tensors={}) == replace(theirs, tensors={})
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(np.array_equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors)
    expected = generate(video_bundle, "--resume", "ours", "--prompt", "a dog", "--frames", 3)
    assert same(make(pipeline, "a dog", resume="theirs", frames=3), expected)
    later = make(pipeline, {9: "a dog"}, resume="theirs", frames=6)
    assert not np.array_equal(later[0][:, :3], expected[0])


def test_a_video_goes_back_to_a_checkpoint(pipeline: ll.Pipeline) -> None:
    with pipeline.video("a cat", switch="blend:2") as video:
        next(video)
        video.prompt("a dog")
        next(video)
        video.prompt("a bird")
        there = video.checkpoint()
        first = [next(video) for _ in range(3)]
        video.rollback(there)
        again = [next(video) for _ in range(3)]
        assert video.blocks_made == 5
        assert np.array_equal(frames(first), frames(again))
        assert [block.prompt for block in again] == ["a bird"] * 3
        video.rollback(there)
        video.prompt("a fox", mode="none")
        other = next(video)
        assert (other.index, other.prompt) == (2, "a fox")
        assert not np.array_equal(other.frames, first[0].frames)


def test_a_block_that_failed_can_be_gone_back_from(
    pipeline: ll.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = make(pipeline, "a cat", frames=6)
    with pipeline.video("a cat", frames=6) as video:
        blocks = [next(video)]
        there = video.checkpoint()
        with monkeypatch.context() as patch:

            def fail(_plan: object) -> None:
                raise EngineError("a test")

            patch.setattr(video.session.passes, "denoise", fail)
            with pytest.raises(EngineError, match="a test"):
                next(video)
        for refused in (video.checkpoint, lambda: video.save_state("state")):
            with pytest.raises(UsageError, match="the last block was not finished"):
                refused()
        video.rollback(there)
        blocks += video
        assert np.array_equal(latents(blocks), expected)
    assert not Path("state").exists()


def test_what_is_closed_says_so(video_bundle: Path) -> None:
    before = {*threading.enumerate()}
    pipeline = ll.load(video_bundle, low_memory=True)
    video, other = pipeline.video("a cat"), pipeline.video("a dog")
    block, unread = next(video), next(video)
    kept = block.frames
    video.close()
    video.close()
    assert block.frames is not None and np.array_equal(block.frames, kept)
    for refused in (
        lambda: next(video),
        video.step,
        lambda: video.prompt("a dog"),
        video.checkpoint,
        lambda: video.save_state("s"),
    ):
        with pytest.raises(UsageError, match="the video is closed"):
            refused()
    pipeline.close()
    with pytest.raises(UsageError, match="the video is closed"):
        next(other)
    assert unread.index == 1
    assert {*threading.enumerate()} <= before


# ---- what is refused -------------------------------------------------------------------------

Refusal = tuple[dict[str, Any], str]
REFUSALS: list[Refusal] = [
    ({}, "nothing to show: give prompt TEXT, timeline FILE or replay FILE"),
    ({"prompt": {}}, "nothing to show: prompt is empty"),
    ({"prompt": 7}, "prompt is 7; give a text, or texts by the latent frame"),
    ({"prompt": ["a", "b"]}, "give a text, or texts by the latent frame"),
    ({"prompt": {0: "a", 3: 7}}, "give a text, or texts by the latent frame"),
    ({"prompt": {0: "a", "three": "b"}}, "give a text, or texts by the latent frame"),
    ({"prompt": {3: "a"}}, "prompt at 3: the first prompt is at frame 3"),
    ({"prompt": {-3: "a", 0: "b"}}, "prompt at -3: frame -3 is negative"),
    ({"prompt": "\udcff"}, "prompt: the prompt is not valid UTF-8"),
    ({"prompt": {0: "a", 90: "b"}, "frames": 9}, "prompt at 90: .* past the end"),
    ({"prompt": "a", "timeline": "t.yaml"}, "prompt and timeline: give one of them"),
    ({"prompt": "a", "replay": "r"}, "prompt and replay: give one of them"),
    ({"prompt": "a", "line": 2}, "line and switch_frames belong to timeline"),
    ({"timeline": "t.yaml"}, "t.yaml: cannot be read"),
    ({"replay": "r"}, "r: no such replay file"),
    ({"replay": "r", "frames": 3}, "replay fixes the length: leave out seconds, frames and"),
    ({"replay": "r", "batch": 2}, "say how many videos: leave out batch"),
    ({"resume": "s"}, "s: no such state file"),
    ({"resume": "s", "seed": 1}, "resume goes on with the saved seed: leave out seed"),
    ({"prompt": "a", "seconds": 1, "frames": 3}, "length once"),
    ({"prompt": "a", "seconds": 0}, "a length of 0 seconds"),
    ({"prompt": "a", "frames": -3}, "a length of -3 latent frames"),
    ({"prompt": "a", "seed": -1}, r"seed is -1; allowed: 0 to 2\*\*64 - 1"),
    ({"prompt": "a", "batch": 0}, "batch is 0; allowed: 1 or more"),
    ({"prompt": "a", "switch": "fast"}, "switch 'fast': no way to change the prompt"),
    ({"prompt": "a", "preset": "nothing"}, "nothing: no such preset"),
    ({"prompt": "a", "overrides": ["rollout.rope=absolute"]}, "overrides and preset can change"),
    ({"prompt": "a", "overrides": ["rollout.window_frames=2000"]}, "allowed: at most 1024"),
    ({"prompt": "a", "overrides": ["rollout.window_frames=-1"]}, "an endless video: absolute"),
]


@pytest.mark.parametrize(("options", "words"), REFUSALS)
def test_a_video_that_cannot_be(
    pipeline: ll.Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.setattr(assembly.Engines, "session", lambda *_, **__: pytest.fail("a session"))
    with pytest.raises(UsageError, match=words):
        pipeline.video(**options)


def test_prompts_that_cannot_be(pipeline: ll.Pipeline) -> None:
    with pipeline.video("a cat", frames=3) as video:
        for text, mode, words in (
            (7, None, "the prompt is 7, not a text"),
            ("\udcff", None, "prompt: the prompt is not valid UTF-8"),
            ("a", "fast", "mode 'fast': no way to change the prompt"),
        ):
            with pytest.raises(UsageError, match=words):
                video.prompt(text, mode)  # type: ignore[arg-type]
        assert next(video).prompt == "a cat"
        with pytest.raises(UsageError, match="the video ends after 1 blocks"):
            video.step()
        assert list(video) == []


def test_states_that_cannot_be(pipeline: ll.Pipeline, mini_bundle: Callable[[str], Path]) -> None:
    with pipeline.video("a", frames=3, overrides=["rollout.window_frames=-1"]) as video:
        next(video)
        with pytest.raises(UsageError, match=r"global attention .* set a window"):
            video.save_state("s")
    with pipeline.video("a", frames=3, decode=False) as video:
        with pytest.raises(UsageError, match="needs a prompt before its first block"):
            video.checkpoint()
        next(video)
        video.save_state("s")
    with pytest.raises(UsageError, match=r"resume: .* without pictures .*decode=False"):
        pipeline.video(resume="s")
    with pytest.raises(UsageError, match=r"resume: rollout\.sink_frames was 3"):
        pipeline.video(resume="s", decode=False, overrides=["rollout.sink_frames=1"])
    with pipeline.video(resume="s", decode=False, frames=3) as video:
        assert len(list(video)) == 1
    with ll.load(mini_bundle("relative")) as other:
        with pytest.raises(UsageError, match="making a video needs the vae"):
            other.video(resume="s")
        with pytest.raises(UsageError, match="reading a prompt needs the text encoder"):
            other.video("a", decode=False)
