"""How the bytes of an archive come about: the same ones for the same bundle, on every machine."""

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from longlive_trt.basics import Report, Tally
from longlive_trt.engines.bundles.bundle import MANIFEST_NAME, FileEntry, Manifest
from longlive_trt.errors import BundleError

SEAL_HEAD = b"\x50\x2a\x4d\x18" + (32).to_bytes(4, "little")
CHUNK_BYTES = 1 << 20

_LEVEL = 3  # Weights hardly shrink: higher levels cost minutes and gain nothing.
_NAME_LIMIT_BYTES = 100


def write_archive(
    file: BinaryIO, folder: Path, manifest: Manifest, data: bytes, report: Report
) -> int:
    """Check every file of a bundle on its way into the archive; how large that is."""
    sealing = _SealingWriter(file)
    tally = Tally(report, manifest.total_bytes)
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    with compressor.stream_writer(cast(BinaryIO, sealing), closefd=False) as stream:
        stream.write(_header(MANIFEST_NAME, len(data)) + data + padding(len(data)))
        for name in sorted(manifest.files):
            tally.begin(f"packing {name}")
            entry = manifest.files[name]
            stream.write(_header(name, entry.bytes))
            for chunk in _checked_chunks(folder / name, entry):
                stream.write(chunk)
                tally.add(len(chunk))
            stream.write(padding(entry.bytes))
        stream.write(bytes(2 * tarfile.BLOCKSIZE))
    return sealing.finish()


def _checked_chunks(path: Path, entry: FileEntry) -> Iterator[bytes]:
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{path}: missing; build or fetch the bundle again")
    digest, left = hashlib.sha256(), entry.bytes
    with path.open("rb") as file:
        while left and (chunk := file.read(min(CHUNK_BYTES, left))):
            digest.update(chunk)
            left -= len(chunk)
            yield chunk
        if left or file.read(1) or digest.hexdigest() != entry.sha256:
            raise BundleError(
                f"{path}: not the {entry.bytes} bytes with sha256 {entry.sha256} that the "
                f"manifest lists; build or fetch the bundle again"
            )


def _header(name: str, size: int) -> bytes:
    """The same bytes on every machine: no time, no owner."""
    if len(name.encode()) > _NAME_LIMIT_BYTES:
        raise BundleError(f"file name {name}: longer than {_NAME_LIMIT_BYTES} bytes; shorten it")
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


class _SealingWriter:
    """Passes bytes on and ends them with their sha256."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._send(data)

    def finish(self) -> int:
        self._send(SEAL_HEAD + self._digest.digest())
        return self._size

    def _send(self, data: bytes) -> int:
        self._size += len(data)
        return self._file.write(data)
