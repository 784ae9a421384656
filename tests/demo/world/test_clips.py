from dataclasses import replace

import pytest
import torch
from torch import Tensor

from longlive_trt.demo.scenes import PLACES, TRAVELERS, Scenes, SceneSource, fits
from longlive_trt.demo.world.clips import CHANGE_FRAMES, NEVER, render_clips

SMALL = (48, 80)


def unchanging(scenes: Scenes, frames: int) -> Tensor:
    return render_clips(scenes, scenes, torch.full((len(scenes),), NEVER), frames, SMALL)


@pytest.fixture(scope="module")
def source() -> SceneSource:
    return SceneSource(11)


def test_every_place_shows_every_traveler_that_fits_it() -> None:
    pairs = [
        (place, traveler)
        for place in range(len(PLACES))
        for traveler in range(len(TRAVELERS))
        if fits(place, traveler)
    ]
    row = {"time": 1, "weather": 0, "color": 0, "direction": 1, "pace": 1}
    rows = [row | {"place": place, "traveler": traveler} for place, traveler in pairs]
    seen = unchanging(Scenes.of(rows, [3.0] * len(rows), "cpu"), 1)[:, 0].float()
    red = (seen[..., 0] > 150) & (seen[..., 1] < 110) & (seen[..., 2] < 110)
    assert (red.flatten(1).sum(1) > 30).all()


def test_a_clip_does_not_depend_on_those_beside_it(source: SceneSource) -> None:
    first, second = source.scenes(6), source.scenes(6)
    second = replace(second, seed=first.seed)
    at = torch.tensor([2, NEVER, -5, 1, 3, 4])
    together = render_clips(first, second, at, 8, SMALL)
    for i in range(6):
        one = torch.tensor([i])
        alone = render_clips(first.take(one), second.take(one), at[one], 8, SMALL)
        assert (alone[0].int() - together[i].int()).abs().max() <= 1


def test_nothing_changes_before_its_time_and_everything_has_after_it(source: SceneSource) -> None:
    first = source.scenes(4)
    second = source.changed(first)
    at, frames = 3, 3 + CHANGE_FRAMES + 2
    changed = render_clips(first, second, torch.full((4,), at), frames, SMALL)
    assert torch.equal(changed[:, : at + 1], unchanging(first, at + 1))
    # Light, paint and land are those of the second scene, wherever its camera is by then.
    late = unchanging(second, 1)[:, 0].float().mean((1, 2))
    assert ((changed[:, -1].float().mean((1, 2)) - late).abs() < 25).all()


def test_a_leaving_traveler_is_gone_before_the_next_one_arrives(source: SceneSource) -> None:
    row = {"place": 1, "time": 1, "weather": 0, "color": 0, "direction": 1, "pace": 0}
    car = Scenes.of([row | {"traveler": 0}], [7.3], "cpu")
    bird = Scenes.of([row | {"traveler": 4}], [7.3], "cpu")
    clip = render_clips(car, bird, torch.tensor([0]), CHANGE_FRAMES, SMALL)[0].float()
    red = (clip[..., 0] > 150) & (clip[..., 1] < 90) & (clip[..., 2] < 90)
    counts = red.flatten(1).sum(1)
    assert counts.argmin() not in (0, CHANGE_FRAMES - 1)
    assert counts.min() < 0.4 * counts[0]
