"""A setting's figures as plain values, as the JSON keeps them, and as cells of a page's tables."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import pstdev
from typing import Any

from benchmarks import harness
from benchmarks.harness import Row
from benchmarks.quality.lab import AFTER, FORMAT, Lab, Trial, weights
from benchmarks.quality.paired import (
    PARTS,
    Share,
    flicker_at_cut,
    likeness,
    share,
    shown_after,
)
from longlive_trt.quality.cases import Case
from longlive_trt.quality.summary import metrics

LIKENESS = ("psnr", "ssim", "ms_ssim", "flicker", "sharpness")
FEW = 10
"""Videos from which on a spread says anything."""
DISTANCES = ("frechet", "frechet_world")
_OF_ALL = (*DISTANCES, "drift_sharpness")
_SEED = 1000
"""Seeds of one round of videos are below its next multiple, but for those of other kinds."""
_KINDS = 100_000


def measured_rows(lab: Lab, trials: Iterable[Trial], cases: Sequence[Case]) -> dict[str, Row]:
    rows = {trial.name: _row(lab, trial, cases) for trial in trials}
    return {name: row for name, row in rows.items() if row["videos"]}


def _row(lab: Lab, trial: Trial, cases: Sequence[Case]) -> Row:
    lines = lab.lines(trial, cases)
    config = lab.pipeline.config
    found = {metric.name: metric.own for metric in metrics(lines, config.fps)} if lines else {}
    rounds = [[li for li in lines if _round_of(li) == r] for r in sorted({*map(_round_of, lines)})]
    return {
        "title": trial.title,
        "overrides": list(trial.overrides),
        "switch": trial.switch,
        "decoder": lab.decoder(trial),
        "videos": len(lines),
        "shown": {name: _values(share(lines, spans)) for name, spans in PARTS.items()},
        "by_seed": {
            name: [_percent(share(part, spans)) for part in rounds] for name, spans in PARTS.items()
        },
        "likeness": {
            name: [round(number, 4) for number in values]
            for name in LIKENESS
            if (values := likeness(lines, name))
        },
        "of_all": {name: round(f.mean, 3) for name in _OF_ALL if (f := found.get(name))},
        "chance": {
            name: round(f.chance, 3) for name in DISTANCES if (f := found.get(name)) and f.chance
        },
        "shown_after": [round(part, 4) for part in shown_after(lines, AFTER)],
        "flicker_at_cut": round(flicker_at_cut(lines, config), 4),
    }


def _round_of(line: Mapping[str, Any]) -> int:
    return int(line["seed"]) % _KINDS // _SEED


def _values(found: Share | None) -> dict[str, float] | None:
    if found is None:
        return None
    return {
        "percent": round(found.own, 2),
        "difference": round(found.difference, 2),
        "standard_error": round(found.error, 2),
        "attributes": found.attributes,
    }


def _percent(found: Share | None) -> float | None:
    return None if found is None else round(found.own, 2)


def kept_rows(path: Path, name: str, new: Mapping[str, Row]) -> dict[str, Row]:
    """With those of an earlier result, where they are of more videos."""
    return harness.kept_rows(path, name, new, measured_with(), lambda row: row["videos"])


def measured_with() -> dict[str, Any]:
    """What results must have in common to be put together."""
    return {"format": FORMAT, "weights": weights()}


def measured_on() -> str:
    """The weights, as a page names them."""
    named = ", ".join(f"{name.replace('_', ' ')} {key}" for name, key in weights().items())
    return f"Measured on these weights (first digits of their sha256): {named}."


def share_cell(row: Row, part: str, *, alone: bool = False) -> str:
    """In brackets the difference to the model as it is, and its standard error."""
    found = row["shown"].get(part)
    if found is None:
        return "-"
    seeds = [value for value in row["by_seed"][part] if value is not None]
    spread = f" ± {pstdev(seeds):.1f}" if len(seeds) > 1 else ""
    error = found["standard_error"]
    gained = "" if alone else f" ({found['difference']:+.1f} ± {error:.1f})"
    return f"{found['percent']:.1f}{spread}{gained}"


def verdict(row: Row) -> str:
    """Of all attributes together, as far as two standard errors tell."""
    found = row["shown"].get("together")
    if found is None or row["videos"] < FEW:
        return "too few videos"
    whole = Share(found["percent"], found["difference"], found["standard_error"], 0)
    if whole.least_lost:
        return f"loses {whole.least_lost:.1f} to {whole.most_lost:.1f}"
    return f"loses {whole.most_lost:.1f} at most"


def distance_cell(row: Row, name: str) -> str:
    """In brackets what chance alone comes to."""
    if name not in row["of_all"]:
        return "-"
    chance = row["chance"].get(name)
    told = f" ({chance:.2f})" if chance else ""
    return f"{row['of_all'][name]:.2f}{told}"


def likeness_cell(row: Row, name: str, digits: int) -> str:
    found = row["likeness"].get(name)
    return f"{found[0]:.{digits}f} ± {found[1]:.{digits}f}" if found else "-"
