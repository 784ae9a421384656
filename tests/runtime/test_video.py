"""Videos through the Python API: what they are made of, and several side by side."""

import threading
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import longlive_trt as ll
from longlive_trt.cli import main
from longlive_trt.errors import UsageError
from tests.videos import FIRST_FRAMES, FRAMES, SIZE, Array, frames, generate, latents, make, same

pytestmark = pytest.mark.usefixtures("in_empty_folder")


def test_a_video_is_made_block_by_block(pipeline: ll.Pipeline) -> None:
    with pipeline.video("a cat", seed=1, seconds=2) as video:
        assert (video.fps, video.size) == (16, SIZE)
        blocks = list(video)
    assert [block.index for block in blocks] == [0, 1, 2]
    assert [block.first_frame for block in blocks] == [0, 9, 21]
    for block in blocks:
        count = FRAMES if block.index else FIRST_FRAMES
        assert block.frames.shape == (count, *SIZE, 3) and block.frames.dtype == np.uint8
        assert block.frame_count == count and block.prompt == "a cat"
        assert block.latents.shape == (1, 3, 16, 4, 6) and block.latents.dtype == np.float32
    assert np.std(frames(blocks)) > 5


def test_it_is_the_video_of_the_command(pipeline: ll.Pipeline, video_bundle: Path) -> None:
    arguments = ("--prompt", "a cat", "--prompt-at", 6, "a dog", "--seed", 3, "--frames", 12)
    for mode in ("exact", "blend:2"):
        expected = generate(video_bundle, *arguments, "--switch", mode)
        prompts = {6: "a dog", 0: "a cat"}
        assert same(make(pipeline, prompts, seed=3, frames=12, switch=mode), expected)


@pytest.mark.parametrize("mode", [None, "partial", "none", "blend:2"])
def test_a_prompt_counts_from_the_next_block_on(pipeline: ll.Pipeline, mode: str | None) -> None:
    expected = make(pipeline, {0: "a cat", 9: "a dog"}, frames=18, switch=mode)
    blocks = []
    with pipeline.video("a cat", frames=18) as video:
        for block in video:
            blocks.append(block)
            if block.index == 2:
                video.prompt("a bird")
                video.prompt("a dog", mode=mode)
    assert same((latents(blocks), frames(blocks)), expected)
    assert [block.prompt for block in blocks] == ["a cat"] * 3 + ["a dog"] * 3


def test_a_prompt_before_the_first_block_and_one_instead_of_a_cue(pipeline: ll.Pipeline) -> None:
    expected = make(pipeline, {0: "a dog", 3: "a bird", 6: "a cat"}, frames=9)
    blocks = []
    with pipeline.video({0: "a cat", 3: "a fox", 6: "a cat"}, frames=9) as video:
        video.prompt("a dog")
        blocks.append(next(video))
        video.prompt("a bird")
        blocks += video
    assert same((latents(blocks), frames(blocks)), expected)


def test_prompts_come_from_other_threads(pipeline: ll.Pipeline) -> None:
    with pipeline.video("a cat") as video:
        for number in range(4):
            thread = threading.Thread(target=video.prompt, args=(f"prompt {number}",))
            thread.start()
            thread.join()
            assert next(video).prompt == f"prompt {number}"


def test_an_endless_video_begins_as_a_short_one(pipeline: ll.Pipeline) -> None:
    expected = make(pipeline, "a cat", frames=9)
    for length in ({}, {"seconds": float("inf")}):
        with pipeline.video("a cat", **length) as video:
            blocks = list(islice(video, 3))
            assert same((latents(blocks), frames(blocks)), expected)


def test_blocks_may_be_made_ahead(pipeline: ll.Pipeline) -> None:
    with pipeline.video("a cat", frames=12) as video:
        made = [(block.index, video.blocks_made, block.latents) for block in video.ahead(2)]
    assert [(index, ahead) for index, ahead, _ in made] == [(0, 3), (1, 4), (2, 4), (3, 4)]
    expected, _ = make(pipeline, "a cat", frames=12)
    assert np.array_equal(np.concatenate([latent for *_, latent in made], axis=1), expected)


def test_blocks_can_be_read_after_their_video(pipeline: ll.Pipeline) -> None:
    with pipeline.video("a cat", frames=30) as video:
        blocks = list(video)
    expected = make(pipeline, "a cat", frames=30)
    assert same((latents(blocks), frames(blocks)), expected)


def test_latents_alone(pipeline: ll.Pipeline) -> None:
    expected, _ = make(pipeline, "a cat", frames=3)
    with pipeline.video("a cat", frames=3, decode=False) as video:
        block = next(video)
        assert np.array_equal(block.latents, expected)
        for picture in (lambda: block.frames, lambda: video.size, lambda: video.writer("v.mp4")):
            with pytest.raises(UsageError, match="makes no pictures: it was asked for with"):
                picture()


