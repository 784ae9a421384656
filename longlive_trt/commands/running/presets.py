"""``longlive-trt presets``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from longlive_trt import loading
from longlive_trt.commands._bundle import HELP as BUNDLE_HELP
from longlive_trt.commands._bundle import find_bundle
from longlive_trt.commands._voice import PATIENCE_S, Voice, examples, speaking
from longlive_trt.configs import Preset, RolloutConfig, load_preset, shipped_presets
from longlive_trt.console.printing import console
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.errors import UsageError
from longlive_trt.quality.measured import Figures, shipped_figures
from longlive_trt.runtime.bench.kept import Speed, kept_speeds, rollout_values
from longlive_trt.runtime.decoding.choice import decoders_of
from longlive_trt.runtime.presets import runtime_config, unserved

_EXAMPLES = examples("longlive-trt presets", "longlive-trt presets --bundle bundle/ --json")
_WIDTH = 100

Row = Mapping[str, Any]


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

    Speed on this machine is what `bench --preset` has kept of the bundle; quality, and speed on
    other devices, were measured for models that are shipped (docs/presets.md).
    """
    folder = find_bundle(bundle, voice)
    with voice.reporting(patience_s=PATIENCE_S) as report:
        opened = open_bundle(folder, report.bytes)
    figures = shipped_figures(opened.config.name, opened.manifest.checkpoints)
    rows = [_row(opened, name, figures) for name in shipped_presets()]
    voice.show(lambda: _show(bundle, rows), {"bundle": str(opened.folder), "presets": rows})


def _row(bundle: Bundle, name: str, figures: Figures) -> dict[str, Any]:
    preset = load_preset(name)
    missing = unserved(bundle, preset)
    rollout = _rollout(bundle, name)
    measured = figures.presets.get(name)
    elsewhere = {d: asdict(of[name]) for d, of in figures.speeds.items() if name in of}
    return {
        "preset": name,
        "about": preset.about,
        "settings": preset.settings,
        "rollout": None if rollout is None else rollout_values(rollout),
        "decoder": preset.build.decoder or next(iter(decoders_of(bundle)), None),
        "needs": _needs(preset),
        "low_memory": preset.low_memory,
        "missing": None if missing is None else f"{missing[0]}; {missing[1].format(name=name)}",
        "measured": None if measured is None else asdict(measured),
        "elsewhere": elsewhere,
        "here": {d: asdict(speed) for d, speed in _speeds(bundle, name, rollout)},
    }


def _rollout(bundle: Bundle, name: str) -> RolloutConfig | None:
    """What a video of the preset is made with; None where the bundle cannot change to that."""
    try:
        return runtime_config(bundle.config, name).rollout
    except UsageError:
        return None


def _speeds(
    bundle: Bundle, name: str, rollout: RolloutConfig | None
) -> Iterator[tuple[str, Speed]]:
    """What was measured while the preset said what it says now."""
    for device, speed in kept_speeds(bundle.manifest.key).get(name, {}).items():
        if rollout is not None and speed.rollout == rollout_values(rollout):
            yield device, speed


def _needs(preset: Preset) -> dict[str, str]:
    return {name: value for name, value in asdict(preset.build).items() if value is not None}


def _show(bundle: Path, rows: Sequence[Row]) -> None:
    out = console(file_width=_WIDTH)
    out.print(_table(bundle, rows))
    click.echo()
    width = max(len(row["preset"]) for row in rows)
    for row in rows:
        click.echo(f"{row['preset']:<{width}}  {row['about']}")
        if row["missing"]:
            click.echo(f"{'':<{width}}  {row['missing']}")
    for advice in _advice(bundle, rows):
        click.echo(f"\n{advice}")


def _advice(bundle: Path, rows: Sequence[Row]) -> Iterator[str]:
    if not any(row["here"] for row in rows):
        yield f"Nothing is measured here yet: longlive-trt bench --bundle {bundle} --preset NAME"
    if not any(row["measured"] for row in rows):
        yield (
            "No quality is known of these weights: "
            f"longlive-trt eval {bundle} --preset NAME --out report"
        )


def _table(bundle: Path, rows: Sequence[Row]) -> Table:
    table = Table(title=f"Presets of {bundle}", box=None, pad_edge=False)
    table.add_column("preset", no_wrap=True)
    for column in ("steps\n(first)", "window", "decoder"):
        table.add_column(column)
    for column in ("shown\n%", "PSNR\ndB", "SSIM"):
        table.add_column(column, justify="right")
    places = [
        (place, device)
        for place in ("here", "elsewhere")
        for device in dict.fromkeys(device for row in rows for device in row[place])
    ]
    for place, device in places:
        where = f"here, {device}" if place == "here" else device
        table.add_column(f"{where}\nms a block (frames/s)", justify="right", overflow="fold")
    for row in rows:
        speeds = [_speed(row[place].get(device)) for place, device in places]
        table.add_row(row["preset"], *_settings(row), *_quality(row["measured"]), *speeds)
    return table


def _settings(row: Row) -> tuple[str, str, str]:
    rollout = row["rollout"]
    if rollout is None:
        return "-", "-", row["decoder"] or "-"
    steps, first = len(rollout["steps"]), rollout["first_steps"]
    opening = f" ({len(first)})" if first else ""
    return f"{steps}{opening}", str(rollout["window_frames"]), row["decoder"] or "-"


def _quality(measured: Row | None) -> list[str]:
    digits = {"shown": 1, "psnr_db": 1, "ssim": 3}
    values = {name: measured[name] if measured else None for name in digits}
    return ["-" if v is None else f"{v:.{digits[name]}f}" for name, v in values.items()]


def _speed(speed: Row | None) -> str:
    if speed is None:
        return "-"
    rate = speed["video_frames_per_s"]
    return f"{speed['block_ms']:.0f}" + (f" ({rate:.1f})" if rate else "")
