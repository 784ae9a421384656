"""Bundles to and from stores: resumable, checked byte by byte, visible only when whole.

A pull collects its files in a hidden folder beside the bundle-to-be, where large ones that another
bundle of that place has are a second name and not fetched. That folder outlives a killed
run, and the next one goes on from what is in it, however much that is.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from longlive_trt.basics import Report, Tally, unheard
from longlive_trt.console.wording import counted
from longlive_trt.engines.bundles.archive import (
    check_seal,
    read_archive_manifest,
    unpack,
)
from longlive_trt.engines.bundles.bundle import (
    ARCHIVE_SUFFIX,
    MANIFEST_LIMIT_BYTES,
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    check_files,
    parse_manifest,
    read_manifest,
)
from longlive_trt.engines.bundles.catalog import (
    INDEX_NAME,
    CatalogEntry,
    add_entry,
    entry_of,
    read_catalog,
    require_catalog,
    require_sound,
)
from longlive_trt.engines.bundles.sharing import Donor, donors_beside, take_file
from longlive_trt.engines.bundles.stores import Store, UnreachableError, is_transient, reason
from longlive_trt.errors import BundleError, UsageError
from longlive_trt.files import (
    BUNDLE,
    Claim,
    blamed_on,
    discard_abandoned,
    real_path,
    replace_directory,
    require_replaceable,
    require_space,
    sha256_file,
)

logger = logging.getLogger(__name__)

Choose = Callable[[list[CatalogEntry]], CatalogEntry]


@dataclass(frozen=True)
class Pulled:
    manifest: Manifest
    fetched_bytes: int
    kept_bytes: int
    """What an earlier, interrupted pull had fetched already."""
    shared_bytes: int = 0
    """What other bundles beside this one had: one copy with a name in each of them."""
    was_current: bool = False


def push(source: Path, url: str, report: Report = unheard) -> tuple[CatalogEntry, str]:
    """Upload a bundle or an archive and list it in the catalog; its entry and address."""
    store = Store(url)
    store.require_writable()
    require_catalog(store)
    push_it = _push_archive if source.is_file() else _push_folder
    entry = push_it(source, store, report)
    add_entry(store, entry)
    return entry, f"{store.url}/{entry.path}"


def _push_archive(archive: Path, store: Store, report: Report) -> CatalogEntry:
    manifest, sha256 = read_archive_manifest(archive), check_seal(archive, report)
    size = archive.stat().st_size
    entry = entry_of(manifest, sha256, is_archive=True, size=size)
    require_sound(entry)
    _upload(store, archive, entry.path, size, Tally(report, size))
    return entry


def _push_folder(folder: Path, store: Store, report: Report) -> CatalogEntry:
    manifest = read_manifest(folder)
    check_files(folder, manifest, report)
    size = manifest.total_bytes
    sha256 = sha256_file(folder / MANIFEST_NAME)
    entry = entry_of(manifest, sha256, is_archive=False, size=size)
    require_sound(entry)
    tally = Tally(report, size)
    # The manifest last: where there is one, the bundle is complete.
    for name, item in manifest.files.items():
        _upload(store, folder / name, f"{entry.path}/{name}", item.bytes, tally)
    path = folder / MANIFEST_NAME
    _upload(store, path, f"{entry.path}/{MANIFEST_NAME}", path.stat().st_size, tally)
    return entry


def _upload(store: Store, path: Path, name: str, size: int, tally: Tally) -> None:
    tally.begin(f"pushing {path.name}")
    # The address holds the manifest's hash and files appear whole: this is the one to be sent.
    if store.size(name) == size:
        logger.info("%s/%s: there already", store.url, name)
        tally.add(size)
        return
    store.put(path, name, tally.add)


def pull(
    url: str,
    out: Path,
    choose: Choose | None = None,
    report: Report = unheard,
) -> Pulled:
    """Make the bundle of an address: a bundle's, an archive's, or a catalog's to choose from."""
    require_replaceable(out, BUNDLE)
    if choose is None and url.endswith(ARCHIVE_SUFFIX):
        parent, _, name = url.rpartition("/")
        return _pull_archive(Store(parent or "."), name, out, None, report)
    store = Store(url)
    if choose is None and (data := store.read(MANIFEST_NAME, MANIFEST_LIMIT_BYTES)) is not None:
        return _pull_folder(store, data, out, report)
    entry = _entry_from_catalog(store, choose)
    if entry.is_archive:
        return _pull_archive(store, entry.path, out, entry, report)
    inside = store.inside(entry.path)
    data = inside.read(MANIFEST_NAME, MANIFEST_LIMIT_BYTES)
    if data is None or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise BundleError(
            f"{inside.url}: {'missing' if data is None else 'not the bundle'} that "
            f"{INDEX_NAME} lists; push it again"
        )
    return _pull_folder(inside, data, out, report)