def test_a_batch_is_several_videos_of_one_prompt(pipeline: ll.Pipeline) -> None:
    prompts = {0: "a cat", 3: "a dog"}
    with pipeline.video(prompts, frames=6, batch=2, seed=4) as video:
        first, second = video
        assert first.frames.shape == (2, FIRST_FRAMES, *SIZE, 3)
        assert second.latents.shape == (2, 3, 16, 4, 6)
        assert not np.array_equal(*second.frames)
        video.save_state("state")
    with pipeline.video(resume="state", frames=3) as resumed:
        assert next(resumed).frames.shape == (2, FRAMES, *SIZE, 3)
    with pipeline.video(prompts, frames=9, batch=2, seed=4) as video:
        *_, last = video
    with pipeline.video(resume="state", frames=3) as resumed:
        assert np.array_equal(next(resumed).frames, last.frames)


def test_settings_timelines_and_presets(pipeline: ll.Pipeline, video_bundle: Path) -> None:
    Path("t.yaml").write_text("- {frame: 0, prompt: a cat}\n- {seconds: 1, prompt: a dog}\n")
    narrow = ["rollout.window_frames=6"]
    found = make(pipeline, timeline="t.yaml", seconds=2, overrides=narrow)
    options = ("--timeline", "t.yaml", "--seconds", 2, "--set", *narrow)
    assert same(found, generate(video_bundle, *options))
    Path("t.jsonl").write_text('"a bird"\n\n{"prompts": ["a cat", "a dog"]}\n')
    lines = {"timeline": "t.jsonl", "line": 3, "switch_frames": [3]}
    assert same(
        make(pipeline, frames=6, **lines), make(pipeline, {0: "a cat", 3: "a dog"}, frames=6)
    )
    Path("p.yaml").write_text("rollout: {window_frames: 6}\n")
    assert same(make(pipeline, timeline="t.yaml", seconds=2, preset="p.yaml"), found)


def test_what_a_person_should_know_is_told(
    pipeline: ll.Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    with pipeline.video("a " * 9, frames=4, notify=told.append) as video:
        next(video)
        assert "4 latent frames are no whole number of blocks; making 6" in told[0]
        assert "is longer than 5 tokens; it was cut after" in told[1]
        video.prompt("long " * 9)
        next(video)
    assert len(told) == 3 and not caplog.messages
    with pipeline.video("a cat", frames=4):
        assert "making 6" in caplog.messages[0]


def test_a_replay(pipeline: ll.Pipeline, video_bundle: Path) -> None:
    config, drawn = pipeline.config, np.random.default_rng(4)
    steps, text = len(config.rollout.steps), config.transformer
    tensors = {
        "noise": drawn.standard_normal((2, 6, *config.latent_shape)),
        "renoise": drawn.standard_normal((2, steps - 1, 2, 3, *config.latent_shape)),
        "prompt.0": drawn.standard_normal((1, text.text_len, text.text_dim)),
        "prompt.1": drawn.standard_normal((2, text.text_len, text.text_dim)),
    }
    schedule = '[{"frame": 0, "prompt": 0}, {"frame": 3, "prompt": 1}]'
    save_file({k: v.astype(np.float32) for k, v in tensors.items()}, "r", {"schedule": schedule})
    with pipeline.video(replay="r") as video:
        blocks = list(video)
        assert [block.prompt for block in blocks] == ["prompt.0", "prompt.1"]
        assert blocks[0].frames.shape == (2, FIRST_FRAMES, *SIZE, 3)
        with pytest.raises(UsageError, match="a replay has its own prompts"):
            video.prompt("a cat")
        with pytest.raises(UsageError, match="a replay takes its noise from a file"):
            video.save_state("s")
    arguments = ["--replay", "r", "--latents-out", "l", "--quiet"]
    assert main(["generate", "--bundle", str(video_bundle), *arguments]) == 0
    assert np.array_equal(latents(blocks), load_file("l")["latents"])


# ---- several videos --------------------------------------------------------------------------


def test_videos_side_by_side_are_those_that_each_is_alone(pipeline: ll.Pipeline) -> None:
    asked: list[tuple[Any, dict[str, Any]]] = [
        ({0: "a cat", 6: "a dog"}, {"seed": 1}),
        ("a bird", {"seed": 2}),
        ({0: "a fox", 3: "a cat"}, {"switch": "blend:3"}),
    ]
    expected = [make(pipeline, prompt, frames=12, **options) for prompt, options in asked]
    videos = [pipeline.video(prompt, frames=12, **options) for prompt, options in asked]
    for blocks, alone in zip(zip(*zip(*videos, strict=True), strict=True), expected, strict=True):
        assert same((latents(blocks), frames(blocks)), alone)
    for video in videos:
        video.close()


def test_videos_on_threads_of_their_own(pipeline: ll.Pipeline) -> None:
    prompts = [f"prompt {number}" for number in range(3)]
    expected = [make(pipeline, prompt, frames=9) for prompt in prompts]
    found: dict[str, tuple[Array, Array]] = {}

    def work(prompt: str) -> None:
        found[prompt] = make(pipeline, prompt, frames=9)

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(same(found[prompt], alone) for prompt, alone in zip(prompts, expected, strict=True))
