"""Figures and pages of measured videos."""

import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from longlive_trt.quality.instruments import still
from longlive_trt.quality.report.charts import bar_chart, line_chart, nice_step
from longlive_trt.quality.report.html import page
from longlive_trt.quality.report.markdown import markdown
from longlive_trt.quality.summary import case_values, curves, metrics

FPS = 16.0


def side(level: float, shown: str = "sea") -> dict[str, Any]:
    points = np.random.default_rng(round(level)).normal(level, 1, (30, 4)).tolist()
    picture = still(np.full((12, 20, 3), 90, np.uint8))
    series = {n: [level] * 40 for n in ("flicker", "sharpness", "saturation", "motion")}
    spans = [{"span": "all", "stated": {"place": "sea", "time": "noon"},
              "shown": {"place": shown, "time": "noon"}}]  # fmt: skip
    return {**series, "clip": [], "clips": points, "shown": spans, "stills": [picture] * 6}


def line(number: int, error: float, shown: str, kind: str = "prompt") -> dict[str, Any]:
    against = {"squared_error": [error] * 40, "ssim": [0.9] * 10, "ms_ssim": [0.95] * 10}
    return {
        "kind": kind, "number": number, "seed": number, "texts": {"0": "a <b>ship</b> & sea"},
        "own": side(4.0, shown), "other": side(5.0), "against": against, "world": None,
    }  # fmt: skip


LINES = [line(0, 65.025, "sea"), line(1, 6.5025, "forest")]


def by_name(lines: list[dict[str, Any]]) -> dict[str, Any]:
    return {metric.name: metric for metric in metrics(lines, FPS)}


def test_means_and_spreads_are_of_videos() -> None:
    found = by_name(LINES)
    assert found["psnr"].own.mean == pytest.approx(35) and found["psnr"].own.spread == 5
    assert found["adherence"].own.mean == 75 and found["adherence"].own.spread == 25
    assert found["adherence"].other.mean == 100
    assert (found["flicker"].own.mean, found["flicker"].other.mean) == (4, 5)
    assert found["frechet"].own is None and "too few videos: 2" in found["frechet"].note
    assert "lpips" not in found and "drift_motion" not in found


def test_distances_are_told_with_what_chance_comes_to() -> None:
    many = [line(n, 1.0, "sea") for n in range(20)]
    found = by_name(many)
    assert found["frechet"].own.mean == pytest.approx(4, rel=0.3), "means one apart in 4 numbers"
    assert found["frechet"].own.chance > 0 and found["frechet"].note == "of 600 clips"
    assert "frechet_world" not in found
    for each in many:
        each["world"] = {"clips": each["own"]["clips"]}
    world = by_name(many)["frechet_world"]
    assert world.own.mean == pytest.approx(0, abs=1e-6) and world.other.mean > 3
    few = by_name(many[:10])["frechet"]
    assert few.own is not None and "means and spreads alone" in few.note


def test_a_bundle_alone_has_figures_of_its_own_only() -> None:
    alone = [{**each, "other": None, "against": None} for each in LINES]
    found = by_name(alone)
    assert {"psnr", "ssim", "frechet"}.isdisjoint(found) and found["flicker"].other is None
    assert "PSNR (dB)" not in curves(alone, FPS)


def test_one_video_has_no_spread() -> None:
    alone = by_name(LINES[:1])
    assert alone["psnr"].own.spread is None and alone["adherence"].own.spread is None


def test_equal_pictures_do_not_flatten_the_curve() -> None:
    changing = line(0, 1.0, "sea")
    changing["against"]["squared_error"] = [0.0] * 9 + [65.025] * 31
    (points,) = curves([changing], FPS)["PSNR (dB)"].values()
    assert points[0] == [round(9 / FPS, 3), 30.0] and len(points) == 31
    changing["against"]["squared_error"] = [0.0] * 40
    (points,) = curves([changing], FPS)["PSNR (dB)"].values()
    assert len(points) == 40


def test_drift_is_that_of_long_videos() -> None:
    long = line(0, 1.0, "sea", "long")
    long["own"]["sharpness"] = [10.0] * 200 + [11.0] * 200
    found = by_name([*LINES, long])
    assert found["drift_sharpness"].own.mean == pytest.approx(10)
    assert found["drift_sharpness"].other is None or found["drift_sharpness"].other.mean == 0


def values() -> dict[str, Any]:
    maker = {
        "precision": "fp32",
        "preset": "<turbo>",
        "overrides": [],
        "switch": None,
        "decoder": None,
    }
    return {
        "command": "longlive-trt eval <x>", "measured_at": "now", "machine": {"cpu": "a & b"},
        "model": "m", "video_size": [12, 20], "fps": FPS, "bundle": maker, "reference": maker,
        "videos": {"prompt": 2}, "metrics": [m.values() for m in metrics(LINES, FPS)],
        "attributes": {"own": {"place": 0.5}, "other": {"place": 1.0}},
        "clips_read_by": "m", "curves": curves(LINES, FPS),
        "cases": [case_values(each) for each in LINES],
    }  # fmt: skip


def test_the_page_asks_for_nothing_else() -> None:
    text = page(values(), LINES)
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    assert set(re.findall(r'src="([a-z/]+:[a-z/]*)', text)) == {"data:image/jpeg"}
    assert "<b>ship</b>" not in text and "&lt;b&gt;ship" in text and "<turbo>" not in text


def test_the_table_has_a_row_for_every_figure() -> None:
    rows = markdown(values()).splitlines()
    assert "| PSNR, dB | 35.0 | 5.0 | - | higher |" in rows
    assert sum(row.startswith("| ") for row in rows) == 1 + len(metrics(LINES, FPS))
    assert "| Fréchet distance | - | - | - | lower |" in rows
    assert rows[-2:] == [
        "* Fréchet distance: too few videos: 2, and a distance needs 8",
        "* Clips are read by the encoder of m",
    ]


def test_chance_stands_where_a_spread_would() -> None:
    many = [line(n, 1.0, "sea") for n in range(20)]
    shown = {**values(), "metrics": [m.values() for m in metrics(many, FPS)]}
    row = next(row for row in markdown(shown).splitlines() if row.startswith("| Fréchet"))
    assert "| chance: " in row
    assert "<small>chance: " in page(shown, LINES) and "of 600 clips." in page(shown, LINES)


def test_charts_are_sound_and_stay_inside() -> None:
    series = {"a": [[0, 1.0], [1, 3.0]], "b & c": [[0, 2.0], [1, 2.5]]}
    for chart in (
        line_chart("t <1>", series),
        line_chart("one value", {"a": [[0, 5.0]]}),
        bar_chart("bars", {"place": [0.5, 1.0]}, ["own", "other"]),
    ):
        root = ElementTree.fromstring(chart)  # noqa: S314 - our own
        points = [
            float(n) for e in root.iter("polyline") for n in re.split("[ ,]", e.get("points", ""))
        ]
        assert all(0 <= n <= 440 for n in points)


@pytest.mark.parametrize(("step", "nice"), [(0.3, 0.5), (1, 1), (2.1, 2.5), (70, 100)])
def test_nice_steps(step: float, nice: float) -> None:
    assert nice_step(step) == pytest.approx(nice)