def _entry_from_catalog(store: Store, choose: Choose | None) -> CatalogEntry:
    entries = read_catalog(store)
    if entries is None:
        if choose is not None:
            raise UsageError(
                f"{store.url}: no catalog ({INDEX_NAME}) there to choose from; leave out --auto "
                f"if it is the address of a bundle"
            )
        raise UsageError(
            f"{store.url}: neither a bundle ({MANIFEST_NAME}) nor a catalog ({INDEX_NAME}) is "
            f"there; check the address"
        )
    if choose is not None:
        return choose(entries)
    if len(entries) == 1:
        return entries[0]
    listed = "".join(f"\n  {store.url}/{entry.path}  ({entry})" for entry in entries)
    raise UsageError(
        f"{store.url}: a catalog of {counted(len(entries), 'bundle')}; add --auto, or give one "
        f"of{listed}"
    )


def _pull_folder(store: Store, data: bytes, out: Path, report: Report) -> Pulled:
    manifest = parse_manifest(data, f"{store.url}/{MANIFEST_NAME}")
    if _is_current(out, data, manifest, report):
        shutil.rmtree(_staging_path(out), ignore_errors=True)
        discard_abandoned(real_path(out).parent)
        return Pulled(manifest, 0, 0, was_current=True)
    total = manifest.total_bytes
    with _staging(out) as staging:
        whole, parts = staging / "bundle", staging / "parts"
        parts.mkdir(exist_ok=True)
        _discard_unlisted(whole, manifest)
        shared = _take_shared(manifest, whole, donors_beside(out))
        require_space(out, total - _stored_bytes(staging))
        fetched, tally = 0, Tally(report, total)
        for name, entry in manifest.files.items():
            tally.begin(f"pulling {name}")
            fetched += _fetch_file(store, name, entry, whole / name, parts / entry.sha256, tally)
        (whole / MANIFEST_NAME).write_bytes(data)
        replace_directory(out, whole, BUNDLE)
    return Pulled(manifest, fetched, max(0, total - fetched - shared), shared)


def _pull_archive(
    store: Store, name: str, out: Path, entry: CatalogEntry | None, report: Report
) -> Pulled:
    size = entry.bytes if entry else store.size(name)
    if size is None:
        raise UsageError(f"{store.url}/{name}: no such archive, or its size is not told")
    with _staging(out) as staging:
        address = f"{store.url}/{name} {size}"
        identity = entry.sha256 if entry else hashlib.sha256(address.encode()).hexdigest()
        archive = staging / f"{identity}{ARCHIVE_SUFFIX}"
        require_space(out, size - _stored_bytes(staging))
        tally = Tally(report, size)
        tally.begin(f"pulling {name}")
        fetched = _fetch(store, name, size, archive, tally)
        try:
            found = check_seal(archive, report)
            if entry and found != entry.sha256:
                raise BundleError(f"{store.url}/{name}: not the archive that {INDEX_NAME} lists")
            manifest = unpack(archive, out, report)
        except BundleError:
            # Going on from these bytes would never end well.
            archive.unlink()
            raise
    return Pulled(manifest, fetched, size - fetched)


