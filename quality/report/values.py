"""An evaluation as plain values: what the JSON holds, and what table and page show."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from longlive_trt.quality.evaluation import FORMAT, Evaluation
from longlive_trt.quality.rolling import Maker
from longlive_trt.quality.summary import (
    Line,
    attributes,
    case_values,
    curves,
    metrics,
)
from longlive_trt.runtime.bench.record import cpu_name

Values = dict[str, Any]


def report_values(evaluation: Evaluation, lines: Sequence[Line], command: str) -> Values:
    own, other = evaluation.own, evaluation.other
    config = own.pipeline.config
    return {
        "format": FORMAT,
        "command": command,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0))},
        "model": config.name,
        "video_size": list(config.video_size or ()),
        "fps": config.fps,
        "bundle": _maker(own),
        "reference": None if other is None else _maker(other),
        "settings": asdict(evaluation.lengths),
        "clips_read_by": evaluation.extras.clips and evaluation.extras.clips.model,
        "weights": {name: str(path) for name, path in evaluation.weights.items()},
        "videos": {kind: sum(line["kind"] == kind for line in lines) for kind in _kinds(lines)},
        "metrics": [metric.values() for metric in metrics(lines, config.fps)],
        "attributes": {
            side: {name: round(share, 4) for name, share in attributes(lines, side).items()}
            for side in ("own", "other")
        },
        "curves": curves(lines, config.fps),
        "cases": [case_values(line) for line in lines],
    }


def _kinds(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line["kind"] for line in lines))


def _maker(maker: Maker) -> Values:
    manifest = maker.pipeline.bundle.manifest
    return {
        "bundle": str(maker.pipeline.bundle.folder),
        "key": manifest.key,
        "precision": manifest.precision,
        "engine": f"{manifest.engine.kind} {manifest.engine.version} for {manifest.engine.target}",
        "preset": maker.preset,
        "overrides": list(maker.overrides),
        "switch": maker.switch,
        "decoder": maker.decoder,
    }


def title_of(maker: Values) -> str:
    """A bundle as a heading calls it."""
    extras = [maker["preset"], *maker["overrides"], maker["switch"]]
    extras += [f"{maker['decoder']} decoder"] if maker["decoder"] else []
    named = [str(extra) for extra in extras if extra]
    return ", ".join([maker["precision"], *named])


def number_of(figure: Mapping[str, Any] | None, unit: str) -> str:
    """A mean in as many digits as make sense for its size."""
    return "-" if figure is None else _written(figure["mean"], unit)


def spread_of(figure: Mapping[str, Any] | None, unit: str) -> str:
    """Of the videos; of a distance, what chance alone comes to."""
    if figure is None:
        return "-"
    if figure["chance"] is not None:
        return f"chance: {_written(figure['chance'], unit)}"
    return "-" if figure["spread"] is None else _written(figure["spread"], unit)


def notes_of(values: Mapping[str, Any]) -> list[str]:
    """What is to be known of single figures."""
    titles: dict[str, list[str]] = {}
    for metric in values["metrics"]:
        if metric["note"]:
            titles.setdefault(metric["note"], []).append(metric["title"])
    notes = [f"{', '.join(named)}: {note}" for note, named in titles.items()]
    reader = f"Clips are read by the encoder of {values['clips_read_by']}"
    return [*notes, reader] if notes and values["clips_read_by"] else notes


def _written(value: float, unit: str) -> str:
    digits = 1 if unit in ("dB", "%") or abs(value) >= 10 else 3
    return f"{value:.{digits}f}"
