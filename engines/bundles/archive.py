"""A bundle as one file: a tar inside zstd, the manifest first, sealed by its own sha256.

The seal is a skippable zstd frame at the end, so `tar --zstd -xf` reads the file as well. Our own
reader takes nothing from the archive on trust: the manifest says which files there are and how
large they may be, and only plain files with those names and sizes are accepted.
"""

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import zstandard

from longlive_trt.basics import Report, Tally, unheard
from longlive_trt.console.printing import quoted
from longlive_trt.engines.bundles.archive_writing import (
    CHUNK_BYTES,
    SEAL_HEAD,
    padding,
    write_archive,
)
from longlive_trt.engines.bundles.bundle import (
    ARCHIVE_SUFFIX,
    MANIFEST_LIMIT_BYTES,
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    no_bundle,
    parse_manifest,
)
from longlive_trt.engines.bundles.sharing import donors_beside, share_files
from longlive_trt.errors import BundleError, LongLiveError, UsageError
from longlive_trt.files import (
    BUNDLE,
    is_inside,
    publish_directory,
    publish_file,
    require_ordinary,
    require_place,
    require_replaceable,
    require_space,
    uncounted,
)
from longlive_trt.reading.failures import refusing
from longlive_trt.reading.files import open_file, read_bytes

_WINDOW_LIMIT_BYTES = 1 << 27
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SEAL_BYTES = len(SEAL_HEAD) + 32
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.DIRTYPE: "a folder",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}
_LOOKS = (
    (b"\x1f\x8b", "a gzip file"),
    (b"PK\x03\x04", "a zip file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"BZh", "a bzip2 file"),
    (b"7z\xbc\xaf", "a 7-Zip file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"<", "a web page"),
    (b"{", "JSON"),
)


class _Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...


Count = Callable[[int], None]


def pack(folder: Path, out: Path, report: Report = unheard) -> tuple[Manifest, int]:
    """Write the archive of a bundle, checking every file on the way; its manifest and size."""
    manifest, data = _manifest_of(folder)
    _require_writable(out, folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    with publish_file(out) as partial, partial.open("xb") as file:
        size = write_archive(file, folder, manifest, data, report)
    return manifest, size


def pack_to(stream: BinaryIO, folder: Path, report: Report = unheard) -> tuple[Manifest, int]:
    """The same bytes to a pipe. A reader that needs them whole looks for the seal at their end."""
    manifest, data = _manifest_of(folder)
    size = write_archive(stream, folder, manifest, data, report)
    stream.flush()
    return manifest, size


def unpack(archive: Path, out: Path, report: Report = unheard) -> Manifest:
    """Make the bundle of an archive; it appears when every byte of it has been checked."""
    require_replaceable(out, BUNDLE)
    with _opened(archive) as contents:
        manifest, data = contents.manifest()
        require_space(out, manifest.total_bytes)
        tally = Tally(report, manifest.total_bytes)
        with publish_directory(out, BUNDLE) as folder:
            (folder / MANIFEST_NAME).write_bytes(data)
            for name in contents.names(manifest):
                tally.begin(f"unpacking {name}")
                contents.extract(folder / name, manifest.files[name], tally.add)
            contents.finish(manifest)
            share_files(folder, manifest.files, donors_beside(out))
    return manifest


def read_archive_manifest(archive: Path) -> Manifest:
    """The manifest alone, from the start of the file."""
    with _opened(archive) as contents:
        return contents.manifest()[0]


def check_seal(archive: Path, report: Report = unheard) -> str:
    """Refuse an archive with an altered byte; its sha256 as a file."""
    with _open_archive(archive) as file:
        sealed = _SealedReader(archive, file)
        tally = Tally(report, archive.stat().st_size)
        tally.begin(f"checking {archive.name}")
        sealed.finish(tally.add)
        tally.add(_SEAL_BYTES)
        sealed.digest.update(sealed.seal)
        return sealed.digest.hexdigest()


def _manifest_of(folder: Path) -> tuple[Manifest, bytes]:
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise UsageError(f"{folder}: not a bundle: {no_bundle(folder)}")
    with refusing(BundleError, path, "build or fetch the bundle again"):
        data = read_bytes(path, MANIFEST_LIMIT_BYTES)
    return parse_manifest(data, str(path)), data


def _require_writable(out: Path, folder: Path) -> None:
    """An older archive of a bundle may be replaced; anything else is somebody's."""
    if out.is_dir():
        raise UsageError(f"{out}: a folder is in the way; give --out FILE{ARCHIVE_SUFFIX}")
    if is_inside(out, folder):
        raise UsageError(f"{out}: inside the bundle itself; give --out a place outside it")
    require_place(out)
    require_ordinary(out)
    if out.is_file() and not _is_archive(out):
        raise UsageError(
            f"{out}: a file that is no archive of a bundle is in the way; give another --out"
        )


def _is_archive(path: Path) -> bool:
    try:
        read_archive_manifest(path)
    except (LongLiveError, OSError):
        return False
    return True


class _SealedReader:
    """The bytes before the seal."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self.digest = hashlib.sha256()
        self._left = max(0, path.stat().st_size - _SEAL_BYTES)
        file.seek(self._left)
        self.seal = file.read(_SEAL_BYTES)
        file.seek(0)
        if not self.seal.startswith(SEAL_HEAD) or len(self.seal) != _SEAL_BYTES:
            raise BundleError(f"{path}: {_unsealed(path)}")

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        self.digest.update(data)
        return data

    def finish(self, count: Count = uncounted) -> None:
        while data := self.read(CHUNK_BYTES):
            count(len(data))
        if self._left or self.digest.digest() != self.seal[len(SEAL_HEAD) :]:
            raise BundleError(
                f"{self._path}: altered: its bytes do not match its seal; fetch the archive again"
            )


def _open_archive(path: Path) -> BinaryIO:
    with refusing(BundleError, path, "give a file that `longlive-trt pack` made"):
        return open_file(path)


@contextmanager
def _opened(path: Path) -> Iterator["_Contents"]:
    if path.is_dir():
        raise UsageError(f"{path}: a folder; give a file that `longlive-trt pack` made")
    with _open_archive(path) as file:
        sealed = _SealedReader(path, file)
        if not _head(path).startswith(_ZSTD_MAGIC):
            raise BundleError(f"{path}: altered at its start; fetch the archive again")
        zstd = zstandard.ZstdDecompressor(max_window_size=_WINDOW_LIMIT_BYTES)
        with zstd.stream_reader(cast(BinaryIO, sealed), closefd=False) as stream:
            try:
                yield _Contents(path, sealed, stream)
            except zstandard.ZstdError as error:
                raise BundleError(f"{path}: corrupt ({error}); fetch the archive again") from None


class _Contents:
    """The entries of an archive, in their order; each is read once."""

    def __init__(self, path: Path, sealed: _SealedReader, stream: _Reader) -> None:
        self._path, self._sealed, self._stream = path, sealed, stream
        self._seen: set[str] = set()
        self._next_bytes = 0

    def manifest(self) -> tuple[Manifest, bytes]:
        if self._next_header() != MANIFEST_NAME:
            raise self._refused(f"does not begin with {MANIFEST_NAME}, so it is no bundle")
        if self._next_bytes > MANIFEST_LIMIT_BYTES:
            raise self._refused(f"the manifest claims {self._next_bytes} bytes")
        data = b"".join(self._chunks(self._next_bytes))
        return parse_manifest(data, f"{self._path}, {MANIFEST_NAME}"), data

    def names(self, manifest: Manifest) -> Iterator[str]:
        """Every entry's name, once it is known to be one that the manifest lists."""
        while (name := self._next_header()) is not None:
            self._require_listed(name, manifest)
            yield name

    def extract(self, target: Path, entry: FileEntry, count: Count = uncounted) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with target.open("xb") as file:
            for chunk in self._chunks(entry.bytes):
                digest.update(chunk)
                file.write(chunk)
                count(len(chunk))
        if digest.hexdigest() != entry.sha256:
            raise self._refused(
                f"{target.name} is altered: sha256 {digest.hexdigest()}, expected {entry.sha256}"
            )

    def finish(self, manifest: Manifest) -> None:
        missing = manifest.files.keys() - self._seen
        if missing:
            raise self._refused(f"{min(missing)} is missing")
        if self._stream.read(1):
            raise self._refused("there is more data after its end")
        self._sealed.finish()

    def _next_header(self) -> str | None:
        block = self._exactly(tarfile.BLOCKSIZE)
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            # Zeros: twice at the end, and nowhere else.
            if any(block) or any(self._exactly(tarfile.BLOCKSIZE)):
                raise self._refused("an entry has a broken header") from None
            return None
        if not info.isreg():
            kind = _KINDS.get(info.type, f"of tar type {info.type!r}")
            raise self._refused(
                f"entry {quoted(info.name)} is {kind}; only plain files are allowed"
            )
        if info.size < 0:
            raise self._refused(f"entry {quoted(info.name)} claims {info.size} bytes")
        self._next_bytes = info.size
        return info.name

    def _require_listed(self, name: str, manifest: Manifest) -> None:
        if name.startswith("/") or ".." in name.split("/"):
            raise self._refused(f"entry {quoted(name)} leads outside the bundle")
        if name in self._seen or name == MANIFEST_NAME:
            raise self._refused(f"entry {quoted(name)} comes twice")
        if name not in manifest.files:
            raise self._refused(f"entry {quoted(name)} is not in the manifest")
        if self._next_bytes != manifest.files[name].bytes:
            raise self._refused(
                f"entry {quoted(name)} claims {self._next_bytes} bytes, and the manifest says "
                f"{manifest.files[name].bytes}"
            )
        self._seen.add(name)

    def _chunks(self, size: int) -> Iterator[bytes]:
        left = size
        while left:
            chunk = self._exactly(min(CHUNK_BYTES, left))
            left -= len(chunk)
            yield chunk
        self._exactly(len(padding(size)))

    def _exactly(self, size: int) -> bytes:
        pieces, left = [], size
        while left:
            piece = self._stream.read(left)
            if not piece:
                raise self._refused("the contents end too early")
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def _refused(self, reason: str) -> BundleError:
        return BundleError(f"{self._path}: {reason}; fetch the archive again, or another one")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(tarfile.BLOCKSIZE)


def _unsealed(path: Path) -> str:
    head = _head(path)
    if head.startswith(_ZSTD_MAGIC):
        return (
            "cut short, or not made by `longlive-trt pack` (it has no seal at its end); "
            "fetch it again, or pack the bundle again"
        )
    return (
        f"not a bundle's archive but {looks_like(head)}; give a file that `longlive-trt pack` made"
    )


def looks_like(head: bytes) -> str:
    """What a file is, from its first 512 bytes."""
    if not head:
        return "an empty file"
    if head[257:262] == b"ustar":
        return "a tar file that is not compressed"
    text = head.lstrip()
    return next(
        (name for magic, name in _LOOKS if text.startswith(magic)), "a file of another kind"
    )
