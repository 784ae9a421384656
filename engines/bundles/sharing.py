"""Files that bundles on one disk have in common: one copy with a name in each of them.

A hard link is a second name of a file. Which bundle goes first does not matter: the file lives as
long as one of its names does. Nothing here changes another bundle, and what a manifest says of a
file is believed only after its bytes were read.
"""

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from longlive_trt.contract import TRANSFORMER
from longlive_trt.engines.bundles.bundle import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    read_manifest,
)
from longlive_trt.engines.matrices import MATRICES_NAME
from longlive_trt.errors import BundleError, UsageError
from longlive_trt.files import real_path, sha256_file

logger = logging.getLogger(__name__)

_WORTH_BYTES = 1 << 20
"""Smaller files are not worth a second name."""
_ENDING = ".shared"


@dataclass(frozen=True)
class Donor:
    """Another bundle, whose files may get a second name."""

    folder: Path
    manifest: Manifest

    def files_of(self, owners: Iterable[str]) -> dict[str, FileEntry]:
        """All that are called like a graph or a component, whatever their ending."""
        wanted = set(owners)
        files = self.manifest.files.items()
        return {name: entry for name, entry in files if name.partition(".")[0] in wanted}


def donors_beside(out: Path, others: Iterable[Path] = ()) -> list[Donor]:
    """The bundles that are asked for, the one that ``out`` is now, and those in the same folder."""
    real = real_path(out)
    # Hidden ones are not finished.
    siblings = sorted(real.parent.glob("[!.]*")) if real.parent.is_dir() else []
    donors = (_donor(folder) for folder in dict.fromkeys([*others, real, *siblings]))
    return [donor for donor in donors if donor is not None]


def take_component(donor: Donor, owners: Iterable[str], folder: Path) -> int:
    """Give all of a component's files a second name in ``folder``; none, if any is not sound.

    How many bytes that is.
    """
    files = donor.files_of(owners)
    for name, entry in files.items():
        if not _take(donor.folder / name, folder / name, entry):
            for taken in files:
                (folder / taken).unlink(missing_ok=True)
            logger.warning("%s: not as its manifest says, so nothing of it is used", donor.folder)
            return 0
    return sum(entry.bytes for entry in files.values())


def take_file(donors: Iterable[Donor], entry: FileEntry, target: Path) -> bool:
    """Give a large file of this content, if another bundle has it, a second name."""
    if entry.bytes < _WORTH_BYTES:
        return False
    for donor in donors:
        for name, other in donor.manifest.files.items():
            if other == entry and _take(donor.folder / name, target, entry):
                return True
    return False


def share_files(folder: Path, files: Mapping[str, FileEntry], donors: Sequence[Donor]) -> None:
    """Where another bundle has a large file of the same content, let it be the same file."""
    donors = [donor for donor in donors if donor.folder != folder]
    for name, entry in files.items():
        aside = folder / f"{name}{_ENDING}"
        if take_file(donors, entry, aside):
            aside.replace(folder / name)


def _donor(folder: Path) -> Donor | None:
    """A bundle of this user's own: another's could change under us."""
    path = folder / MANIFEST_NAME
    try:
        is_own = path.is_file() and not path.is_symlink() and path.stat().st_uid == os.geteuid()
        return Donor(folder, read_manifest(folder)) if is_own else None
    except (BundleError, UsageError, OSError):
        return None


def _take(source: Path, target: Path, entry: FileEntry) -> bool:
    """A second name, or a copy where the disk has none, of a file that is what it should be."""
    if not _link(source, target):
        with suppress(OSError):
            shutil.copyfile(source, target)
    if target.is_file() and sha256_file(target) == entry.sha256:
        return True
    # It may be a name of the donor's own file, which the next donor's must not be copied into.
    target.unlink(missing_ok=True)
    return False


def _link(source: Path, target: Path) -> bool:
    try:
        if source.is_symlink() or source.stat().st_uid != os.geteuid():
            return False
        os.link(source, target)
    except OSError:
        # Another disk, one without links, too many names, or a file that is gone.
        return False
    return True


def owners(component: str, graphs: Iterable[str]) -> Iterator[str]:
    """What the files of a component are named after."""
    yield component
    yield from graphs
    if component == TRANSFORMER:
        yield MATRICES_NAME.partition(".")[0]
