"""The controller under loads that were recorded, and loads that are made up."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from longlive_trt.runtime.adaptive.controller import (
    LONGEST_PATIENCE,
    PATIENCE,
    Controller,
)

COSTS = (5.0, 4.0, 3.0, 2.0)
TARGET = 750.0
LOAD = Path(__file__).parents[2] / "data" / "load" / "cpu_blocks.txt"
"""Times of the demo's blocks in ms on two cores, while other programs came and went."""

Load = Callable[[int], float]


def run(
    load: Load, blocks: int, costs: Sequence[float] = COSTS, real: Sequence[float] | None = None
) -> tuple[list[int], list[float]]:
    """The rung and the time of each block; ``load``: what the best rung takes, block by block."""
    controller, rungs, times = Controller(TARGET, costs), list[int](), list[float]()
    for block in range(blocks):
        wanted = controller.choose()
        if wanted != controller.rung:
            controller.moved(wanted)
        shares = real or [cost / costs[0] for cost in costs]
        times.append(load(block) * shares[controller.rung])
        rungs.append(controller.rung)
        controller.note(times[-1])
    return rungs, times


def changes(rungs: Sequence[int]) -> int:
    return sum(a != b for a, b in pairwise(rungs))


def test_nothing_changes_while_blocks_are_in_time() -> None:
    rungs, _ = run(lambda _: 700, 500)
    assert set(rungs) == {0}


def test_one_hiccup_is_no_reason() -> None:
    rungs, _ = run(lambda block: 3000 if block % 40 == 20 else 600, 200)
    assert set(rungs) == {0}


def test_a_load_that_stays_is_answered_within_a_few_blocks() -> None:
    rungs, times = run(lambda block: 600 if block < 50 else 1100, 400)
    assert rungs[:51] == [0] * 51
    assert rungs[60] == 2, "3/5 of 1100 fits, 4/5 does not"
    late = [ms > TARGET for ms in times[60:]]
    assert np.mean(late) <= 0.01


def test_it_goes_back_up_when_the_load_goes_and_stays_there() -> None:
    rungs, times = run(lambda block: 1100 if 50 <= block < 150 else 600, 400)
    assert rungs[-1] == 0 and max(rungs) == 2
    assert changes(rungs) <= 4
    assert not any(ms > TARGET for ms in times[60:150])


def test_a_load_at_the_edge_does_not_make_it_swing() -> None:
    """The better rung is just too slow: tries become ever rarer."""
    random = np.random.default_rng(0)
    noise = random.normal(0, 10, 5000)
    rungs, times = run(lambda block: 760 + noise[block], 5000, real=(1.0, 0.8, 0.6, 0.4))
    tries = changes(rungs)
    assert tries <= 2 + 2 * 5000 / LONGEST_PATIENCE + 10
    assert np.mean([ms > TARGET for ms in times]) < 0.02


def test_what_a_rung_really_saves_is_learned() -> None:
    """Costs promise half the time, and steps save a tenth: going up again is tried in time."""
    real = (1.0, 0.9, 0.8, 0.7)
    costs = (8.0, 4.0, 2.0, 1.0)
    rungs, _ = run(lambda block: 800 if block < 40 else 640, 600, costs=costs, real=real)
    assert 1 in rungs[:40] and rungs[-1] == 0
    plain, _ = run(lambda block: 800, 200, costs=costs, real=real)
    assert plain[-1] == 1, "720 is in time, and 800 is not"


def test_the_last_rung_is_kept_where_none_is_fast_enough() -> None:
    rungs, times = run(lambda _: 5000, 100)
    assert rungs[-1] == len(COSTS) - 1 and times[-1] == 2000
    assert changes(rungs) == 1


def test_blocks_of_a_change_and_of_a_prompt_do_not_count() -> None:
    controller = Controller(TARGET, COSTS)
    for ms in (600, 9000):
        controller.note(ms)
    controller.interrupted()
    for ms in (9000, 9000, 600):
        controller.note(ms)
    assert controller.choose() == 0
    controller.note(9000)
    assert controller.choose() > 0


def test_patience_grows_with_tries_that_failed() -> None:
    controller = Controller(TARGET, (2.0, 1.0))
    waits = []
    for _ in range(4):
        for _ in range(4):
            controller.note(1000)
        controller.moved(controller.choose())
        assert controller.rung == 1
        waited = 0
        while controller.choose() == 1:
            controller.note(300)
            waited += 1
        waits.append(waited)
        controller.moved(0)
    assert waits[0] == PATIENCE + 2 and waits == sorted(waits)
    assert waits[-1] >= 4 * PATIENCE


def recorded() -> list[float]:
    lines = LOAD.read_text().splitlines()
    return [float(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("share", [0.6, 0.8, 1.0, 1.4])
def test_under_a_recorded_load(share: float) -> None:
    """The target is held, with rungs no worse than the one that holds it all the time."""
    load = np.array(recorded())
    scaled = np.tile(load * share * TARGET / np.median(load), 6)
    rungs, times = run(lambda block: scaled[block], len(scaled))
    holding = [np.percentile(scaled * cost / COSTS[0], 99) <= TARGET for cost in COSTS]
    fixed = holding.index(True)
    late = np.mean([ms > TARGET for ms in times])
    assert late <= 0.05 and (fixed == 0 or np.mean(scaled > TARGET) > 2 * late)
    assert np.mean(rungs) <= fixed + 0.1
    assert changes(rungs) <= len(scaled) / 20
