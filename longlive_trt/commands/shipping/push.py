"""``longlive-trt push``."""

from pathlib import Path

import click

from longlive_trt.commands._reporting import stage_reporter
from longlive_trt.engines.bundles.transfer import push
from longlive_trt.errors import UsageError


@click.command()
@click.argument("source", metavar="BUNDLE|ARCHIVE", type=click.Path(path_type=Path))
@click.argument("url")
def command(source: Path, url: str) -> None:
    """Store a bundle or an archive under URL, and list it in the catalog there.

    URL is a folder, or an address such as s3://bucket/bundles, gs://bucket/bundles or
    hf://user/repository. What is there already is not sent again.
    """
    if not source.exists():
        raise UsageError(f"{source}: no such bundle or archive; give what `build` or `pack` made")
    with stage_reporter() as report:
        entry, address = push(source, url, report)
    click.echo(f"pushed {address}: {entry}, {entry.bytes / 1e6:.1f} MB")
    click.echo(f"fetch it with: longlive-trt pull {address} --out BUNDLE")
