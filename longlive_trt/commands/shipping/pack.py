"""``longlive-trt pack``."""

import sys
from pathlib import Path

import click

from longlive_trt.commands._voice import Voice, examples, speaking
from longlive_trt.console.streams import is_stdout, require_piped_stdout
from longlive_trt.console.wording import byte_size, counted
from longlive_trt.engines.bundles.archive import pack, pack_to
from longlive_trt.engines.bundles.bundle import ARCHIVE_SUFFIX

_PATH = click.Path(path_type=Path)
_EXAMPLES = examples(
    "longlive-trt pack bundle/", "longlive-trt pack bundle/ --out - | ssh host 'cat > b.tar.zst'"
)


@click.command(epilog=_EXAMPLES)
@click.argument("bundle", type=_PATH)
@click.option(
    "--out", type=_PATH, help=f"The archive, or - for stdout.  [default: BUNDLE{ARCHIVE_SUFFIX}]"
)
@speaking
def command(bundle: Path, out: Path | None, voice: Voice) -> None:
    """Put a BUNDLE into one file.

    The same bundle always gives the same bytes.
    """
    folder = bundle.absolute()
    target = out or folder.with_name(folder.name + ARCHIVE_SUFFIX)
    if is_stdout(target):
        require_piped_stdout("an archive goes", f"give --out FILE{ARCHIVE_SUFFIX}")
        with voice.reporting() as report:
            pack_to(sys.stdout.buffer, bundle, report.bytes)
        return
    with voice.reporting() as report:
        manifest, size = pack(bundle, target, report.bytes)
    files = len(manifest.files)
    voice.result(
        f"packed {target}: {counted(files, 'file')}, {byte_size(size)}",
        {"archive": target, "files": files, "bytes": size, "key": manifest.key},
    )
