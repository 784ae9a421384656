"""``longlive-trt unpack``."""

from pathlib import Path

import click

from longlive_trt.commands._reporting import stage_reporter
from longlive_trt.engines.bundles.archive import unpack

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("archive", type=_PATH)
@click.option("--out", required=True, type=_PATH, help="The bundle.")
def command(archive: Path, out: Path) -> None:
    """Take a bundle out of the ARCHIVE that `pack` made.

    Every file is checked against the manifest before the bundle appears.
    """
    with stage_reporter() as report:
        manifest = unpack(archive, out, report)
    size = sum(entry.bytes for entry in manifest.files.values())
    click.echo(f"unpacked {out}: {len(manifest.files)} files, {size / 1e6:.1f} MB, all checked")
