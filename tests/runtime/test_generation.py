"""The block loop: outputs whole whatever happens, and nothing that grows."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.loader import load_engine
from longlive_trt.errors import EngineError, LostGpuError, OutputError, UsageError
from longlive_trt.runtime import assembly, generation, video
from longlive_trt.runtime.generation import Outputs
from longlive_trt.runtime.noise import SeededNoise
from longlive_trt.runtime.pipeline import Pipeline
from longlive_trt.runtime.plan import Plan, VideoOptions, plan_video
from longlive_trt.runtime.progress import BlockDone, Finished, QuietProgress
from longlive_trt.runtime.prompting.encoder import PromptContexts
from longlive_trt.runtime.prompting.timeline import Cue
from longlive_trt.runtime.session import Block, Session
from longlive_trt.runtime.state import load_state

CAT = (Cue(0, "a cat"),)


class Recorder(QuietProgress):
    def __init__(self, on_block: Callable[[], None] = lambda: None) -> None:
        self.blocks: list[BlockDone] = []
        self.notices: list[str] = []
        self.ends: list[Finished] = []
        self._on_block = on_block

    def block(self, event: BlockDone) -> None:
        self.blocks.append(event)
        self._on_block()

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def finished(self, event: Finished) -> None:
        self.ends.append(event)


@pytest.fixture(scope="module")
def bundle(video_bundle: Path) -> Bundle:
    return open_bundle(video_bundle)


def generate(
    bundle: Bundle, folder: Path, progress: QuietProgress, blocks: int = 3, **outputs: Any
) -> None:
    paths = {"latents": folder / "l", "state": folder / "s", **outputs}
    plan = Plan(bundle.config, blocks, cues=CAT, decode=paths.get("video") is not None)
    with Pipeline(bundle, "cpu") as pipeline:
        generation.generate(pipeline, plan, Outputs(**paths), progress)


def frames_in(folder: Path) -> int:
    return len(list(folder.glob("*.png")))


@pytest.mark.parametrize(
    ("first", "end", "frames"), [(0, 1, 9), (0, 3, 33), (1, 2, 12), (2, 5, 36), (0, 0, 0)]
)
def test_video_frames_of_blocks(bundle: Bundle, first: int, end: int, frames: int) -> None:
    assert Plan(bundle.config, None).video_frames(first, end) == frames


@pytest.mark.parametrize(
    ("video", "names"),
    [
        ("a/v.mp4", ["a/v.0.mp4", "a/v.1.mp4"]),
        ("frames/", ["frames.0/", "frames.1/"]),
        (None, [None, None]),
    ],
)
def test_one_video_for_every_row(video: str | None, names: list[str | None]) -> None:
    assert Outputs(video).videos(2) == names
    assert Outputs(video).videos(1) == [video]


def test_decoding_changes_no_bit_of_the_latents(bundle: Bundle, tmp_path: Path) -> None:
    with_video, without = tmp_path / "with", tmp_path / "without"
    generate(bundle, with_video, Recorder(), video=str(tmp_path / "v.mp4"))
    generate(bundle, without, Recorder())
    found, expected = (load_file(folder / "l")["latents"] for folder in (with_video, without))
    assert np.array_equal(found, expected)


class DiskFull:
    """A writer for which the disk is full from the second block on."""

    def __init__(self, *_: object) -> None:
        self.notices: list[str] = []
        self.written = self.frames_kept = 0

    def write(self, pixels: Any) -> None:
        self.written += 1
        if self.written > 1:
            raise OutputError("v.mp4: the disk is full")

    def close(self) -> None:
        pass


def test_a_full_disk_keeps_the_other_outputs(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "open_writer", DiskFull)
    with pytest.raises(OutputError, match="disk is full"):
        generate(bundle, tmp_path, Recorder(), 9, video=str(tmp_path / "v.mp4"))
    assert load_file(tmp_path / "l")["latents"].shape[1] >= 6
    assert (tmp_path / "s").is_file()


def test_an_output_that_fails_takes_no_other_with_it(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OutputError("l: cannot be written")

    monkeypatch.setattr(generation, "write_latents", fail)
    with pytest.raises(OutputError, match="l: cannot be written"):
        generate(bundle, tmp_path, Recorder(), 1)
    assert (tmp_path / "s").is_file()


def test_a_second_interrupt_keeps_what_was_made(bundle: Bundle, tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    progress = Recorder(interrupt)
    pictures = f"{tmp_path / 'frames'}/"
    with pytest.raises(KeyboardInterrupt):
        # It is raised once more while the rest is handed out.
        generate(bundle, tmp_path, progress, 5, video=pictures)
    assert frames_in(tmp_path / "frames") in (9, 21)
    assert (tmp_path / "s").is_file()


def test_an_interrupt_while_the_record_is_written_hides_no_end(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = generation.write_sidecar

    def press() -> None:
        if len(progress.blocks) == 1:
            signal.raise_signal(signal.SIGINT)

    def press_again(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        write(*arguments)

    monkeypatch.setattr(generation, "write_sidecar", press_again)
    progress, path = Recorder(press), tmp_path / "v.mp4"
    with pytest.raises(KeyboardInterrupt):
        generate(bundle, tmp_path, progress, 9, video=str(path))
    assert [(end.video_frames, end.interrupted) for end in progress.ends] == [(21, True)]
    assert path.with_name("v.mp4.json").is_file()


def at_block(number: int, error: BaseException, patch: pytest.MonkeyPatch) -> None:
    step = Session.step

    def failing(session: Session) -> Block:
        if session.blocks_made == number:
            raise error
        return step(session)

    patch.setattr(Session, "step", failing)


@pytest.mark.parametrize("error", [EngineError("a test"), ZeroDivisionError("a test")])
def test_a_failure_keeps_all_blocks_before_it(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The last of them too, whose pictures were still to be handed out."""
    at_block(2, error, monkeypatch)
    progress, pictures = Recorder(), f"{tmp_path / 'frames'}/"
    with pytest.raises(type(error), match="a test"):
        generate(bundle, tmp_path, progress, 5, video=pictures)
    assert frames_in(tmp_path / "frames") == 21
    assert load_file(tmp_path / "l")["latents"].shape[1] == 6
    assert not (tmp_path / "s").exists()
    assert [end.video_frames for end in progress.ends] == [21]
    assert [n for n in progress.notices if "s: not written; the run ended in the middle" in n]


