"""``longlive-trt inspect``."""

import json
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from longlive_trt.commands._reporting import folded
from longlive_trt.engines.bundles.archive import read_archive_manifest
from longlive_trt.engines.bundles.bundle import Manifest, read_manifest
from longlive_trt.printing import console


@click.command()
@click.argument("bundle", metavar="BUNDLE|ARCHIVE", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def command(bundle: Path, as_json: bool) -> None:
    """Show what a bundle or an archive holds, as its manifest says.

    The files themselves are not read: `verify` does that.
    """
    manifest = read_archive_manifest(bundle) if bundle.is_file() else read_manifest(bundle)
    if as_json:
        click.echo(json.dumps(_values(bundle, manifest), indent=2))
    else:
        _show(bundle, manifest)


def _values(bundle: Path, manifest: Manifest) -> dict[str, Any]:
    total = sum(entry.bytes for entry in manifest.files.values())
    return {"path": str(bundle), "total_bytes": total, **json.loads(manifest.to_json())}


def _show(bundle: Path, manifest: Manifest) -> None:
    shown = console(file_width=120)
    shown.print(_summary(bundle, manifest))
    shown.print(_graphs(manifest))
    shown.print(_files(manifest))


def _summary(bundle: Path, manifest: Manifest) -> Table:
    engine, latent = manifest.engine, manifest.config.latent
    table = Table(title=str(bundle), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "model": manifest.config.name,
        "latent frame": f"{latent.width} x {latent.height}",
        "engine": f"{engine.kind} {engine.version} for {engine.target}",
        "precision": manifest.precision,
        "key": manifest.key,
        **{f"weights of {name}": digest for name, digest in manifest.checkpoints.items()},
        **{f"plugin {name}": digest for name, digest in manifest.plugins.items()},
        "built by": manifest.command or "not recorded",
        "build time": f"{manifest.duration_s:.1f} s",
    }
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    return table


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
    total = sum(entry.bytes for entry in manifest.files.values())
    table.add_row(f"{len(manifest.files)} files", f"{total / 1e6:.1f}", "")
    return table
