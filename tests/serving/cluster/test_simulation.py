"""The imagined fleet: nobody is in two places, and nobody gets lost."""

from dataclasses import replace

import pytest

pytest.importorskip("fastapi")

from benchmarks.fleet.world import Scenario, World

SMALL = Scenario(gpus=20, sessions=600, seconds=1800, gateways=3, hold_s=120, upgrade_at_s=300)


@pytest.mark.parametrize(
    "scenario",
    [
        SMALL,
        replace(SMALL, failures_per_gpu_hour=2.0),
        replace(SMALL, sessions=3000),
        replace(SMALL, save_every_s=0.0, stats_s=20.0, failures_per_gpu_hour=2.0),
    ],
)
def test_everybody_is_accounted_for(scenario: Scenario) -> None:
    world = World(scenario)
    counted = world.run()
    outcomes = counted.outcomes
    running = {one for machine in world.machines for one in machine.sessions}
    assert all(len(machine.sessions) <= machine.slots for machine in world.machines)
    assert len(running) == sum(len(machine.sessions) for machine in world.machines)
    assert not any(one.is_over for one in (*running, *world.moving))
    waiting = sum(len(line) for line in world.lines)
    came = outcomes["began"] + outcomes["gave up waiting"] + outcomes["refused"] + waiting
    assert came == outcomes["came"]
    there = len(running) + len(world.moving)
    assert outcomes["began"] == outcomes["left by themselves"] + there


def test_the_same_seed_is_the_same_hour() -> None:
    first, second = World(SMALL).run(), World(SMALL).run()
    assert first.outcomes == second.outcomes and first.pause_s == second.pause_s
    assert World(replace(SMALL, seed=2)).run().outcomes != first.outcomes


def test_a_store_that_is_too_slow_shows() -> None:
    fast = World(SMALL).run()
    slow = World(replace(SMALL, store_bytes_per_s=1e9)).run()
    assert max(slow.pause_s) > 4 * max(fast.pause_s)


def test_people_who_find_no_slot_give_up() -> None:
    full = World(replace(SMALL, sessions=6000)).run()
    assert full.outcomes["gave up waiting"] + full.outcomes["refused"] > 1000
    assert World(replace(SMALL, sessions=200)).run().outcomes["gave up waiting"] == 0