def lose_pictures(patch: pytest.MonkeyPatch, *errors: BaseException) -> None:
    """Of the second block, when they are asked for."""
    coming, pixels = list(errors), Block.pixels

    def failing(block: Block) -> Any:
        if block.index == 1 and coming:
            raise coming.pop(0)
        return pixels(block)

    patch.setattr(Block, "pixels", failing)


@pytest.mark.parametrize(
    ("error", "notice"),
    [
        (LostGpuError("lost"), "block 2 was made, and its pictures were on the GPU still, and are"),
        (EngineError("why"), "block 2 was made, and its pictures cannot be had: why"),
    ],
)
def test_pictures_that_cannot_be_had(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    notice: str,
) -> None:
    lose_pictures(monkeypatch, error, error)
    progress, pictures = Recorder(), f"{tmp_path / 'frames'}/"
    with pytest.raises(type(error)):
        generate(bundle, tmp_path, progress, 5, video=pictures)
    assert frames_in(tmp_path / "frames") == 9
    assert any(notice in text for text in progress.notices)
    assert (tmp_path / "s").exists() != isinstance(error, LostGpuError)


def test_a_state_may_be_ahead_of_its_video_and_says_so(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C twice, while pictures are waited for; latents are as far as the state."""
    lose_pictures(monkeypatch, KeyboardInterrupt(), KeyboardInterrupt())
    progress, pictures = Recorder(), f"{tmp_path / 'frames'}/"
    with pytest.raises(KeyboardInterrupt):
        generate(bundle, tmp_path, progress, 5, video=pictures)
    assert frames_in(tmp_path / "frames") == 9
    saved = load_state(tmp_path / "s")
    assert load_file(tmp_path / "l")["latents"].shape[1] == saved.next_frame == 9
    assert any("s: goes on after block 3; without pictures: 2, 3" in n for n in progress.notices)
    assert [end.interrupted for end in progress.ends] == [True]


def test_checks_come_before_engines(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "load_engine", lambda *_, **__: pytest.fail("an engine"))
    options = VideoOptions(prompt="a cat", overrides=("rollout.window_frames=2000",))
    with Pipeline(bundle, "cpu") as pipeline, pytest.raises(UsageError, match="2000"):
        plan_video(pipeline.bundle, options)
    assert not list(tmp_path.iterdir())


# ---- nothing grows ---------------------------------------------------------------------------


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.mark.exhaustive
def test_400_blocks_in_constant_memory(mini_bundle: Callable[[str], Path]) -> None:
    mini = open_bundle(mini_bundle("relative"))
    shape = (1, 3, *mini.config.latent_shape)
    with (
        load_engine(mini, "step", threads=1) as step,
        load_engine(mini, "prompt", threads=1) as prompt,
        Session(step, mini.config, SeededNoise(0, shape, 4)) as session,
    ):
        states = np.random.default_rng(0).standard_normal((2, 5, 12), np.float32)
        contexts = [PromptContexts(prompt, 1).of_states(row[None]) for row in states]
        sizes, files = [], []
        for block in range(400):
            if block % 7 == 0:
                session.switch_prompt(contexts[block // 7 % 2])
            latents = session.step().latents
            if block % 10 == 0:
                sizes.append(resident_bytes())
                files.append(len(os.listdir("/proc/self/fd")))  # noqa: PTH208
        assert np.isfinite(latents).all()
        assert len(session.history.items()) == 12
    assert max(sizes[2:]) < 1.01 * sizes[1]
    assert len(set(files)) == 1


@pytest.mark.exhaustive
def test_a_long_video_in_constant_memory(bundle: Bundle, tmp_path: Path) -> None:
    """With decoding and an encoder; all pictures of the run are several times the allowance."""
    sizes: list[int] = []
    progress = Recorder(lambda: sizes.append(resident_bytes()))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    outputs = {"latents": None, "state": None, "video": f"{tmp_path}/v.mp4"}
    generate(bundle, tmp_path, progress, 24, **outputs)
    assert len(sizes) == 24
    assert max(sizes[10:]) < 1.01 * max(sizes[:10])
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
