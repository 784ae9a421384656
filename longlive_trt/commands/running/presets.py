"""``longlive-trt presets``."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from longlive_trt import loading
from longlive_trt.commands._bundle import HELP as BUNDLE_HELP
from longlive_trt.commands._bundle import find_bundle
from longlive_trt.commands._voice import PATIENCE_S, Voice, examples, speaking
from longlive_trt.configs import Preset, load_preset, shipped_presets
from longlive_trt.console.printing import console
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.quality.measured import Measured, measured_presets
from longlive_trt.runtime.bench.kept import Speed, kept_speeds, rollout_values
from longlive_trt.runtime.presets import runtime_config, unserved

_EXAMPLES = examples("longlive-trt presets", "longlive-trt presets --bundle bundle/ --json")


@click.command(epilog=_EXAMPLES)
@click.option(
    "--bundle",
    default=Path(loading.DEMO),
    type=click.Path(path_type=Path),
    show_default=True,
    help=BUNDLE_HELP,
)
@speaking
def command(bundle: Path, voice: Voice) -> None:
    """List the presets, what each needs, and what was measured of it.

    Speed on this machine is what `bench --preset` has kept of the bundle; quality was measured for
    models that are shipped (docs/presets.md).
    """
    folder = find_bundle(bundle, voice)
    with voice.reporting(patience_s=PATIENCE_S) as report:
        opened = open_bundle(folder, report.bytes)
    rows = [_row(opened, name) for name in shipped_presets()]
    voice.show(lambda: _show(opened, rows), {"bundle": str(opened.folder), "presets": rows})


def _row(bundle: Bundle, name: str) -> dict[str, Any]:
    preset = load_preset(name)
    missing = unserved(bundle, preset)
    config = None if missing else runtime_config(bundle.config, name).rollout
    speed = kept_speeds(bundle.manifest.key).get(name)
    if speed is not None and (config is None or speed.rollout != rollout_values(config)):
        speed = None
    measured = measured_presets(bundle.config.name).get(name)
    return {
        "preset": name,
        "about": preset.about,
        "settings": preset.settings,
        "needs": _needs(preset),
        "low_memory": preset.low_memory,
        "missing": None if missing is None else f"{missing[0]}; {missing[1].format(name=name)}",
        "measured": None if measured is None else asdict(measured),
        "here": None if speed is None else asdict(speed),
    }


def _needs(preset: Preset) -> dict[str, str]:
    return {name: value for name, value in asdict(preset.build).items() if value is not None}


def _show(bundle: Bundle, rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"Presets of {bundle.folder}", box=None, pad_edge=False)
    for column in ("preset", "steps", "first", "window"):
        table.add_column(column, overflow="fold")
    for column in ("shown, %", "PSNR, dB", "here: block, ms", "frames/s"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*_cells(row))
    out = console(file_width=100)
    out.print(table)
    width = max(len(row["preset"]) for row in rows)
    click.echo()
    for row in rows:
        click.echo(f"{row['preset']:<{width}}  {row['about']}")
        if row["missing"]:
            click.echo(f"{'':<{width}}  {row['missing']}")
    if not any(row["here"] for row in rows):
        click.echo(
            "\nNothing is measured here yet: longlive-trt bench --bundle BUNDLE --preset NAME"
        )


def _cells(row: Mapping[str, Any]) -> list[str]:
    rollout = row["settings"].get("rollout", {})
    measured = Measured(**row["measured"]) if row["measured"] else None
    speed = Speed(**row["here"]) if row["here"] else None
    steps, first = rollout.get("steps"), rollout.get("first_steps")
    rate = speed.video_frames_per_s if speed else None
    return [
        row["preset"],
        str(len(steps)) if steps else "-",
        str(len(first)) if first else "-",
        str(rollout.get("window_frames", "-")),
        "-" if measured is None or measured.shown is None else f"{measured.shown:.1f}",
        "-" if measured is None or measured.psnr_db is None else f"{measured.psnr_db:.1f}",
        f"{speed.block_ms:.0f}" if speed else "-",
        f"{rate:.1f}" if rate else "-",
    ]
