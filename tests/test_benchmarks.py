"""Benchmark scripts that measure bundles, run in small on a CPU."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.noise import SeededNoise

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_bundle_and_torch_take_turns(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "results" / "ratios.json"
    options = ("--rounds", 2, "--warm-up", 1, "--no-compile", "--device", "cpu", "--out", out)
    told = run("against_torch.py", "--bundle", tiny_bundle, *options)
    report: dict[str, Any] = json.loads(out.read_text())
    ours, theirs = (report["contestants"][name] for name in (tiny_bundle.name, "torch eager"))
    assert len(report["contestants"]) == 2 and ours["precision"] == "fp32"
    (pair,) = report["ratios"]
    assert pair == f"torch eager by {tiny_bundle.name}" and pair in told
    for part, ratio in report["ratios"][pair].items():
        assert len(ours["ms"][part]["series_ms"]) == 2
        expected = theirs["ms"][part]["p50"] / ours["ms"][part]["p50"]
        assert ratio["of_medians"] == pytest.approx(expected, rel=1e-3)
        assert ratio["by_round"]["p10"] <= ratio["by_round"]["p50"] <= ratio["by_round"]["p90"]
    for one in (ours, theirs):
        assert one["ms"]["block"]["p50"] > one["ms"]["transformer"]["p50"]


def test_a_bundle_of_random_weights_from_graphs_alone(tiny_export: Path, tmp_path: Path) -> None:
    graphs, folder = tmp_path / "graphs", tmp_path / "made" / "bundle"
    graphs.mkdir()
    for path in tiny_export.iterdir():
        if path.suffix != ".weights":
            shutil.copyfile(path, graphs / path.name)
    run("full_size_bundle.py", graphs, "--out", folder, "--precision", "fp32")
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    bundle = open_bundle(folder)
    config = bundle.config
    assert bundle.manifest.graphs.keys() == {"step", "prompt", "vae_first", "vae_next", "text"}
    with Engines(bundle) as engines:
        encoder = engines.prompt_encoder(1, lambda _prompt, _kept: None)
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
    told = run("switch_times.py", mini_bundle("relative"), "--once", "--out", out)
    modes: dict[str, Any] = json.loads(out.read_text())["modes"]
    blocks = {"exact": 1, "partial": 1, "none": 1, "blend:2": 2, "blend:4": 4, "blend:8": 8}
    assert {mode: row["blocks"] for mode, row in modes.items()} == blocks
    for mode, row in modes.items():
        assert mode in told
        # One prompt for each block of a blend, one for any other switch.
        assert len(row["contexts_ms"]) == blocks[mode] and min(row["contexts_ms"]) > 0
        added = np.median(row["transformer_ms"]) - np.median(row["plain_transformer_ms"])
        assert row["added_transformer_ms"] == pytest.approx(added, abs=2e-3)


def test_bundles_of_one_name_cannot_be_told_apart() -> None:
    pytest.importorskip("torch")
    with pytest.raises(AssertionError, match="bundles of one name: b, b"):
        run("against_torch.py", "--bundle", "one/b", "--bundle", "other/b")
