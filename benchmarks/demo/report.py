"""Figures and tables of what ``benchmarks.demo.adherence`` measured."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.harness import replace_table
from longlive_trt.demo.adherence.judge import Tally

Line = dict[str, Any]

SINGLE_TARGET, SWITCH_TARGET = 0.95, 0.90
DRIFT_TARGET, SHARPNESS_TARGET = 0.03, 0.10
PSNR_TARGET_DB = 32.0

FIRST, FEWER = "first", 60
"""The model as it is on the first prompts, which are those of the ablation's other rows."""


def summaries(measured: Mapping[str, Sequence[Line]]) -> dict[str, dict[str, Any]]:
    """By row; a prompt that was measured twice, with two bundles, counts as the last time."""
    kinds = {"drift": _drift, "vae": reconstructed}
    latest = {name: _latest(lines) for name, lines in measured.items()}
    if "base" in latest:
        latest[FIRST] = [line for line in latest["base"] if line["number"] < FEWER]
    return {
        name: {"bundle": lines[0]["bundle"], **kinds.get(name, shown_after_switch)(lines)}
        for name, lines in latest.items()
        if lines
    }


def _latest(lines: Iterable[Line]) -> list[Line]:
    """Of the bundle that was measured last, in the order of the prompts."""
    found = sorted(lines, key=lambda line: float(line["at"]))
    bundle = found[-1]["bundle"]
    by_number = {line["number"]: line for line in found if line["bundle"] == bundle}
    return [by_number[number] for number in sorted(by_number)]


def shown_after_switch(lines: Sequence[Line]) -> dict[str, Any]:
    single, changed, kept = Tally(), Tally(), Tally()
    for line in lines:
        first, second = line["stated"]
        before, after = line["shown"]
        single.add(first, before)
        turned = {name for name in second if second[name] != first.get(name)}
        changed.add({name: second[name] for name in turned}, after)
        kept.add({name: value for name, value in second.items() if name not in turned}, after)
    return {
        "prompts": len(lines),
        "single": _figures(single),
        "changed": _figures(changed),
        "kept": _figures(kept),
    }


def _drift(lines: Sequence[Line]) -> dict[str, Any]:
    ends = [Tally(), Tally()]
    for line in lines:
        for tally, shown in zip(ends, line["shown"], strict=True):
            tally.add(line["stated"], shown)
    first, last = (mean(line["sharpness"][end] for line in lines) for end in (0, 1))
    return {
        "prompts": len(lines),
        "first": _figures(ends[0]),
        "last": _figures(ends[1]),
        "sharpness": [round(first, 4), round(last, 4)],
    }


def reconstructed(lines: Sequence[Line]) -> dict[str, Any]:
    values = [line["psnr_db"] for line in lines]
    # Errors are averaged, as training's own figure does it.
    error = mean(10 ** (-value / 10) for value in values)
    return {
        "clips": len(values),
        "psnr_db": round(mean(values), 2),
        "psnr_of_mean_error_db": round(-10 * math.log10(error), 2),
        "lowest_db": min(values),
    }


def _figures(tally: Tally) -> dict[str, Any]:
    return {
        "share": round(tally.share, 4),
        "attributes": sum(tally.asked.values()),
        "by_attribute": {name: round(share, 3) for name, share in tally.by_attribute().items()},
    }


def write_tables(report: Mapping[str, Any], page: Path) -> None:
    rows = report["rows"]
    replace_table(page, "targets", list(_targets(rows)))
    replace_table(page, "attributes", list(_attributes(rows)))
    replace_table(page, "ablation", list(ablation(rows)))


def _targets(rows: Mapping[str, Any]) -> Iterable[str]:
    yield "| | target | measured | of |"
    yield "|---|---|---|---|"
    if "base" in rows:
        base = rows["base"]
        for part, title, target in (
            ("single", "attributes of a prompt shown, over 6.6 s", SINGLE_TARGET),
            ("changed", "changed attributes shown two blocks after a switch", SWITCH_TARGET),
            ("kept", "attributes that a switch leaves, kept", SWITCH_TARGET),
        ):
            count = base[part]["attributes"]
            yield (
                f"| {title} | {target:.0%} | {base[part]['share']:.1%} | {count} attributes, "
                f"{base['prompts']} prompts |"
            )
    if "drift" in rows:
        long = rows["drift"]
        first, last = long["first"]["share"], long["last"]["share"]
        sharp = long["sharpness"][1] / long["sharpness"][0] - 1
        count = f"{long['prompts']} videos of 120 s"
        yield (
            f"| last 10 s against first 10 s, attributes shown | within {DRIFT_TARGET * 100:.0f} "
            f"points | {last:.1%} against {first:.1%} | {count} |"
        )
        yield f"| the same, sharpness | within {SHARPNESS_TARGET:.0%} | {sharp:+.1%} | {count} |"
    if "vae" in rows:
        vae = rows["vae"]
        yield (
            f"| autoencoder, PSNR, streamed | {PSNR_TARGET_DB:.0f} dB | {vae['psnr_db']:.1f} dB "
            f"(lowest {vae['lowest_db']:.1f}) | {vae['clips']} held-out clips of 33 frames |"
        )


def _attributes(rows: Mapping[str, Any]) -> Iterable[str]:
    names = ("place", "time", "weather", "traveler", "color", "direction", "pace")
    yield "| | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for part, title in (("single", "one prompt"), ("changed", "changed"), ("kept", "kept")):
        found = rows.get("base", {}).get(part, {}).get("by_attribute", {})
        cells = [f"{found[name]:.1%}" if name in found else "-" for name in names]
        yield f"| {title} | " + " | ".join(cells) + " |"


def ablation(rows: Mapping[str, Any]) -> Iterable[str]:
    yield "| | one prompt | changed | kept | prompts |"
    yield "|---|---|---|---|---|"
    for name, row in rows.items():
        if name not in ("drift", "vae"):
            cells = [f"{row[part]['share']:.1%}" for part in ("single", "changed", "kept")]
            yield f"| {row['title']} | " + " | ".join(cells) + f" | {row['prompts']} |"
