"""Settings measured on the same videos: records, differences, and what is kept of them."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.quality import catalog, ideas, rows
from benchmarks.quality.lab import REFERENCE, Lab, Trial
from benchmarks.quality.paired import flicker_at_cut, share, shown_after
from benchmarks.quality.records import Records
from longlive_trt.demo.geometry import model_config
from longlive_trt.quality.cases import Lengths

Line = dict[str, Any]


def line(own: str, other: str, number: int = 0) -> Line:
    """A video of which each letter is an attribute: r for right, w for wrong."""
    stated = {str(n): "r" for n in range(len(own))}
    sides = {
        side: {
            "shown": [
                {"span": "all", "stated": stated, "shown": dict(zip(stated, letters, strict=True))}
            ]
        }
        for side, letters in (("own", own), ("other", other))
    }
    return {"kind": "prompt", "number": number, "seed": number, **sides}


def test_a_difference_is_that_of_the_same_videos() -> None:
    found = share([line("rrrr", "rrrw"), line("rrww", "rrwr")], ("all",))
    assert found is not None and found.own == 75 and found.attributes == 8
    assert found.difference == 0
    # Gains of +1 and -1 attribute in 4 each.
    assert found.error == pytest.approx(100 * np.sqrt(2 * 2) / 8)
    assert found.least_lost == 0 and found.most_lost == pytest.approx(2 * found.error)
    same = share([line("rw", "rw"), line("ww", "ww")], ("all",))
    assert same is not None and same.error == 0 and same.most_lost == 0
    lost = share([line("ww", "rr") for _ in range(3)], ("all",))
    assert lost is not None and lost.difference == -100 and lost.least_lost == 100
    assert share([line("r", "r")], ("changed",)) is None


def test_the_error_is_that_of_other_draws() -> None:
    """Against the spread of the same figure over many draws of videos."""
    random = np.random.default_rng(0)

    def draw() -> list[Line]:
        return [
            line(*("".join(random.choice(["r", "w"], 7, p=[p, 1 - p])) for p in (0.9, 0.8)))
            for _ in range(40)
        ]

    found = [share(draw(), ("all",)) for _ in range(200)]
    differences = [one.difference for one in found if one]
    errors = [one.error for one in found if one]
    assert np.mean(errors) == pytest.approx(np.std(differences), rel=0.15)


def test_records_of_other_machines_are_put_beside(tmp_path: Path) -> None:
    first = Records(tmp_path)
    first.add({"key": "a", "n": 1})
    with gzip.open(tmp_path / "there.jsonl.gz", "wt") as file:
        file.write('{"key": "b", "n": 2}\n{"key": "c", "n"')
    found = Records(tmp_path)
    assert "a" in found and "c" not in found and found.get("b") == {"key": "b", "n": 2}
    found.add({"key": "d"})
    assert len(list(tmp_path.glob("*.jsonl"))) == 2, "no run writes into the file of another"


def lab(tmp_path: Path) -> Lab:
    pipeline: Any = SimpleNamespace(config=model_config())
    return Lab(pipeline, Records(tmp_path))


def test_few_of_both_kinds_come_first(tmp_path: Path) -> None:
    found = lab(tmp_path).cases(Lengths(prompts=6, timelines=2, long=0), 2)
    kinds = "".join(case.kind[0] for case in found)
    assert kinds[:8] == kinds[8:] and kinds[:4].count("t") == kinds[4:8].count("t") == 1
    assert len({case.seed for case in found}) == 16


def test_settings_that_are_the_same_are_measured_once(tmp_path: Path) -> None:
    at = lab(tmp_path)
    case = at.cases(Lengths(prompts=1, timelines=0, long=0), 1)[0]
    known = {name: at.key(trial, case) for name, trial in catalog.every().items()}
    assert known["balanced"] == known["reference"] == known["low-memory"]
    assert known["turbo"] == known["first-4-then-2"]
    assert known["light"] != known["reference"] and known["switch-none"] != known["reference"]
    other = lab(tmp_path).cases(Lengths(prompts=2, timelines=1, long=0), 1)
    assert at.key(REFERENCE, case) in {at.key(REFERENCE, one) for one in other}


def test_a_line_of_other_weights_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = lab(tmp_path)
    case = at.cases(Lengths(prompts=1, timelines=0, long=0), 1)[0]
    for trial in (REFERENCE, Trial("light", decoder="light")):
        at.records.add({"key": at.key(trial, case), "own": {}, "against": None})
    assert len(at.lines(Trial("light", decoder="light"), [case])) == 1
    monkeypatch.setattr("benchmarks.quality.lab.WEIGHTS", tmp_path)
    (tmp_path / "SHA256SUMS").write_text(
        "".join(f"{n:064x}  {name}.safetensors\n" for n, name in enumerate(weights_names()))
    )
    assert at.lines(Trial("light", decoder="light"), [case]) == []


def weights_names() -> tuple[str, ...]:
    return ("transformer", "text_encoder", "vae", "light_vae")


def row(videos: int, difference: float = 0.0) -> dict[str, Any]:
    figures = {"percent": 90.0, "difference": difference, "standard_error": 0.5, "attributes": 9}
    shown = dict.fromkeys(("adherence", "changed", "kept", "together"), figures)
    return {
        "videos": videos, "shown": shown, "by_seed": {part: [90.0] for part in shown},
        "likeness": {name: [30.0, 1.0] for name in ("psnr", "flicker", "sharpness")},
        "shown_after": [0.0, 0.5, 0.9, 0.9, 1.0], "flicker_at_cut": 2.5,
    }  # fmt: skip


def test_an_earlier_result_of_the_same_weights_stays(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    assert rows.kept_rows(path, "trials", {"a": row(3)})["a"]["videos"] == 3
    before = {**rows.measured_with(), "trials": {"a": row(5), "b": row(2)}}
    path.write_text(json.dumps(before))
    found = rows.kept_rows(path, "trials", {"a": row(3), "b": row(4)})
    assert {name: one["videos"] for name, one in found.items()} == {"a": 5, "b": 4}
    path.write_text(json.dumps({**before, "weights": {"transformer": "others"}}))
    assert rows.kept_rows(path, "trials", {"b": row(1)}).keys() == {"b"}
    path.write_text(json.dumps({**before, "format": 0}))
    assert rows.kept_rows(path, "trials", {"b": row(1)}).keys() == {"b"}


def test_the_tables_of_the_log() -> None:
    found = {"reference": row(19), "steps-1": row(19, -3.0), "steps-3": row(9)}
    table = list(ideas.table(found, catalog.STEPS))
    assert "| 1 step | 80 / 53 | 100 | 90.0 (-3.0 ± 0.5) |" in table[3]
    assert "loses 2.0 to 4.0" in table[3]
    assert table[4].startswith("| 2 steps | 86 / 69 | 100 | not measured | - |")
    assert "| too few videos |" in table[5]
    switches = list(ideas.switch_table(found, catalog.SWITCHES))
    assert "| `exact` | 0 | 50 | 90 | 90 | 100 | 90.0 | 90.0 | 2.50 | 19 |" in switches
    for lines in (table, switches):
        assert len({text.count("|") for text in lines}) == 1


def test_unknown_trials_are_refused() -> None:
    with pytest.raises(SystemExit, match=r"--trials nothing: no such trial; there are reference"):
        catalog.chosen("steps,nothing")
    names = [trial.name for trial in catalog.chosen("light,opening,light")]
    assert names == ["light", "first-4-then-3", "first-4-then-2", "first-4-then-1"]


def test_what_follows_a_switch() -> None:
    spans = [
        {"span": f"after {n + 1}", "stated": {"a": "x"}, "shown": {"a": "x" if n else "y"}}
        for n in range(5)
    ]
    one = {"kind": "timeline", "own": {"shown": spans, "flicker": [1.0] * 105}}
    assert shown_after([one], 5) == [0, 1, 1, 1, 1]
    assert flicker_at_cut([one], model_config()) == 1
