"""Tables of docs/presets.md of made-up measurements."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.quality import presets
from longlive_trt.quality.measured import measured_presets


def speeds(transformer_ms: float, rate: float) -> dict[str, float]:
    return {
        "transformer_ms": transformer_ms, "vae_ms": 300.0, "block_ms": transformer_ms + 300,
        "block_p99_ms": 700.0, "frames_per_s": rate, "spread": 3.0, "memory_gib": 0.4,
    }  # fmt: skip


ROWS: dict[str, Any] = {
    "balanced": {"videos": 9, "quality": {"adherence": [94.0, 0.5, 3]}, "cpu": speeds(200, 19.0)},
    "turbo": {"videos": 9, "quality": {"adherence": [93.5, 0.7, 3]}, "cpu": speeds(100, 23.0)},
    "ultra": {"videos": 9, "quality": {"adherence": [60.0, 2.0, 3]}, "cpu": None},
}


def test_the_tables() -> None:
    quality = list(presets._quality_table(ROWS))
    assert quality[2].startswith("| balanced | 94.0 ± 0.5 | - |")
    speed = list(presets._speed_table(ROWS, {"turbo": speeds(50, 40.0)}))
    turbo = next(row for row in speed if row.startswith("| turbo"))
    assert (
        "| 2 (4) | 12 | 100 | 300 | 400 (700) | 23.0 | 2.00x / 1.25x | 0.40 | 50 | 300 | 40.0 |"
        in turbo
    )
    ultra = next(row for row in speed if row.startswith("| ultra"))
    assert ultra.count("not measured") == 2
    assert len({row.count("|") for row in speed}) == 1, "every row has every column"


def test_the_front_is_what_nothing_beats() -> None:
    drawn = presets._pareto(ROWS)
    assert drawn is not None
    root = ElementTree.fromstring(drawn)  # noqa: S314 - our own
    assert root.tag.endswith("svg") and "turbo" in drawn
    assert presets._is_beaten((1, 1), [(1, 1), (2, 1)]) and not presets._is_beaten((1, 1), [(1, 1)])
    assert presets._pareto({"ultra": ROWS["ultra"]}) is None


def test_reports_of_a_gpu_are_taken_by_their_command(tmp_path: Path) -> None:
    state = {part: {"p50": 50.0, "p99": 60.0} for part in ("transformer", "vae", "block")}
    bundle = {"video_frames_per_s": {"overlapped": 30.0}, "steady_state_ms": state}
    resources = {"loading": {"process_bytes": {"max": 2**31}}}
    command = "longlive-trt bench --bundle b --preset turbo --out t.json"
    report = {"command": command, "bundles": [bundle], "resources": resources}
    (tmp_path / "t.json").write_text(json.dumps(report))
    found = dict(presets._gpu_rows([tmp_path / "t.json"]))
    assert found["turbo"]["transformer_ms"] == 50 and found["turbo"]["memory_gib"] == 2


@pytest.mark.parametrize("model", ["nothing", "../demo", "longlive-1.3b"])
def test_nothing_is_known_of_other_models(model: str) -> None:
    assert measured_presets(model) == {}
