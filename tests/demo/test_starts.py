"""Videos of the demo model that begin with a clip of its world."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import longlive_trt as ll
from longlive_trt.contract import VAE_GRAPHS
from longlive_trt.demo.adherence.judge import judged
from longlive_trt.demo.scenes import ATTRIBUTES, SceneSource
from longlive_trt.demo.training.clips import psnr
from longlive_trt.demo.world.clips import NEVER, render_clips
from longlive_trt.runtime.decoding.host import VaeStream
from tests.fakes.clips import write_clip

pytestmark = pytest.mark.exhaustive

GIVEN, COUNT = 33, 3
JUDGED = [name for name in ATTRIBUTES if name != "pace"]
Shown = dict[str, int]


@pytest.fixture(scope="module")
def scenes() -> list[Shown]:
    drawn = SceneSource(4242).scenes(COUNT)
    return [{name: int(getattr(drawn, name)[i]) for name in ATTRIBUTES} for i in range(COUNT)]


@pytest.fixture(scope="module")
def clips() -> Tensor:
    drawn = SceneSource(4242).scenes(COUNT)
    return render_clips(drawn, drawn, torch.full((COUNT,), NEVER), GIVEN)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ll.Pipeline]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "demo-cache"))
        with ll.load("demo") as pipeline:
            yield pipeline


def prompt(scene: Shown) -> str:
    place, time, weather, traveler, color, direction = (
        ATTRIBUTES[name][scene[name]] for name in JUDGED
    )
    return f"a {color} {traveler} moving to the {direction} in the {place} at {time}, {weather}"


def test_a_clip_comes_back_from_its_latents(pipeline: ll.Pipeline, clips: Tensor) -> None:
    first, following = (pipeline.engines.get(graph, "a test") for graph in VAE_GRAPHS)
    for clip in clips:
        latents = pipeline.engines.encode(list(clip.numpy()))
        assert latents.shape == (1, 9, 16, 24, 40)
        pixels = torch.from_numpy(VaeStream(first, following, 1).decode(latents))
        assert float(psnr(pixels, clip[None])) >= 30


def test_a_clip_s_scene_goes_on_and_then_follows_a_new_prompt(
    pipeline: ll.Pipeline, scenes: list[Shown], clips: Tensor, tmp_path: Path
) -> None:
    kept = changed = 0
    for number, scene in enumerate(scenes):
        path = write_clip(tmp_path / f"{number}.mp4", list(clips[number].numpy()))
        other = {**scene, "time": (scene["time"] + 2) % 4, "color": (scene["color"] + 3) % 7}
        # Nine latent frames are given, and six blocks go on with them.
        prompts = {0: prompt(scene), 27: prompt(other)}
        with pipeline.video(prompts, frames=36, seed=number, start=path) as video:
            shown = np.concatenate([block.frames for block in video.ahead()])
        before, after = judged(torch.from_numpy(shown[:72])), judged(torch.from_numpy(shown[96:]))
        kept += sum(before[name] == scene[name] for name in JUDGED)
        changed += sum(after[name] == other[name] for name in JUDGED)
    # All of 36 and 36, when it was written for six clips.
    assert kept >= COUNT * len(JUDGED) - 1
    assert changed >= COUNT * len(JUDGED) - 2
