"""Benchmarks: all of them start, and those that need no GPU are run in small."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.decoding.choice import decoder_named
from longlive_trt.runtime.noise import SeededNoise
from tests.shared import Shared

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "benchmarks").rglob("*.py")
    if "main()" in path.read_text()
)
ON_RAY = {"benchmarks.fleet.trial", "benchmarks.fleet.churn"}
# One process: each would import torch anew.
SHOW_HELP = """
import runpy, sys
for module in sys.argv[1:]:
    sys.argv = [module, "--help"]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert end.code == 0, module
"""


def run(module: str, *arguments: object) -> str:
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    return output_of(command)


def output_of(command: list[str]) -> str:
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_every_benchmark_says_how_it_is_run() -> None:
    for module in ("torch", "modelopt"):
        pytest.importorskip(module)
    modules = [name for name in MODULES if name not in ON_RAY or find_spec("ray")]
    shown = output_of([sys.executable, "-c", SHOW_HELP, *modules])
    for module in modules:
        assert f"usage: python -m {module} " in shown
        assert shown.count(f"    python -m {module}") or module.endswith("races")


@pytest.mark.exhaustive
def test_a_bundle_and_torch_take_turns(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "results" / "ratios.json"
    options = ("--rounds", 2, "--warm-up", 1, "--no-compile", "--device", "cpu", "--out", out)
    printed = run("against_torch", "--bundle", tiny_bundle, *options)
    report: dict[str, Any] = json.loads(out.read_text())
    ours, theirs = (report["contestants"][name] for name in (tiny_bundle.name, "torch eager"))
    assert report["command"].startswith("python -m benchmarks.against_torch --bundle")
    assert len(report["contestants"]) == 2 and ours["precision"] == "fp32"
    (pair,) = report["ratios"]
    assert pair == f"torch eager by {tiny_bundle.name}" and pair in printed
    for part, ratio in report["ratios"][pair].items():
        assert len(ours["ms"][part]["series_ms"]) == 2
        expected = theirs["ms"][part]["p50"] / ours["ms"][part]["p50"]
        assert ratio["of_medians"] == pytest.approx(expected, rel=1e-3)
        assert ratio["by_round"]["p10"] <= ratio["by_round"]["p50"] <= ratio["by_round"]["p90"]
    for one in (ours, theirs):
        # Whatever else the machine does can only add to the shortest.
        assert min(one["ms"]["block"]["series_ms"]) > min(one["ms"]["transformer"]["series_ms"])


@pytest.mark.exhaustive
def test_decoders_of_a_bundle_take_turns(two_decoders: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    bundle, out = two_decoders, tmp_path / "ratios.json"
    options = ("--rounds", 1, "--warm-up", 1, "--no-torch", "--device", "cpu", "--out", out)
    run("against_torch", "--bundle", bundle, "--decoder", "full", "--decoder", "light", *options)
    report: dict[str, Any] = json.loads(out.read_text())
    named = {name: one["decoder"] for name, one in report["contestants"].items()}
    assert named == {f"{bundle.name}, {each} decoder": each for each in ("full", "light")}
    assert len(report["ratios"]) == 1


@pytest.mark.parametrize("name", ["full", "light"])
def test_a_decoder_that_takes_a_turn_is_the_only_one_that_runs(
    name: str, two_decoders: Path
) -> None:
    pytest.importorskip("torch")
    from benchmarks.against_torch import OurVideo

    bundle = open_bundle(two_decoders)
    decoder = decoder_named(bundle, name)
    with OurVideo(bundle, decoder, "cpu", seed=0) as video:
        video.vae()
        video.block()
        loaded = {key.split(" for ")[0] for key in video._engines._loaded}
    assert loaded == {"step", "prompt", *decoder.graphs}


def test_a_bundle_of_random_weights_from_graphs_alone(tiny_export: Path, tmp_path: Path) -> None:
    graphs, folder = tmp_path / "graphs", tmp_path / "made" / "bundle"
    graphs.mkdir()
    for path in tiny_export.iterdir():
        if path.suffix != ".weights":
            shutil.copyfile(path, graphs / path.name)
    run("full_size.bundle", graphs, "--out", folder, "--precision", "fp32")
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    bundle = open_bundle(folder)
    config = bundle.config
    assert bundle.manifest.graphs.keys() == {"step", "prompt", "vae_first", "vae_next", "text"}
    with Engines(bundle) as engines:
        encoder = engines.prompt_encoder(1)
        shape = (1, config.rollout.frames_per_block, *config.latent_shape)
        noise = SeededNoise(0, shape, len(config.rollout.steps))
        with engines.session(config, noise) as session:
            session.switch_prompt(encoder.context_of("a fox"))
            block = session.step()
            # Neither overflowing nor dying out: weights that fit their layers.
            assert 0.3 < np.std(block.latents) < 3
            assert np.std(block.pixels()) > 5
        assert 0.1 < np.std(encoder.states_of("a fox")[0, :5]) < 10


def test_every_way_to_switch_is_timed(mini_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "times.json"
    printed = run("switch_times", mini_bundle("relative"), "--once", "--out", out)
    modes: dict[str, Any] = json.loads(out.read_text())["modes"]
    blocks = {"exact": 1, "partial": 1, "none": 1, "blend:2": 2, "blend:4": 4, "blend:8": 8}
    assert {mode: row["blocks"] for mode, row in modes.items()} == blocks
    for mode, row in modes.items():
        assert mode in printed
        # One prompt for each block of a blend, one for any other switch.
        assert len(row["contexts_ms"]) == blocks[mode] and min(row["contexts_ms"]) > 0
        added = np.median(row["transformer_ms"]) - np.median(row["plain_transformer_ms"])
        assert row["added_transformer_ms"] == pytest.approx(added, abs=2e-3)


def test_a_decoder_is_timed_block_by_block(shared: Shared, tmp_path: Path) -> None:
    out = tmp_path / "decoder.json"
    bundle = shared("tiny-decoder-fp32")
    printed = run("decoder", "--bundle", bundle, "--decoder", "light", "--blocks", 3, "--out", out)
    report: dict[str, Any] = json.loads(out.read_text())
    assert (report["decoder"], report["gpu"], report["video_frames"]) == ("taehv", None, 12)
    assert len(report["block_ms"]["series"]) == 3 and min(report["block_ms"]["series"]) > 0
    assert f"a block of 12 frames in {report['block_ms']['p50']} ms" in printed


@pytest.mark.exhaustive
def test_a_tiny_decoder_is_made_on_the_way(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    size = ("--set", "latent.height=4", "--set", "latent.width=6")
    run("decoder", *size, "--blocks", 1, "--out", tmp_path / "decoder.json")
    report = json.loads((tmp_path / "decoder.json").read_text())
    assert (report["decoder"], report["size"]) == ("taehv", [32, 48])


def test_exchanges_of_adapters_are_timed(
    lora_ready_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "swap.json"
    run("lora_swap", lora_ready_bundle("fp32"), "--rank", 2, "--times", 2, "--out", out)
    report: dict[str, Any] = json.loads(out.read_text())
    assert (report["rank"], report["precision"], report["target"]) == (2, "fp32", "cpu")
    assert report["modules"] > 0 and report["adapter_bytes"] > 0
    for times in (report["use_s"], report["take_away_s"]):
        assert len(times) == 2 and min(times) > 0


def test_bundles_of_one_name_cannot_be_told_apart() -> None:
    pytest.importorskip("torch")
    with pytest.raises(AssertionError, match="bundles of one name: b, b"):
        run("against_torch", "--bundle", "one/b", "--bundle", "other/b")


# ---- adherence -------------------------------------------------------------------------------


def line(number: int, shown: dict[str, int], after: dict[str, int], at: float = 1) -> Any:
    stated = [{"place": 1, "color": 2}, {"place": 3, "color": 2}]
    return {
        "number": number,
        "bundle": "one",
        "at": at,
        "stated": stated,
        "shown": [shown, after],
    }


def test_adherence_counts_what_changed_apart_from_what_stayed() -> None:
    from benchmarks.demo.report import summaries

    right, wrong = {"place": 1, "color": 2}, {"place": 0, "color": 2}
    lines = [line(0, right, {"place": 3, "color": 0}), line(1, wrong, {"place": 3, "color": 2})]
    found = summaries({"base": lines})["base"]
    shares = {part: found[part]["share"] for part in ("single", "changed", "kept")}
    assert shares == {"single": 0.75, "changed": 1.0, "kept": 0.5}
    assert found["prompts"] == 2 and found["single"]["attributes"] == 4
    # Of two bundles, the one that was measured last.
    older = {**line(2, right, right, at=0), "bundle": "older"}
    assert summaries({"base": [older, *lines]})["base"] == found


def test_the_ablation_has_the_model_as_it_is_on_the_same_prompts() -> None:
    from benchmarks.demo.report import FEWER, ablation, summaries

    right, wrong = {"place": 1, "color": 2}, {"place": 0, "color": 0}
    base = [line(0, right, right), line(FEWER, wrong, right)]
    rows = summaries({"base": base, "no-sink": [line(0, wrong, right)]})
    shares = {name: row["single"]["share"] for name, row in rows.items()}
    assert shares == {"base": 0.5, "first": 1.0, "no-sink": 0.0}
    text = "\n".join(ablation({name: {"title": name, **row} for name, row in rows.items()}))
    assert "| first | 100.0% |" in text and "| no-sink | 0.0% |" in text


def test_adherence_tables_have_a_line_for_everything(tmp_path: Path) -> None:
    from benchmarks.demo.report import summaries, write_tables

    wrong = {"place": 0, "color": 2}
    long = {**line(0, {"place": 1, "color": 2}, wrong)}
    long |= {"stated": long["stated"][0], "sharpness": [10.0, 9.0]}
    clip = {"number": 0, "bundle": "one", "at": 1, "psnr_db": 35.5}
    rows = summaries({"base": [line(0, wrong, wrong)], "drift": [long], "vae": [clip]})
    page = tmp_path / "page.md"
    names = ("targets", "attributes", "ablation")
    page.write_text("".join(f"<!-- table: {name} -->\n<!-- end -->\n" for name in names))
    write_tables({"rows": {name: {"title": name, **row} for name, row in rows.items()}}, page)
    text = page.read_text()
    assert "| 50.0% against 100.0% |" in text and "| -10.0% |" in text
    assert "| 35.5 dB (lowest 35.5) |" in text and "| base |" in text


@pytest.mark.exhaustive
def test_adherence_goes_on_where_it_was(
    demo_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights that have learned nothing, which a video does not tell."""
    from benchmarks.demo import adherence, watching
    from longlive_trt import loading
    from longlive_trt.making import demo

    monkeypatch.setattr(demo, "WEIGHTS", demo_weights)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(watching, "SINGLE_BLOCKS", 1)
    kept = tmp_path / "kept.json"
    monkeypatch.setattr(adherence, "RESULT", kept)
    work = tmp_path / "work"
    with loading.load("demo") as pipeline:
        adherence.measure(pipeline, "2-steps", [0], work, 0)
        (file,) = work.iterdir()
        before = file.read_text()
        file.write_text(before + '{"number": 1, "bund')
        adherence.measure(pipeline, "2-steps", [0], work, 1)
        assert [one["number"] for one in adherence.lines(work, "2-steps")] == [0]
        adherence.measure(pipeline, "no-sink", [0], work, 0)
    report = adherence.report(work)
    rows = report["rows"]
    assert rows.keys() == {"2-steps", "no-sink"}
    adherence.write_report(report, kept)
    assert adherence.report(tmp_path / "nothing")["rows"] == rows
    assert rows["2-steps"]["single"]["attributes"] >= 6


