"""``longlive-trt push``."""

from pathlib import Path

import click

from longlive_trt.commands._voice import Voice, examples, speaking
from longlive_trt.console.wording import byte_size
from longlive_trt.engines.bundles.transfer import push
from longlive_trt.errors import UsageError

_EXAMPLES = examples(
    "longlive-trt push bundle/ /mnt/models", "longlive-trt push bundle/ s3://bucket/longlive"
)


@click.command(epilog=_EXAMPLES)
@click.argument("source", metavar="BUNDLE|ARCHIVE", type=click.Path(path_type=Path))
@click.argument("url")
@speaking
def command(source: Path, url: str, voice: Voice) -> None:
    """Store a bundle or an archive under URL, and list it in the catalog there.

    URL is a folder, or an address such as s3://bucket/bundles, gs://bucket/bundles or
    hf://user/repository. What is there already is not sent again.
    """
    if not source.exists():
        raise UsageError(f"{source}: no such bundle or archive; give what `build` or `pack` made")
    with voice.reporting() as report:
        entry, address = push(source, url, report.bytes)
    voice.result(
        f"pushed {address}: {entry}, {byte_size(entry.bytes)}\n"
        f"fetch it with: longlive-trt pull {address} --out bundle/",
        {"address": address, "bytes": entry.bytes, "key": entry.key},
    )
