"""Tables of docs/presets.md of made-up measurements."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.quality import pareto_plot, presets
from benchmarks.quality import speeds as speed_module
from benchmarks.quality.lab import weights
from benchmarks.quality.pareto_plot import Point, front
from longlive_trt.demo.geometry import model_config
from longlive_trt.quality import measured
from longlive_trt.quality.measured import Figures, shipped_figures, write_figures
from longlive_trt.reading.shapes import structured


def speeds(transformer_ms: float, rate: float) -> dict[str, float]:
    return {
        "transformer_ms": transformer_ms, "vae_ms": 300.0, "block_ms": transformer_ms + 300,
        "block_p99_ms": 700.0, "frames_per_s": rate, "spread": 3.0, "memory_gib": 0.4,
    }  # fmt: skip


def row(percent: float, difference: float, psnr: float = 30.0) -> dict[str, Any]:
    shown = {"percent": percent, "difference": difference, "standard_error": 0.5, "attributes": 99}
    parts = ("adherence", "changed", "kept", "together")
    return {
        "videos": 19, "shown": dict.fromkeys(parts, shown),
        "of_all": {"frechet": 12.0, "frechet_world": 5.0}, "chance": {"frechet": 0.4},
        "by_seed": {part: [percent - 1, percent + 1] for part in parts},
        "likeness": {"psnr": [psnr, 0.0], "ssim": [0.9, 0.01], "flicker": [0.4, 0.1]},
    }  # fmt: skip


ROWS = {"turbo": row(93.5, -0.5), "balanced": row(94.0, 0.0, 100.0), "ultra": row(60.0, -34.0)}
CPU = {"balanced": speeds(200, 19.0), "turbo": speeds(100, 23.0)}


def test_the_table_of_quality() -> None:
    balanced, turbo, ultra = list(presets._quality_table(ROWS))[2:]
    assert balanced.startswith(
        "| balanced | 94.0 ± 1.0 | 94.0 ± 1.0 | 94.0 ± 1.0 | - | - | - | - | 5.00 |"
    )
    assert "93.5 ± 1.0 (-0.5 ± 0.5)" in turbo and "| loses 1.5 at most | 30.0 ± 0.0 |" in turbo
    assert "| loses 33.0 to 35.0 |" in ultra
    assert "| 12.00 (0.40) | 5.00 |" in turbo, "a distance, and what chance comes to"
    assert len({line.count("|") for line in presets._quality_table(ROWS)}) == 1


def test_the_table_of_speed() -> None:
    speed = list(presets._speed_table(CPU, {"NVIDIA H200": {"turbo": speeds(50, 40.0)}}))
    turbo = next(line for line in speed if line.startswith("| turbo |"))
    figures = "| 100 | 300 | 400 (700) | 23.0 | 2.00x / 1.25x | 0.40 | 50 | 300 | 40.0 |"
    assert f"| 2 (4) | 12 | full {figures}" in turbo
    ultra = next(line for line in speed if line.startswith("| ultra |"))
    assert ultra.count("not measured") == 2
    assert len({line.count("|") for line in speed}) == 1, "every row has every column"
    more = list(presets._speed_table(CPU, {"NVIDIA H200": {}, "NVIDIA L4": {}}))
    assert "| H200: transformer, ms |" in more[0] and "| L4: transformer, ms |" in more[0]
    assert more[0].count("|") == speed[0].count("|") + 3
    assert {line.count("|") for line in more} == {more[0].count("|")}
    assert next(presets._speed_table(CPU, {})) == speed[0], "a column may wait for its GPU"


def test_the_plot_of_speed_and_quality() -> None:
    drawn = presets._pareto(ROWS, CPU)
    assert drawn is not None
    root = ElementTree.fromstring(drawn)  # noqa: S314 - our own
    assert root.tag.endswith("svg") and "turbo" in drawn and "ultra" not in drawn
    assert presets._pareto(ROWS, {}) is None


def test_the_front_is_what_nothing_beats() -> None:
    points = {"a": Point(10, 95), "b": Point(20, 94), "c": Point(20, 93), "d": Point(10, 95)}
    assert front(points) == ["a", "b", "d"]


def test_names_do_not_lie_on_each_other() -> None:
    points = {f"preset-{n}": Point(25 + n % 3, 95 + 0.05 * (n % 4), 1.0) for n in range(9)}
    points |= {"same": points["preset-0"], "far": Point(60, 94)}
    root = ElementTree.fromstring(pareto_plot.drawn(points))  # noqa: S314 - our own
    names = [e for e in root.iter() if e.attrib.get("class") == "name"]
    assert "preset-0, same" in [e.text for e in names]
    boxes = [(float(e.attrib["x"]), float(e.attrib["y"]), len(e.text or "")) for e in names]
    for n, (x, y, letters) in enumerate(boxes):
        assert x > 0 and x + 6 * letters < 860 and 0 < y < 420
        for other_x, other_y, other_letters in boxes[:n]:
            apart = x > other_x + 6 * other_letters or other_x > x + 6 * letters
            assert apart or abs(y - other_y) >= 10


def test_reports_of_a_gpu_are_taken_by_their_command(tmp_path: Path) -> None:
    state = {part: {"p50": 50.0, "p99": 60.0} for part in ("transformer", "vae", "block")}
    bundle = {"video_frames_per_s": {"overlapped": 30.0}, "steady_state_ms": state}
    resources = {"loading": {"process_bytes": {"max": 2**31}}}
    command = "longlive-trt bench --bundle b --preset turbo --out t.json"
    machine = {"gpu": {"name": "NVIDIA H200"}}
    report = {
        "command": command, "machine": machine, "bundles": [bundle], "resources": resources,
    }  # fmt: skip
    (tmp_path / "t.json").write_text(json.dumps(report))
    before = {"NVIDIA H200": {"ultra": speeds(1, 2)}, "NVIDIA L4": {"turbo": speeds(3, 4)}}
    gpus = presets.gpu_speeds(before, [tmp_path / "t.json"])
    found = gpus["NVIDIA H200"]
    assert found["turbo"]["transformer_ms"] == 50 and found["turbo"]["memory_gib"] == 2
    assert found["ultra"] == speeds(1, 2) and gpus["NVIDIA L4"] == before["NVIDIA L4"]
    (tmp_path / "t.json").write_text(json.dumps({**report, "machine": {"gpu": None}}))
    with pytest.raises(SystemExit, match=r"t\.json: not a report of `bench --preset NAME`"):
        presets.gpu_speeds({}, [tmp_path / "t.json"])


def test_presets_that_run_the_same_way_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    served = ["turbo", "balanced", "endless", "light", "low-memory"]
    monkeypatch.setattr(speed_module, "served_presets", lambda _: served)
    bundle: Any = SimpleNamespace(config=model_config())
    found = speed_module.groups(bundle)
    assert found == [["balanced", "endless"], ["light"], ["low-memory"], ["turbo"]]


def test_figures_are_shipped_with_what_they_are_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "_FOLDER", tmp_path)
    rows = {**ROWS, "few": {**ROWS["turbo"], "videos": 9}}
    by_device = {"2 x CPU": CPU, "NVIDIA H200": {"turbo": speeds(50, 40.0)}, "": {}}
    write_figures("demo", presets.shipped(rows, by_device))
    sums = {name: digits + "0" * 52 for name, digits in weights().items()}
    found = shipped_figures("demo", sums)
    assert set(found.presets) == {"turbo", "balanced", "ultra"}
    assert found.presets["turbo"].shown == 93.5
    assert found.speeds["NVIDIA H200"]["turbo"].video_frames_per_s == 40
    assert set(found.speeds) == {"2 x CPU", "NVIDIA H200"}
    assert shipped_figures("demo", {n: s for n, s in sums.items() if n != "light_vae"}).presets
    assert not shipped_figures("demo", {**sums, "transformer": "1" * 64}).presets
    assert shipped_figures("demo", {}).speeds == found.speeds


@pytest.mark.parametrize("model", ["nothing", "../demo", "longlive-1.3b"])
def test_nothing_is_known_of_other_models(model: str) -> None:
    found = shipped_figures(model, {"transformer": "1" * 64})
    assert not found.presets and not found.speeds


def test_what_ships_is_of_a_known_form() -> None:
    assert structured(Figures, json.loads(measured.measured_file("demo").read_text()))
