"""``longlive-trt unpack``."""

from pathlib import Path

import click

from longlive_trt.commands._voice import Voice, examples, speaking
from longlive_trt.console.wording import byte_size, counted
from longlive_trt.engines.bundles.archive import unpack

_PATH = click.Path(path_type=Path)


@click.command(epilog=examples("longlive-trt unpack bundle.tar.zst --out bundle/"))
@click.argument("archive", type=_PATH)
@click.option("--out", required=True, type=_PATH, help="The bundle.")
@speaking
def command(archive: Path, out: Path, voice: Voice) -> None:
    """Take a bundle out of the ARCHIVE that `pack` made.

    Every file is checked against the manifest before the bundle appears.
    """
    with voice.reporting() as report:
        manifest = unpack(archive, out, report.bytes)
    files, size = len(manifest.files), manifest.total_bytes
    voice.result(
        f"unpacked {out}: {counted(files, 'file')}, {byte_size(size)}, all checked",
        {"bundle": out, "files": files, "bytes": size, "key": manifest.key},
    )