# ---- precisions ------------------------------------------------------------------------------


def judged(work: Path, name: str, shown: float, prompts: int) -> None:
    def metric(own: float, other: float | None) -> Any:
        figures = [
            None if mean is None else {"mean": mean, "spread": 1.0, "count": prompts}
            for mean in (own, other)
        ]
        return dict(zip(("own", "other"), figures, strict=True))

    report = {
        "command": "longlive-trt eval bundle --against demo --device cuda",
        "bundle": {"engine": "onnxruntime"},
        "machine": {"cpu": "one", "cores": 2},
        "videos": {"prompt": prompts, "long": 1},
        "metrics": [
            {"name": "psnr", **metric(41.25, None)},
            {"name": "adherence", **metric(shown, 95.5)},
            {"name": "saturation", **metric(1, 1)},
        ],
    }
    (work / f"report-{name}").mkdir(parents=True)
    (work / f"report-{name}" / "report.json").write_text(json.dumps(report))


def test_precisions_stand_below_what_they_are_compared_with(tmp_path: Path) -> None:
    from benchmarks.demo import precisions

    judged(tmp_path, "int8", 94.0, 4)
    judged(tmp_path, "fp8", 93.0, 9)
    bench = precisions.Bench(tmp_path, "cpu")
    rows = {name: bench.row(name) for name in ("int8", "fp8", "fp16")}
    assert rows["fp16"] is None
    # Where it was judged, whatever machine makes the table.
    assert rows["fp8"] and rows["fp8"]["device"] == "cuda"
    lines = list(precisions.table({name: row for name, row in rows.items() if row}))
    assert lines[2:] == [
        "| fp32 | - | - | 95.5 | - | - | - | - | 10 |",
        "| INT8-SmoothQuant | 41.2 | - | 94.0 | - | - | - | - | 5 |",
        "| FP8 | 41.2 | - | 93.0 | - | - | - | - | 10 |",
    ]


def test_precisions_get_into_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.demo import precisions

    judged(tmp_path, "int8", 94.0, 4)
    page, result = tmp_path / "quality.md", tmp_path / "result.json"
    page.write_text(precisions.PAGE.read_text())
    monkeypatch.setattr(precisions, "PAGE", page)
    monkeypatch.setattr(precisions, "RESULT", result)
    monkeypatch.setattr(precisions, "STRIP", tmp_path / "strip.png")
    stills = [("int8", [Image.new("RGB", (8, 6))] * 2)]
    monkeypatch.setattr(precisions.Bench, "stills", lambda *_: iter(stills))
    given = ["--table", "--work", str(tmp_path / "bundles"), "--keep", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["precisions", *given])
    precisions.main()
    assert "| INT8-SmoothQuant | 41.2 |" in page.read_text()
    assert json.loads(result.read_text())["rows"].keys() == {"int8"}
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.size == (130 + 2 * 12, 10)


def test_precisions_of_no_name_are_refused() -> None:
    pytest.importorskip("torch")
    with pytest.raises(AssertionError, match="--rows int3: no such row; there are fp16, bf16, fp8"):
        run("demo.precisions", "--rows", "fp8,int3")
