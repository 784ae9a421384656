"""``longlive-trt models``."""

from dataclasses import asdict
from typing import Any

import click
from rich.table import Table

from longlive_trt.commands._voice import Voice, examples, speaking
from longlive_trt.configs import load_config
from longlive_trt.configs.family import family, sizes
from longlive_trt.console.printing import console

_EXAMPLES = examples("longlive-trt models", "longlive-trt models --json")


@click.command(epilog=_EXAMPLES)
@speaking
def command(voice: Voice) -> None:
    """List the models that configurations are shipped for.

    `export --config NAME` takes one. Sizes are in 16 bits, for one video; the cache is that of a
    full window. No weights but the demo's come with this package; each model has its own terms.
    """
    rows = [_row(name) for name in family()]
    voice.show(lambda: _show(rows), {"models": rows})


def _row(name: str) -> dict[str, Any]:
    config = load_config(name)
    rollout = config.rollout
    return {
        "model": name,
        **asdict(family()[name]),
        **asdict(sizes(config)),
        "frames_per_block": rollout.frames_per_block,
        "window_frames": rollout.window_frames,
        "sink_frames": rollout.sink_frames,
        "steps": list(rollout.steps),
        "first_steps": list(rollout.opening_steps),
        "positions": rollout.rope,
    }


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("model", overflow="fold")
    for column in ("weights", "GB", "cache, GB", "block", "window", "sink", "steps", "first"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*_cells(row))
    console(file_width=110).print(table)
    for row in rows:
        click.echo()
        click.echo(f"{row['model']}: {row['title']}")
        for key in ("source", "files", "license", "run"):
            click.echo(f"  {key}: {row[key]}")


def _cells(row: dict[str, Any]) -> list[str]:
    window = row["window_frames"]
    return [
        row["model"],
        _count(row["weights"]),
        f"{row['weights_bytes'] / 1e9:.1f}",
        f"{row['cache_bytes'] / 1e9:.1f}",
        str(row["frames_per_block"]),
        "all" if window < 0 else str(window),
        str(row["sink_frames"]),
        str(len(row["steps"])),
        str(len(row["first_steps"])),
    ]


def _count(weights: int) -> str:
    return f"{weights / 1e9:.1f} B" if weights >= 1e9 else f"{weights / 1e6:.1f} M"
