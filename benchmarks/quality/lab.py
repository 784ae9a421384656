"""Settings of the demo model, each measured on the same videos as the model as it is.

A video is made from the same noise with every setting, so that two settings are compared video by
video. What a line's key holds is all that decides the figures: weights, settings, the video.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from benchmarks.quality.records import Line, Records
from longlive_trt.configs import ModelConfig, load_preset
from longlive_trt.configs.dump import config_values
from longlive_trt.demo.geometry import WEIGHTS
from longlive_trt.demo.shipped import SUMS
from longlive_trt.quality.cases import TIMELINE, Case, Lengths, Span, cases
from longlive_trt.quality.instruments import EVERY, Comparison, Extras, Watch, World
from longlive_trt.quality.metrics.clips import ClipReader
from longlive_trt.quality.metrics.similarity import Pixels
from longlive_trt.quality.prompts import read_prompts, shipped_file
from longlive_trt.quality.rolling import Maker
from longlive_trt.runtime.pipeline import Pipeline
from longlive_trt.runtime.presets import runtime_config

FORMAT = 3
AFTER = 5
"""Blocks after a switch that are judged one by one."""
STILLS_OF = 2
"""Prompts whose pictures are kept; of the first seed."""
FULL = "full"
_GENERATOR = ("transformer", "text_encoder")
_DECODERS = {FULL: "vae", "light": "light_vae"}


class Idea(Protocol):
    """Another way to make a video than the product has."""

    @property
    def key(self) -> str:
        """Of all that decides what it computes."""
        ...

    def video(self, pipeline: Pipeline, case: Case) -> Iterator[Pixels]: ...


@dataclass(frozen=True)
class Trial:
    """Without anything, the model as it is."""

    name: str
    title: str = ""
    preset: str | None = None
    overrides: tuple[str, ...] = ()
    switch: str | None = None
    decoder: str | None = None
    idea: Idea | None = None


REFERENCE = Trial("reference", "4 steps, window 12, sink 3")


def weights(decoders: Iterable[str] = tuple(_DECODERS)) -> dict[str, str]:
    """The first digits of the hashes of the shipped weights."""
    lines = (line.split() for line in (WEIGHTS / SUMS).read_text().splitlines())
    known = {name.removesuffix(".safetensors"): digest[:12] for digest, name in lines}
    return {name: known[name] for name in (*_GENERATOR, *(_DECODERS[d] for d in decoders))}


@dataclass
class Lab:
    pipeline: Pipeline
    records: Records
    _references: dict[str, Pixels] = field(default_factory=dict)
    """Of one case at a time, by the hash of that case."""

    def measure(self, case: Case, trials: Sequence[Trial]) -> None:
        """What is not in the records yet."""
        for trial in (REFERENCE, *trials):
            key = self.key(trial, case)
            if key not in self.records:
                line = {"key": key, "trial": trial.name, **self._measured(trial, case)}
                self.records.add(line)

    def lines(self, trial: Trial, wanted: Iterable[Case]) -> list[Line]:
        """As an evaluation against the reference has them; those that are there."""
        found = []
        for case in wanted:
            line, other = (self.records.get(self.key(t, case)) for t in (trial, REFERENCE))
            if line is not None and other is not None:
                world = other.get("world")
                found.append({**line, "other": other["own"], "world": world})
        return found

    def cases(self, lengths: Lengths, seeds: int) -> list[Case]:
        """By seed; within one, prompts and timelines take turns, so that few of both come first."""
        config = self.pipeline.config
        asked = read_prompts(shipped_file(config))
        by_seed = [cases(asked, config, replace(lengths, seed=1000 * s)) for s in range(seeds)]
        return [_watched_after_switches(c, config) for every in by_seed for c in _mixed(every)]

    def key(self, trial: Trial, case: Case) -> str:
        return f"{self._settings(trial)}-{_case_key(case)}"

    def decoder(self, trial: Trial) -> str:
        preset = load_preset(trial.preset).build.decoder if trial.preset else None
        return trial.decoder or preset or FULL

    def _settings(self, trial: Trial) -> str:
        config = runtime_config(self.pipeline.config, trial.preset, trial.overrides)
        decoder = self.decoder(trial)
        return _hash(
            [
                *(FORMAT, weights([decoder]), config_values(config)),
                *(trial.switch or "exact", decoder, trial.idea.key if trial.idea else None),
            ]
        )

    def _measured(self, trial: Trial, case: Case) -> Line:
        extras = Extras(judges=True, clips=self._clips)
        pictures = self._pictures(case)
        watch, comparison = Watch(case, pictures, extras), Comparison(extras)
        reference = None if trial is REFERENCE else self._reference(case)
        done = 0
        for frames in self._video(trial, case):
            watch.add(frames, "")
            if reference is not None:
                comparison.add(frames, reference[done : done + len(frames)])
            done += len(frames)
        own = watch.values()
        if case.number >= STILLS_OF or case.seed >= 1000:
            own["stills"] = []
        line = {"kind": case.kind, "number": case.number, "seed": case.seed, "own": own}
        if reference is not None:
            return {**line, "against": comparison.values()}
        world = World(self._clips, self.pipeline.config.fps).values(case)
        return {**line, "against": _no_difference(pictures), "world": world}

    @cached_property
    def _clips(self) -> ClipReader:
        return ClipReader(self.pipeline.engines.encoder, self.pipeline.config)

    def _video(self, trial: Trial, case: Case) -> Iterator[Pixels]:
        if trial.idea is not None:
            yield from trial.idea.video(self.pipeline, case)
            return
        maker = Maker(self.pipeline, trial.preset, trial.overrides, trial.switch, trial.decoder)
        with maker.video(case) as video:
            for block in video.ahead():
                yield block.frames

    def _reference(self, case: Case) -> Pixels:
        key = _case_key(case)
        if key not in self._references:
            self._references = {key: np.concatenate(list(self._video(REFERENCE, case)))}
        return self._references[key]

    def _pictures(self, case: Case) -> int:
        config = self.pipeline.config
        return config.video_frames(case.blocks * config.rollout.frames_per_block)


def _no_difference(pictures: int) -> dict[str, list[float]]:
    """Of a video and itself."""
    looks = len(range(0, pictures, EVERY))
    return {
        "squared_error": [0.0] * pictures,
        "ssim": [1.0] * looks,
        "ms_ssim": [1.0] * looks,
    }


def _mixed(every: Sequence[Case]) -> list[Case]:
    """One of every kind, each spread evenly."""
    kinds = [[case for case in every if case.kind == kind] for kind in {c.kind: 0 for c in every}]
    placed = [((n + 0.5) / len(kind), case) for kind in kinds for n, case in enumerate(kind)]
    return [case for _, case in sorted(placed, key=lambda pair: pair[0])]


def _case_key(case: Case) -> str:
    return _hash([case.kind, case.number, dict(case.texts), case.blocks, case.seed,
                  [asdict(span) for span in case.spans]])  # fmt: skip


def _hash(decisive: Any) -> str:
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def _watched_after_switches(case: Case, config: ModelConfig) -> Case:
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