def _is_current(out: Path, data: bytes, manifest: Manifest, report: Report) -> bool:
    path = out / MANIFEST_NAME
    if not path.is_file() or path.read_bytes() != data:
        return False
    try:
        check_files(out, manifest, report)
    except BundleError as error:
        logger.warning("%s; fetching it again", error)
        return False
    return True


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """The folder of this pull, ours alone; it goes when the pull ends well."""
    staging = _staging_path(out)
    staging.parent.mkdir(parents=True, exist_ok=True)
    try:
        claim = Claim(staging)
    except UsageError:
        raise UsageError(f"{out}: another pull to this place is running; wait for it") from None
    try:
        staging.mkdir(exist_ok=True)
        with blamed_on(out, staging):
            yield staging
        shutil.rmtree(staging)
    except BaseException as error:
        if not _can_go_on(error, staging):
            shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        claim.release()


def _can_go_on(error: BaseException, staging: Path) -> bool:
    """Whether the same pull may end well later, and has something to go on from."""
    is_refusal = isinstance(error, BundleError | UsageError)
    is_refusal = is_refusal and not isinstance(error, UnreachableError)
    return not is_refusal and _stored_bytes(staging) > 0


def _staging_path(out: Path) -> Path:
    real = real_path(out)
    return real.with_name(f".{real.name}.pull")


def _stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _discard_unlisted(whole: Path, manifest: Manifest) -> None:
    """What an earlier pull of another bundle left has no place in this one."""
    whole.mkdir(exist_ok=True)
    for path in [path for path in whole.rglob("*") if not path.is_dir() or path.is_symlink()]:
        if path.relative_to(whole).as_posix() not in manifest.files:
            path.unlink()


def _take_shared(manifest: Manifest, whole: Path, donors: Sequence[Donor]) -> int:
    """Give large files that bundles beside this one have a second name; how many bytes."""
    shared = 0
    for name, entry in manifest.files.items():
        target = whole / name
        if _is_sound(target, entry):
            continue
        # It may be a second name itself, of a file that was altered since.
        target.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        if take_file(donors, entry, target):
            shared += entry.bytes
    return shared


def _fetch_file(
    store: Store, name: str, entry: FileEntry, target: Path, part: Path, tally: Tally
) -> int:
    """Complete one file, and say how many bytes it took."""
    if _is_sound(target, entry):
        tally.add(entry.bytes)
        return 0
    fetched = _fetch(store, name, entry.bytes, part, tally)
    if not _is_sound(part, entry) and fetched < entry.bytes:
        # The bytes of an earlier run may be at fault: once more, from the start.
        part.unlink()
        fetched += _fetch(store, name, entry.bytes, part, Tally(unheard, 0))
    if not _is_sound(part, entry):
        found = sha256_file(part)
        part.unlink()
        raise BundleError(
            f"{store.url}/{name}: altered: sha256 {found}, expected {entry.sha256}; push the "
            f"bundle again"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)
    return fetched


def _is_sound(path: Path, entry: FileEntry) -> bool:
    return (
        path.is_file() and path.stat().st_size == entry.bytes and sha256_file(path) == entry.sha256
    )


def _fetch(store: Store, name: str, size: int, part: Path, tally: Tally) -> int:
    """Append to ``part`` until it has its size. Attempts count only while nothing comes."""
    part.touch()
    if part.stat().st_size > size:
        os.truncate(part, 0)
    before = part.stat().st_size
    tally.add(before)
    while (start := part.stat().st_size) < size:
        try:
            store.patiently(name, lambda: _append(store, name, size, part, tally))
        except FileNotFoundError:
            raise BundleError(
                f"{store.url}/{name}: missing from the bundle there; push it again"
            ) from None
        if part.stat().st_size == start:
            raise BundleError(
                f"{store.url}/{name}: {start} bytes, expected {size}; push the bundle again"
            )
    return size - before


def _append(store: Store, name: str, size: int, part: Path, tally: Tally) -> None:
    """One connection's worth. Progress before an error is kept, and is no failed attempt."""
    start = part.stat().st_size
    with part.open("ab") as file:
        try:
            for chunk in store.chunks(name, start):
                tally.add(file.write(chunk[: size - file.tell()]))
                if file.tell() == size:
                    return
        except Exception as error:
            if file.tell() == start or not is_transient(error):
                raise
            logger.warning("%s/%s: %s; going on from there", store.url, name, reason(error))
