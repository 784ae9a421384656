"""Settings of the demo model measured one after the other, against its own as it is.

What is measured is kept a line a video below a work folder, so that an interrupted run goes on; the
reference's pictures are kept there too, and made once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from longlive_trt.quality.cases import TIMELINE, Case, Lengths, Span, cases
from longlive_trt.quality.evaluation import Evaluation
from longlive_trt.quality.instruments import Comparison, Extras, Watch
from longlive_trt.quality.ledger import Ledger
from longlive_trt.quality.prompts import read_prompts, shipped_file
from longlive_trt.quality.rolling import Maker
from longlive_trt.quality.summary import Metric, metrics, pairs_of
from longlive_trt.runtime.pipeline import Pipeline

AFTER = 5
"""Blocks after a switch that are judged one by one."""

Line = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """Without anything, the model as it is."""

    name: str
    title: str = ""
    preset: str | None = None
    overrides: tuple[str, ...] = ()
    switch: str | None = None


REFERENCE = Trial("reference", "4 steps, window 12, sink 3")


@dataclass(frozen=True)
class Lab:
    pipeline: Pipeline
    work: Path
    lengths: Lengths

    def run(self, trials: Sequence[Trial]) -> None:
        for trial in (REFERENCE, *trials):
            ledger = self.ledger(trial)
            ledger.begin()
            for case in self.cases:
                if not ledger.has(case.kind, case.number):
                    ledger.add(self._measured(trial, case))
                    print(f"{trial.name}: {case.name}", flush=True)

    def lines(self, trial: Trial) -> list[Line]:
        """As an evaluation against the reference has them; those that are there."""
        found, other = self.ledger(trial).lines, self.ledger(REFERENCE).lines
        names = [(case.kind, case.number) for case in self.cases]
        both = [name for name in names if name in found and name in other]
        return [{**found[name], "other": other[name]["own"]} for name in both]

    def metrics(self, trial: Trial) -> dict[str, Metric]:
        lines = self.lines(trial)
        return {m.name: m for m in metrics(lines, self.pipeline.config.fps)} if lines else {}

    @property
    def cases(self) -> list[Case]:
        config = self.pipeline.config
        every = cases(read_prompts(shipped_file(config)), config, self.lengths)
        return [_watched_after_switches(case, config) for case in every]

    def ledger(self, trial: Trial) -> Ledger:
        maker = self._maker(trial)
        asked = read_prompts(shipped_file(self.pipeline.config))
        # Whatever is asked for now: more videos go on with those that are there.
        whole = replace(self.lengths, prompts=None, timelines=None)
        return Ledger(self.work / trial.name, Evaluation(maker, None, asked, whole).key)

    def _maker(self, trial: Trial) -> Maker:
        return Maker(self.pipeline, trial.preset, trial.overrides, trial.switch)

    def _measured(self, trial: Trial, case: Case) -> Line:
        extras, path = Extras(judges=True), self._pictures(case)
        with self._maker(trial).video(case) as video:
            pictures = video.plan.video_frames(0, case.blocks)
            watch, comparison = Watch(case, pictures, extras), Comparison(extras)
            makes = trial is REFERENCE
            kept = self._open(path, pictures) if makes else np.load(path, mmap_mode="r")
            for block in video.ahead():
                begin, frames = block.first_frame, block.frames
                if trial is REFERENCE:
                    kept[begin : begin + len(frames)] = frames
                watch.add(frames, block.prompt)
                comparison.add(frames, kept[begin : begin + len(frames)])
        return {
            "kind": case.kind, "number": case.number, "seed": case.seed, "texts": {},
            "own": watch.values(), "against": comparison.values(),
        }  # fmt: skip

    def _pictures(self, case: Case) -> Path:
        key = self.pipeline.bundle.manifest.key[:12]
        return self.work / "pictures" / f"{key}-{case.kind}-{case.number}-{case.seed}.npy"

    def _open(self, path: Path, pictures: int) -> Any:
        path.parent.mkdir(parents=True, exist_ok=True)
        size = self.pipeline.config.video_size
        assert size is not None
        return np.lib.format.open_memmap(path, "w+", np.uint8, (pictures, *size, 3))


def _watched_after_switches(case: Case, config: Any) -> Case:
    """With every one of the first blocks after a switch judged by itself too."""
    if case.kind != TIMELINE:
        return case
    block = config.rollout.frames_per_block
    changed = [span.shows for span in case.spans if span.name == "changed"]
    spans = [
        Span(
            f"after {n + 1}",
            config.video_frames(start + n * block),
            config.video_frames(start + (n + 1) * block),
            shows,
        )
        for start, shows in zip(sorted(case.texts)[1:], changed, strict=True)
        for n in range(AFTER)
    ]
    return replace(case, spans=(*case.spans, *spans))


def shown_after(lines: Sequence[Line], side: str = "own") -> list[float]:
    """The share of changed attributes that each of the first blocks after a switch shows."""
    shares = []
    for n in range(AFTER):
        pairs = pairs_of(lines, side, (f"after {n + 1}",))
        right = [shown[name] == value for stated, shown in pairs for name, value in stated.items()]
        shares.append(sum(right) / max(1, len(right)))
    return shares


def flicker_at_cut(lines: Sequence[Line], config: Any, side: str = "own") -> float:
    """How many times stronger the flicker is in a block after a switch than elsewhere."""
    at_cuts: list[float] = []
    elsewhere: list[float] = []
    for line in lines:
        if line["kind"] == TIMELINE:
            flicker = line[side]["flicker"]
            cuts = list(_cuts(len(flicker), config))
            at_cuts += [value for begin, end in cuts for value in flicker[begin:end]]
            inside = {n for begin, end in cuts for n in range(begin, end)}
            elsewhere += [value for n, value in enumerate(flicker) if n not in inside]
    return float(np.mean(at_cuts) / np.mean(elsewhere)) if at_cuts else 0.0


def _cuts(pictures: int, config: Any) -> Iterator[tuple[int, int]]:
    """Pictures of the block after each of a timeline's two switches."""
    block = config.rollout.frames_per_block
    blocks = (pictures + config.temporal_factor - 1) // (block * config.temporal_factor)
    for part in (1, 2):
        start = blocks // 3 * part * block
        yield config.video_frames(start), config.video_frames(start + block)


def figure(found: Mapping[str, Metric], name: str, digits: int = 1) -> str:
    metric = found.get(name)
    if metric is None or metric.own is None:
        return "-"
    spread = "" if metric.own.spread is None else f" ± {metric.own.spread:.{digits}f}"
    return f"{metric.own.mean:.{digits}f}{spread}"
