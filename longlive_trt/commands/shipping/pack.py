"""``longlive-trt pack``."""

from pathlib import Path

import click

from longlive_trt.commands._reporting import stage_reporter
from longlive_trt.engines.bundles.archive import SUFFIX, pack

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("bundle", type=_PATH)
@click.option("--out", type=_PATH, help=f"The archive.  [default: BUNDLE{SUFFIX}]")
def command(bundle: Path, out: Path | None) -> None:
    """Put a BUNDLE into one file.

    The same bundle always gives the same bytes.
    """
    folder = bundle.absolute()
    target = out or folder.with_name(folder.name + SUFFIX)
    with stage_reporter() as report:
        manifest, size = pack(bundle, target, report)
    click.echo(f"packed {target}: {len(manifest.files)} files, {size / 1e6:.1f} MB")
