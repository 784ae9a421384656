"""Whole runs on an imagined GPU leave the same files as on a CPU."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from longlive_trt.cli import main
from longlive_trt.configs.replay import Replay, Switch
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.loader import DEVICES, DeviceChoice
from longlive_trt.errors import EngineError
from longlive_trt.runtime.generation import Outputs, generate
from longlive_trt.runtime.pipeline import Pipeline
from longlive_trt.runtime.plan import Plan
from longlive_trt.runtime.progress import QuietProgress
from longlive_trt.runtime.prompting.switches import SwitchMode
from longlive_trt.runtime.prompting.timeline import Cue
from longlive_trt.runtime.state import load_state
from longlive_trt.runtime.verify import compare
from longlive_trt.runtime.video import VideoBlock
from tests.fakes.cuda import FakeCuda, Schedule
from tests.fakes.engines import put_in_place

Array = np.ndarray[Any, np.dtype[Any]]
Install = Callable[[Schedule], FakeCuda]

SCHEDULES = [
    *("lazy", 1),
    *(pytest.param(schedule, marks=pytest.mark.exhaustive) for schedule in ("eager", 2)),
]
"""When the imagined GPU does its work: as late as may be, at once, or in a random order."""
BLOCKS, FRAMES = 6, 69


@pytest.fixture(scope="module")
def bundle(video_bundle: Path) -> Bundle:
    return open_bundle(video_bundle)


@pytest.fixture
def install(fake_cuda: Callable[..., FakeCuda], monkeypatch: pytest.MonkeyPatch) -> Install:
    def place(schedule: Schedule) -> FakeCuda:
        cuda = fake_cuda(schedule=schedule)
        put_in_place(cuda, monkeypatch)
        return cuda

    return place


def run(
    bundle: Bundle, folder: Path, device: DeviceChoice, *, low_memory: bool = False, **changes: Any
) -> None:
    outputs = Outputs(f"{folder}/frames/", folder / "latents", folder / "state")
    cues = (Cue(0, "a cat"), Cue(9, "a dog"), Cue(15, "a cat"))
    plan = replace(Plan(bundle.config, BLOCKS, cues=cues), **changes)
    with Pipeline(bundle, device, low_memory=low_memory) as pipeline:
        assert not generate(pipeline, plan, outputs, QuietProgress())


def pictures(folder: Path) -> Array:
    paths = sorted((folder / "frames").glob("*.png"))
    return np.stack([np.asarray(Image.open(path)) for path in paths])


def require_same_files(found: Path, expected: Path) -> None:
    assert np.array_equal(
        *(load_file(folder / "latents")["latents"] for folder in (found, expected))
    )
    assert len(pictures(expected)) == FRAMES
    assert np.array_equal(pictures(found), pictures(expected))
    one, other = (load_state(folder / "state") for folder in (found, expected))
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert np.array_equal(tensor, other.tensors[name]), name


CASES: dict[str, dict[str, Any]] = {
    "exact switches": {},
    "partial switches": {"switch": SwitchMode("partial")},
    "no re-cache": {"switch": SwitchMode("none")},
    "blended prompts": {"switch": SwitchMode.parse("blend:3")},
    "little memory": {"low_memory": True},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", CASES)
def test_a_run_writes_the_same_files(
    bundle: Bundle, install: Install, tmp_path: Path, case: str, schedule: Schedule
) -> None:
    cuda = install(schedule)
    for device in DEVICES[1:]:
        run(bundle, tmp_path / device, device, **CASES[case])
    require_same_files(tmp_path / "cuda", tmp_path / "cpu")
    cuda.finish_all()
    assert cuda.queues.fault is None
    assert cuda.leaks() == {}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_steered_video_is_the_same(
    bundle: Bundle, install: Install, tmp_path: Path, schedule: Schedule
) -> None:
    """Through the Python API: prompts on the way, a block taken back, a state, two videos."""
    made: dict[str, list[Array]] = {}
    for device in DEVICES[1:]:
        if device == "cuda":
            cuda = install(schedule)
        with Pipeline(bundle, device) as pipeline:
            made[device] = [block.frames for block in steered(pipeline, tmp_path / device)]
    cuda.finish_all()
    assert cuda.queues.fault is None and cuda.leaks() == {}
    assert len(made["cuda"]) == 10
    assert all(map(np.array_equal, made["cuda"], made["cpu"]))


def steered(pipeline: Pipeline, state: Path) -> list[VideoBlock]:
    with pipeline.video("a cat") as video, pipeline.video("a fox", switch="blend:2") as other:
        blocks = [next(video), next(other)]
        video.prompt("a bird")
        there = video.checkpoint()
        other.prompt("a dog")
        blocks += [next(video), next(other)]
        video.rollback(there)
        video.prompt("a dog", mode="none")
        other.prompt("a cat")
        blocks += [next(video), next(other), next(video)]
        video.save_state(state)
    with pipeline.video(resume=state, frames=9) as video:
        blocks.append(next(video))
        video.prompt("a bird", mode="partial")
        blocks += video
    return blocks


def replay_of(bundle: Bundle) -> Replay:
    config, drawn = bundle.config, np.random.default_rng(4)
    steps, frames = len(config.rollout.steps), 3 * BLOCKS
    text = (2, config.transformer.text_len, config.transformer.text_dim)
    return Replay(
        noise=drawn.standard_normal((2, frames, *config.latent_shape), np.float32),
        renoise=drawn.standard_normal((BLOCKS, steps - 1, 2, 3, *config.latent_shape), np.float32),
        prompts={number: drawn.standard_normal(text, np.float32) for number in range(2)},
        schedule=(Switch(0, 0), Switch(9, 1)),
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_replay_of_two_videos(
    bundle: Bundle, install: Install, tmp_path: Path, schedule: Schedule
) -> None:
    install(schedule)
    plan = Plan(bundle.config, BLOCKS, replay=replay_of(bundle), decode=False)
    for device in DEVICES[1:]:
        with Pipeline(bundle, device) as pipeline:
            generate(pipeline, plan, Outputs(latents=tmp_path / device), QuietProgress())
    found, expected = (load_file(tmp_path / d)["latents"] for d in ("cuda", "cpu"))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_verify_finds_no_difference(bundle: Bundle, install: Install, schedule: Schedule) -> None:
    cuda = install(schedule)
    comparison = compare(bundle, bundle, 1e-9, None, 3, "cuda")
    assert comparison.passed
    assert comparison.graphs.keys() >= {"step", "prompt", "vae_first", "vae_next"}
    assert cuda.calls["cuLaunchKernel"] > 20
    assert cuda.leaks() == {}


def test_the_command_runs_on_a_gpu(bundle: Bundle, install: Install, tmp_path: Path) -> None:
    cuda = install("lazy")
    out = tmp_path / "frames"
    arguments = ["--bundle", bundle.folder, "--prompt", "a cat", "--frames", 36, "--out", f"{out}/"]
    options = ["--device", "cuda", "--debug-steady", "--quiet"]
    assert main([str(value) for value in ("generate", *arguments, *options)]) == 0
    assert len(list(out.glob("*.png"))) == 141
    assert cuda.calls["cuGraphLaunch"] > 0


def test_what_a_debugged_run_must_not_do(bundle: Bundle, install: Install, tmp_path: Path) -> None:
    """The picture of a block that was handed out stays, whatever comes after it."""
    cuda = install("lazy")

    def take() -> None:
        cuda.memory.taken_by_others_bytes += 64 * (cuda.calls["cuGraphLaunch"] > 60)

    cuda.before["cuMemGetInfo"] = take
    with pytest.raises(EngineError, match=r"^debug: 64 bytes of GPU memory were taken"):
        run(bundle, tmp_path, "cuda", blocks=20, cues=(Cue(0, "a cat"),), debug=True)
    assert len(pictures(tmp_path)) > FRAMES
