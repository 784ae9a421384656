"""The record of a video held to a time while other programs run: what is kept and drawn of it."""

from typing import Any
from xml.etree import ElementTree

import pytest

import longlive_trt as ll
from benchmarks.quality import competition
from benchmarks.quality.competition import FREE, HELD, PHASES
from benchmarks.quality.competition_plot import drawn
from longlive_trt.runtime.plan import VideoOptions, plan_video


class Slowing(competition.Competitors):
    """In place of busy loops: whether there would be any."""

    is_on = False

    def start(self) -> None:
        self.is_on = True

    def stop(self) -> None:
        self.is_on = False


def rolled(pipeline: ll.Pipeline, *, held: bool) -> dict[str, Any]:
    """A video of made-up times: half a second for a block, and longer beside other programs."""
    slowing, now = Slowing(2), [0.0]

    def clock() -> float:
        now[0] += 1.5 if slowing.is_on else 0.5
        return now[0]

    options = VideoOptions(prompt="a cat", frames=90, preset="balanced")
    plan = plan_video(pipeline.bundle, options)
    phases = (8, 12, 10)
    found = competition.rolled(pipeline, plan, 1200, slowing, phases, held=held, clock=clock)
    assert not slowing.is_on
    return found


@pytest.fixture
def pipeline(video_bundle: Any) -> Any:
    with ll.load(video_bundle) as pipeline:
        yield pipeline


def test_a_video_is_watched_block_by_block(pipeline: ll.Pipeline) -> None:
    found = rolled(pipeline, held=False)
    assert len(found["block_ms"]) == 29 and found["told"] == []
    assert found["presets"] == [{"block": 0, "preset": "balanced"}]
    alone, busy, again = (found["phases"][phase] for phase in PHASES)
    assert [phase["blocks"] for phase in (alone, busy, again)] == [7, 12, 10]
    assert alone["median_ms"] < 1200 < busy["median_ms"] and again["median_ms"] < 1200
    assert (alone["late"], busy["late"], again["late"]) == (0, 12, 0)


def test_a_held_one_steps_down(pipeline: ll.Pipeline) -> None:
    found = rolled(pipeline, held=True)
    assert len(found["presets"]) > 1 and found["presets"][1]["block"] >= 8
    assert any("going on with" in text for text in found["told"])


def phase(median: float, late: int, blocks: int) -> dict[str, float]:
    return {"median_ms": median, "p99_ms": median + 90, "late": late, "blocks": blocks}


def report() -> dict[str, Any]:
    free = [phase(500, 0, 7), phase(960, 12, 12), phase(510, 1, 10)]
    held = [phase(505, 0, 7), phase(700, 3, 12), phase(500, 1, 10)]
    changes = [(0, "balanced"), (11, "turbo"), (13, "ultra"), (27, "turbo")]
    return {
        "machine": "2 x CPU", "cores": 2, "competitors": 2, "target_ms": 750.0,
        "blocks": dict(zip(PHASES, (8, 12, 10), strict=True)),
        "runs": {
            FREE: {"block_ms": [500.0] * 7 + [960.0] * 12 + [510.0] * 10,
                   "presets": [{"block": 0, "preset": "balanced"}],
                   "phases": dict(zip(PHASES, free, strict=True))},
            HELD: {"block_ms": [505.0] * 7 + [700.0] * 12 + [500.0] * 10,
                   "presets": [{"block": b, "preset": name} for b, name in changes],
                   "phases": dict(zip(PHASES, held, strict=True))},
        },
    }  # fmt: skip


def test_the_table_says_what_each_phase_came_to() -> None:
    lines = list(competition.table(report()))
    rows = [line for line in lines if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1 and len(rows) == 5
    assert "| competition | 12 | 960 | 1050 | 12 | 700 | 790 | 3 |" in rows[3]
    assert rows[2].endswith("| balanced |")
    assert rows[3].endswith("| balanced, turbo from block 12, ultra from block 14 |")
    assert rows[4].endswith("| ultra, turbo from block 28 |")


def test_the_plot_is_sound_and_stays_inside() -> None:
    text = drawn(report())
    root = ElementTree.fromstring(text)  # noqa: S314 - our own
    width, height = (float(n) for n in root.attrib["viewBox"].split()[2:])
    lines = [e.attrib["points"] for e in root.iter() if e.tag.endswith("polyline")]
    assert len(lines) == 2
    for pair in " ".join(lines).split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= width and 0 <= y <= height
    bars = [e for e in root.iter() if e.attrib.get("class", "").startswith("rung")]
    assert [bar.attrib["class"] for bar in bars] == ["rung0", "rung1", "rung2", "rung1"]
    assert "target 750 ms" in text
