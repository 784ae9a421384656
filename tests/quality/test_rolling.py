"""The rollout in torch, in which ideas are tried, against the product's own."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import longlive_trt as ll
from benchmarks.quality.rolling import Way, decoded, latents
from longlive_trt.quality.cases import Case, Lengths, cases
from longlive_trt.quality.prompts import read_prompts, shipped_file
from longlive_trt.quality.rolling import Maker

pytestmark = pytest.mark.exhaustive


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ll.Pipeline]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "demo-cache"))
        with ll.load("demo") as pipeline:
            yield pipeline


@pytest.fixture(scope="module")
def case(pipeline: ll.Pipeline) -> Case:
    """Three blocks of each of three prompts: a switch before the window is full, and one after."""
    asked = read_prompts(shipped_file(pipeline.config))
    lengths = Lengths(prompts=0, timelines=1, long=0, seconds=1)
    return cases(asked, pipeline.config, lengths)[0]


def test_without_an_idea_it_is_the_product(pipeline: ll.Pipeline, case: Case) -> None:
    own = latents(pipeline, case, Way())
    with Maker(pipeline).video(case) as video:
        blocks = list(video.ahead())
    assert len(own) == len(blocks) == 9
    for a, b in zip(own, blocks, strict=True):
        gap = np.linalg.norm(a.numpy() - b.latents) / np.linalg.norm(b.latents)
        assert gap < 1e-4
    pictures = np.concatenate(list(decoded(pipeline, own)))
    expected = np.concatenate([block.frames for block in blocks])
    assert pictures.shape == expected.shape
    assert np.abs(pictures.astype(int) - expected).max() <= 1


def test_it_is_the_reference_too(pipeline: ll.Pipeline, case: Case) -> None:
    from benchmarks.quality.rolling import Rollout, open_video
    from longlive_trt.export.models.rollout import ReferenceRollout

    video = open_video(pipeline, case, Way())
    rollout = video.rollout
    reference = ReferenceRollout(rollout.model, rollout.config, 1, case.blocks * 3)
    with torch.inference_mode():
        for block in range(5):
            if block * 3 in video.states:
                reference.switch_prompt(video.states[block * 3])
            noise = [torch.from_numpy(n) for n in video.noise.block(block).draws]
            expected = reference.run_block(noise[0], noise[1:])
            torch.testing.assert_close(video.next_block(), expected, rtol=1e-4, atol=1e-4)
    assert isinstance(rollout, Rollout)
