"""Videos held to a time: when steps change, what is said of it, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import longlive_trt as ll
from longlive_trt.errors import UsageError
from longlive_trt.runtime.adaptive.ladder import Rung, ladder
from longlive_trt.runtime.adaptive.pace import (
    FIRST_BLOCKS,
    Pace,
    real_time_ms,
    require_adaptable,
)
from longlive_trt.runtime.generation import Outputs, generate
from longlive_trt.runtime.plan import Plan, VideoOptions, plan_video
from longlive_trt.runtime.progress import QuietProgress
from longlive_trt.runtime.ring import RingLayout
from longlive_trt.runtime.transformer import Level


def plan_of(pipeline: ll.Pipeline, **options: Any) -> Plan:
    asked = {"prompt": "a cat", "frames": 60, **options}
    return plan_video(pipeline.bundle, VideoOptions(**asked))


class Heard(QuietProgress):
    def __init__(self) -> None:
        self.told: list[str] = []

    def notice(self, text: str) -> None:
        if "it was cut after" not in text:
            self.told.append(text)


def paced(
    pipeline: ll.Pipeline, plan: Plan, block_ms: Callable[[int], float], target_ms: float, out: Path
) -> tuple[Pace, list[str], Any]:
    """A video whose clock is made up: ``block_ms`` by the rung that is in use."""
    rungs = ladder(pipeline.bundle, plan, "balanced")
    plan, heard = replace(plan, levels=tuple(rung.level for rung in rungs[1:])), Heard()
    now = count(0)
    blocks = frozenset(cue.frame // 3 for cue in plan.cues)
    pace = Pace(rungs, target_ms, blocks, heard.notice)
    elapsed = [0.0]

    def clock() -> float:
        next(now)
        elapsed[0] += block_ms(pace._controller.rung) / 1e3
        return elapsed[0]

    pace.clock = clock
    generate(pipeline, plan, Outputs(str(out)), heard, "made up", pace)
    return pace, heard.told, json.loads(Path(f"{out}.json").read_text())


def test_the_ladder_of_a_bundle(pipeline: ll.Pipeline) -> None:
    rungs = ladder(pipeline.bundle, plan_of(pipeline), "mine")
    assert [rung.name for rung in rungs] == ["mine", "speed", "turbo", "ultra"]
    costs = [rung.cost for rung in rungs]
    assert costs == sorted(costs, reverse=True)
    wide = ladder(pipeline.bundle, plan_of(pipeline, preset="quality"), "quality")
    names = [rung.name for rung in wide]
    assert names[0] == "quality" and names[-1] == "ultra" and len(names) == 5
    faster = ladder(pipeline.bundle, plan_of(pipeline, preset="turbo"), "turbo")
    assert [rung.name for rung in faster] == ["turbo", "ultra"]


def test_a_preset_with_another_decoder_is_no_rung(two_decoders: Path) -> None:
    with ll.load(two_decoders) as pipeline:
        full, light = (
            [r.name for r in ladder(pipeline.bundle, plan_of(pipeline, decoder=name), "mine")]
            for name in ("full", "light")
        )
    assert full == light == ["mine", "speed", "turbo", "ultra"]


def test_the_fastest_has_nothing_to_step_down_to(pipeline: ll.Pipeline) -> None:
    with pytest.raises(UsageError, match=r"no preset .* is faster than ultra.*--preset balanced"):
        ladder(pipeline.bundle, plan_of(pipeline, preset="ultra"), "ultra")


def test_blocks_that_come_too_late_change_the_preset(pipeline: ll.Pipeline, tmp_path: Path) -> None:
    times = [900.0, 800.0, 500.0, 300.0]
    plan = plan_of(pipeline, frames=90)
    pace, told, record = paced(pipeline, plan, times.__getitem__, 600, tmp_path / "v.mp4")
    assert pace.changes[0] == (0, "balanced")
    changes = record["pace"]["presets"]
    assert changes[0] == {"block": 0, "preset": "balanced"} and len(changes) >= 2
    assert record["pace"]["target_ms"] == 600
    assert changes[1]["block"] >= FIRST_BLOCKS and changes[-1]["preset"] == "turbo"
    assert "balanced took up to 900 ms (target 600 ms); going on with" in told[0]
    assert told[-1].startswith("a block took ") and "turbo" in told[-1]


def test_never_within_the_first_blocks_of_a_prompt(pipeline: ll.Pipeline, tmp_path: Path) -> None:
    prompts = {n * 3: f"cat number {n}" for n in range(0, 30, 3)}
    plan = plan_of(pipeline, prompt=prompts, frames=90)
    pace, _, _ = paced(pipeline, plan, lambda _: 900.0, 600, tmp_path / "v.mp4")
    assert pace.changes == [(0, "balanced")], "there are never four blocks of one prompt"
    rare = plan_of(pipeline, prompt={0: "a cat", 45: "a dog"}, frames=90)
    pace, _, _ = paced(pipeline, rare, lambda _: 900.0, 600, tmp_path / "w.mp4")
    blocks = [block for block, _ in pace.changes[1:]]
    assert blocks and not any(
        0 <= block - start < FIRST_BLOCKS for block in blocks for start in (0, 15)
    )


def test_a_target_that_no_preset_reaches(pipeline: ll.Pipeline, tmp_path: Path) -> None:
    plan = plan_of(pipeline, frames=90)
    _, told, _ = paced(pipeline, plan, lambda _: 900.0, 5, tmp_path / "v.mp4")
    assert told[-1].startswith("the target of 5 ms was not reached: ultra, the fastest of these")
    assert "took 900 ms a block (p99 900)" in told[-1]


def test_a_target_that_is_held_changes_no_bit(pipeline: ll.Pipeline, tmp_path: Path) -> None:
    plan = plan_of(pipeline, frames=30)
    pace, told, _ = paced(pipeline, plan, lambda _: 100.0, 600, tmp_path / "v.mp4")
    assert pace.changes == [(0, "balanced")]
    assert told == ["a block took 100 ms (p99; target 600); blocks: balanced 8"]
    with pipeline.open(plan) as plain, pipeline.open(replace(plan, levels=_levels(pace))) as own:
        for a, b in zip(plain, own, strict=True):
            assert np.array_equal(a.frames, b.frames)


def _levels(pace: Pace) -> tuple[Any, ...]:
    rungs: list[Rung] = list(pace.rungs)
    return tuple(rung.level for rung in rungs[1:])


def test_real_time_is_how_long_a_block_is_shown(pipeline: ll.Pipeline) -> None:
    assert real_time_ms(plan_of(pipeline)) == 750


def test_what_fixes_the_window_is_refused(pipeline: ll.Pipeline, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="global attention has no window to change"):
        require_adaptable(plan_of(pipeline, overrides=("rollout.window_frames=-1",)))
    with pipeline.video("a cat", frames=6) as video:
        list(video)
        video.save_state(tmp_path / "state")
    resumed = plan_video(pipeline.bundle, VideoOptions(resume=tmp_path / "state", frames=6))
    with pytest.raises(UsageError, match="a replay and a saved state fix"):
        require_adaptable(resumed)


def test_a_state_whose_window_changed_is_not_saved(pipeline: ll.Pipeline, tmp_path: Path) -> None:
    plan = plan_of(pipeline)
    narrow = plan_of(pipeline, overrides=("rollout.window_frames=9",)).config
    level = Level(narrow.rollout.steps, RingLayout.of(narrow, plan.total_frames))
    with pipeline.open(replace(plan, levels=(level,))) as video:
        while not (video.blocks_made > 4 and video.session.use(level)):
            video.step().fetch()
        with pytest.raises(UsageError, match="the window changed on the way"):
            video.save_state(tmp_path / "state")
