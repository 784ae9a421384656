"""What settings compute and keep, counted, against the counts of whole configurations."""

from dataclasses import replace

import pytest

from benchmarks.quality import catalog
from benchmarks.quality.lab import REFERENCE
from benchmarks.quality.work import cache_cell, shares, work_cell
from longlive_trt.configs import load_config
from longlive_trt.demo.geometry import model_config
from longlive_trt.runtime.bench.flops import BlockFlops
from longlive_trt.runtime.presets import runtime_config

TRIALS = catalog.every()


def test_the_model_as_it_is_is_the_whole() -> None:
    assert work_cell(REFERENCE) == "100 / 100" and cache_cell(REFERENCE) == "100"
    for same in ("switch-none", "moving-sink", "sink-0", "balanced", "endless"):
        assert work_cell(TRIALS[same]) == "100 / 100" and cache_cell(TRIALS[same]) == "100"


@pytest.mark.parametrize("name", ["steps-1", "steps-6", "window-6", "window-21", "turbo-light"])
def test_settings_of_the_product_are_counted_as_bench_counts_them(name: str) -> None:
    trial, bases = TRIALS[name], (model_config(), load_config("longlive-1.3b"))
    for base, share in zip(bases, shares(trial), strict=True):
        config = runtime_config(base, None, trial.overrides)
        if trial.preset:
            config = replace(config, rollout=replace(config.rollout, steps=(1000, 500)))
        totals = []
        for one, light in ((config, trial.preset is not None), (base, False)):
            flops = BlockFlops.of(one, one.light_vae if light else None)
            assert flops.vae is not None
            totals.append(flops.transformer.total + flops.vae.total)
        if base.light_vae is None and trial.preset:
            assert share.work < 100 * totals[0] / totals[1], "a tiny decoder takes less"
        else:
            assert share.work == pytest.approx(100 * totals[0] / totals[1], rel=2e-3)
        window = config.rollout.window_frames
        assert share.cache == pytest.approx(100 * window / 12)


def test_ideas_save_what_they_leave_out() -> None:
    def large(name: str) -> float:
        return shares(TRIALS[name])[1].work

    assert large("pooled-4") < large("pooled-2") == large("pooled-2-time") < 100
    assert large("near-heads-half") < large("near-heads") < large("near-heads-sink") < 100
    assert 100 - large("exit-2-first") == pytest.approx(2 * (100 - large("exit-1-first")))
    assert large("merged-50") < large("merged-25") < 100
    assert large("preview") < large("coarse-first") < 100
    # Of a pass three quarters of the queries and of what belongs to them.
    steps, first = 100 - large("steps-3"), 100 - large("coarse-first")
    assert 0.7 * steps < first < steps


def test_caches() -> None:
    assert cache_cell(TRIALS["cache-fp8"]) == cache_cell(TRIALS["cache-int8"]) == "25 / 50"
    assert cache_cell(TRIALS["pooled-2"]) == "75" and cache_cell(TRIALS["preview"]) == "25"
    assert cache_cell(TRIALS["near-heads"]) == "75"
    assert cache_cell(TRIALS["near-heads-sink"]) == "81"
    assert cache_cell(TRIALS["window-9"]) == "75"
