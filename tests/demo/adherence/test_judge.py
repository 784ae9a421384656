"""The measurements on clips whose scenes are known."""

import pytest
import torch

from longlive_trt.demo.adherence.judge import Tally, judged
from longlive_trt.demo.scenes import SceneSource
from longlive_trt.demo.world.clips import NEVER, render_clips


def tally(clips: int, seed: int) -> Tally:
    scenes = SceneSource(seed).scenes(clips)
    made = render_clips(scenes, scenes, torch.full((clips,), NEVER), 12)
    counted = Tally()
    for clip, row in zip(made, scenes.rows(), strict=True):
        counted.add(row, judged(clip))
    return counted


def test_tells_what_rendered_clips_show() -> None:
    assert tally(16, seed=5).share > 0.97


@pytest.mark.exhaustive
def test_tells_every_attribute_of_many_clips() -> None:
    counted = tally(150, seed=6)
    assert all(share > 0.96 for share in counted.by_attribute().values())
    assert counted.share > 0.985


def test_counts_what_was_stated_alone() -> None:
    counted = Tally()
    counted.add({"place": 1}, {"place": 1, "time": 2})
    counted.add({"place": 1, "time": 1}, {"place": 0, "time": 1})
    assert counted.by_attribute() == {"place": 0.5, "time": 1.0}
    assert counted.share == pytest.approx(2 / 3)
