"""``longlive-trt inspect``."""

import json
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from longlive_trt.commands._reporting import folded
from longlive_trt.commands._voice import Voice, examples, speaking
from longlive_trt.console.printing import console
from longlive_trt.console.wording import byte_size, counted
from longlive_trt.engines.bundles.archive import read_archive_manifest
from longlive_trt.engines.bundles.bundle import Manifest, read_manifest


@click.command(
    epilog=examples("longlive-trt inspect bundle/", "longlive-trt inspect b.tar.zst --all")
)
@click.argument("bundle", metavar="BUNDLE|ARCHIVE", type=click.Path(path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Every tensor, and all hashes too.")
@speaking
def command(bundle: Path, everything: bool, voice: Voice) -> None:
    """Show what a bundle or an archive holds, as its manifest says.

    The files themselves are not read: `verify` does that.
    """
    manifest = read_archive_manifest(bundle) if bundle.is_file() else read_manifest(bundle)
    voice.show(lambda: _show(bundle, manifest, everything), _values(bundle, manifest))


def _values(bundle: Path, manifest: Manifest) -> dict[str, Any]:
    return {
        "path": str(bundle),
        "total_bytes": manifest.total_bytes,
        **json.loads(manifest.to_json()),
    }


def _show(bundle: Path, manifest: Manifest, everything: bool) -> None:
    shown = console(file_width=120)
    shown.print(_summary(bundle, manifest, everything))
    if everything:
        shown.print(_graphs(manifest))
        shown.print(_files(manifest))


def _summary(bundle: Path, manifest: Manifest, everything: bool) -> Table:
    engine = manifest.engine
    table = Table(title=str(bundle), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "model": manifest.config.name,
        "pictures": _pictures(manifest),
        "engine": f"{engine.kind} {engine.version} for {engine.target}",
        "precision": manifest.precision,
        "graphs": ", ".join(manifest.graphs) or "none",
        "size": f"{counted(len(manifest.files), 'file')}, {byte_size(manifest.total_bytes)}",
        "built by": manifest.command or "not recorded",
        "build time": f"{manifest.duration_s:.1f} s",
        "key": manifest.key,
    }
    if everything:
        rows |= {f"weights of {name}": sha256 for name, sha256 in manifest.checkpoints.items()}
        rows |= {f"plugin {name}": sha256 for name, sha256 in manifest.plugins.items()}
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    return table


def _pictures(manifest: Manifest) -> str:
    config = manifest.config
    if config.video_size is None:
        return f"none; latent frames of {config.latent.width} x {config.latent.height}"
    height, width = config.video_size
    return f"{width} x {height}, {config.fps:g} frames/s"


def _graphs(manifest: Manifest) -> Table:
    table = Table(title="Graphs")
    for column in ("graph", "", "tensor", "type", "shape"):
        table.add_column(column)
    for name, graph in manifest.graphs.items():
        for direction, tensors in (("in", graph.inputs), ("out", graph.outputs)):
            for row in folded(tensors):
                table.add_row(name, direction, *map(Text, row))
        table.add_section()
    return table


def _files(manifest: Manifest) -> Table:
    table = Table(title="Files")
    table.add_column("file", overflow="fold")
    table.add_column("MB", justify="right")
    table.add_column("sha256", no_wrap=True)
    for name, entry in manifest.files.items():
        table.add_row(Text(name), f"{entry.bytes / 1e6:.1f}", entry.sha256)
    table.add_section()
    total = f"{manifest.total_bytes / 1e6:.1f}"
    table.add_row(counted(len(manifest.files), "file"), total, "")
    return table
