"""Places that hold bundles: a folder on anything that fsspec reaches."""

import errno
import io
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import fsspec  # type: ignore[import-untyped]
from fsspec.callbacks import Callback  # type: ignore[import-untyped]

from longlive_trt.console.printing import cut, plain
from longlive_trt.errors import BundleError, LongLiveError, OutputError, UsageError
from longlive_trt.extras import install_command
from longlive_trt.files import (
    BUNDLE,
    Ownership,
    blamed_on,
    publish_file,
    real_path,
    require_place,
    uncounted,
)
from longlive_trt.reading.failures import refusing
from longlive_trt.reading.files import file_size

logger = logging.getLogger(__name__)

RETRY_DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0)

_CHUNK_BYTES = 4 << 20
_STALLED_AFTER_S = 60
_READ_ONLY = {"http", "https"}
_FLAT = {"s3", "s3a", "gs", "gcs", "abfs", "az", "hf"}
_RETRIED_STATUS = {408, 425, 429}
_BEYOND_THE_END = 416
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
# Their errors have no common base; whatever is none of their business is not retried.
_NETWORK_LIBRARIES = {"aiohttp", "aiobotocore", "botocore", "gcsfs", "httpx", "requests", "urllib3"}

T = TypeVar("T")


class UnreachableError(BundleError):
    """It may work another time: what was fetched so far is worth keeping."""


class Store:
    """Files by name under one URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._protocol = _protocol(url)
        self._system, self._root = _connect(self.url, self._protocol)

    @property
    def is_local(self) -> bool:
        return self._protocol == "file"

    def inside(self, name: str) -> "Store":
        return Store(f"{self.url}/{name}")

    def require_writable(self) -> None:
        if self.is_local:
            self._require_store()
        if self._protocol in _READ_ONLY:
            raise UsageError(
                f"{self.url}: nothing can be pushed over HTTP; push to a folder, s3://, gs:// or "
                f"hf://, and pull from there"
            )

    def _require_store(self) -> None:
        """A folder that is a bundle, or lies in one, takes no other files."""
        folder = Path(self._root)
        if BUNDLE.listing(folder) is not None:
            raise UsageError(f"{self.url}: a bundle itself; push to a folder that holds bundles")
        require_place(self.url if "://" not in self.url else folder)

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """A small file whole, or None if there is none."""

        def attempt() -> bytes:
            data = b""
            for chunk in self.chunks(name):
                data += chunk
                if len(data) > limit_bytes:
                    raise BundleError(f"{self.url}/{name}: larger than {limit_bytes} bytes")
            return data

        try:
            return self.patiently(name, attempt)
        except FileNotFoundError:
            return None

    def chunks(self, name: str, start: int = 0) -> Iterator[bytes]:
        """A file's bytes from an offset on. Whoever iterates deals with errors of the network."""
        with closing(self._open(name, start)) as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

    def size(self, name: str) -> int | None:
        """None where there is no such file, or nobody knows how large it is."""
        self._system.invalidate_cache()
        try:
            found = self.patiently(name, lambda: self._system.info(self._path(name)))
        except FileNotFoundError:
            return None
        return found["size"] if found["type"] == "file" else None

    def written_s(self, name: str) -> float | None:
        """When a file was written, in seconds since 1970; None where there is none."""
        self._system.invalidate_cache()
        try:
            written: datetime = self.patiently(
                name, lambda: self._system.modified(self._path(name))
            )
        except FileNotFoundError:
            return None
        return written.replace(tzinfo=written.tzinfo or UTC).timestamp()

    def names(self, folder: str) -> list[str]:
        """The files in a folder; none where the store cannot list."""
        if self._protocol in _READ_ONLY:
            return []
        self._system.invalidate_cache()
        try:
            found = self.patiently(folder, lambda: self._system.ls(self._path(folder), detail=True))
        except FileNotFoundError:
            return []
        return sorted(Path(item["name"]).name for item in found if item["type"] == "file")

    def put(self, path: Path, name: str, count: Callable[[int], None] = uncounted) -> None:
        """Upload a file; it appears whole or not at all. ``count`` hears of every piece."""
        if self.is_local:
            with self._publishing(name) as partial:
                _copy(path, partial, count)
            return
        target, heard = self._path(name), _Heard(count, path.stat().st_size)
        self._send(name, lambda: self._system.put_file(str(path), target, callback=heard))
        heard.finish()

    def write(self, name: str, data: bytes) -> None:
        if self.is_local:
            with self._publishing(name) as partial:
                partial.write_bytes(data)
        else:
            self._send(name, lambda: self._system.pipe_file(self._path(name), data))

    def create(self, name: str, data: bytes) -> bool:
        """Write a file that nobody wrote yet; False if somebody did."""
        created = []

        def attempt() -> None:
            with suppress(FileExistsError):
                if self.is_local:
                    self._link(name, data)
                else:
                    self._system.pipe_file(self._path(name), data, mode="create")
                created.append(name)

        self._send(name, attempt)
        return bool(created)

    def delete(self, name: str) -> None:
        """It may be gone already."""
        with suppress(FileNotFoundError):
            self.patiently(name, lambda: self._system.rm_file(self._path(name)))

    def drop_folder(self, folder: str) -> None:
        """An empty one, where stores have folders; one that holds anything stays."""
        if self._protocol not in _FLAT | _READ_ONLY:
            with suppress(OSError):
                self._system.rmdir(self._path(folder))

    def folders(self, folder: str) -> list[str]:
        """The folders in a folder."""
        self._system.invalidate_cache()
        try:
            found = self.patiently(folder, lambda: self._system.ls(self._path(folder), detail=True))
        except FileNotFoundError:
            return []
        return sorted(Path(item["name"]).name for item in found if item["type"] == "directory")

    def fetch(self, name: str, path: Path) -> bool:
        """A file, whole or not at all; False if there is none."""

        def attempt() -> None:
            with publish_file(path) as partial, partial.open("wb") as file:
                for chunk in self.chunks(name):
                    file.write(chunk)

        try:
            self.patiently(name, attempt)
        except FileNotFoundError:
            return False
        return True

    def _link(self, name: str, data: bytes) -> None:
        path = real_path(self._path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        ownership = Ownership(path)
        partial = ownership.name()
        try:
            with blamed_on(path, partial):
                partial.write_bytes(data)
            path.hardlink_to(partial)
        finally:
            partial.unlink(missing_ok=True)
            ownership.release()

    def patiently(self, name: str, attempt: Callable[[], T]) -> T:
        """Try again, a few times, when it fails for a reason that may pass."""
        for delay_s in (*RETRY_DELAYS_S, None):
            try:
                return attempt()
            except Exception as error:
                # fsspec reports a server that cannot be reached as a file that does not exist.
                if delay_s is None or not is_transient(error):
                    if _says_enough(error):
                        raise
                    raise self._unreachable(name, error) from error
                logger.warning("%s/%s: %s; trying again", self.url, name, reason(error))
                time.sleep(delay_s)
        raise AssertionError("unreachable")

    def _send(self, name: str, send: Callable[[], object]) -> None:
        try:
            if self._protocol not in _FLAT:
                self._system.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            self.patiently(name, send)
        except (BundleError, FileNotFoundError) as error:
            raise OutputError(f"{error}; nothing was published") from error

    def _open(self, name: str, start: int) -> Any:
        if self._protocol in _READ_ONLY:
            return self._open_http(name, start)
        if self.is_local and self._local_path(name).exists():
            with refusing(BundleError, f"{self.url}/{name}", "put the file itself there"):
                file_size(self._local_path(name))
        file = self._system.open(self._path(name), "rb")
        file.seek(start)
        return file

    def _open_http(self, name: str, start: int) -> Any:
        # A compressed answer would not have the offsets that we ask for.
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        # Any size spares a request for it: it is not used.
        try:
            file = self._system.open(self._path(name), block_size=0, size=1, headers=headers)
        except Exception as error:
            if _status(error) == _BEYOND_THE_END:
                return io.BytesIO()
            raise
        is_from_offset = file.r.status == 206
        skipped = start if is_from_offset else 0
        while skipped < start and (chunk := file.read(min(_CHUNK_BYTES, start - skipped))):
            skipped += len(chunk)
        return file

    def _path(self, name: str) -> str:
        return f"{self._root}/{quote(name) if self._protocol in _READ_ONLY else name}"

    def _local_path(self, name: str) -> Path:
        return Path(self._path(name))

    @contextmanager
    def _publishing(self, name: str) -> Iterator[Path]:
        """A file of a store in a folder. It may well be one of a bundle: that is what is stored."""
        path = real_path(self._path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        ownership = Ownership(path)
        partial = ownership.name()
        try:
            with blamed_on(path, partial):
                yield partial
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
            ownership.release()

    def _unreachable(self, name: str, error: Exception) -> UnreachableError:
        advice = "check the address and the connection, and run the command again"
        if _status(error) in (401, 403) or isinstance(error, PermissionError):
            advice = "sign in to the store, or ask for access"
        return UnreachableError(f"{self.url}/{name}: {reason(error)}; {advice}")


def _says_enough(error: Exception) -> bool:
    """As it is. Raised from itself it would be a circle, around all that its frames hold."""
    if isinstance(error, BundleError | FileNotFoundError) and not is_transient(error):
        return True
    return isinstance(error, OSError) and error.errno in _DISK_FULL


class _Heard(Callback):  # type: ignore[misc]
    """What fsspec tells of an upload: some stores nothing, and one that is tried again twice."""

    def __init__(self, count: Callable[[int], None], size: int) -> None:
        super().__init__()
        self._count, self._size, self._counted = count, size, 0

    def call(self, *_: object, **__: object) -> None:
        self._reach(min(self.value, self._size))

    def finish(self) -> None:
        self._reach(self._size)

    def _reach(self, size: int) -> None:
        if size > self._counted:
            self._count(size - self._counted)
            self._counted = size


def _copy(path: Path, target: Path, count: Callable[[int], None]) -> None:
    with path.open("rb") as source, target.open("wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            file.write(chunk)
            count(len(chunk))


def is_transient(error: BaseException | None) -> bool:
    """Whether it may work a moment later."""
    while error is not None:
        status = _status(error)
        if status is not None:
            return status >= 500 or status in _RETRIED_STATUS
        if isinstance(error, ConnectionError | TimeoutError):
            return True
        if type(error).__module__.partition(".")[0] in _NETWORK_LIBRARIES:
            return True
        error = error.__cause__
    return False


def _status(error: BaseException) -> int | None:
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def reason(error: Exception) -> str:
    """In a line, whatever a library says."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    status = _status(cause)
    text = str(cause)
    if status is not None:
        text = f"the server answered {status} {getattr(cause, 'message', '')}"
    return cut(" ".join(text.split())) or type(cause).__name__


def _protocol(url: str) -> str:
    try:
        return urlsplit(url).scheme if "://" in url else "file"
    except ValueError as error:
        raise _unusable(url, error) from None


def _connect(url: str, protocol: str) -> tuple[Any, str]:
    options: dict[str, Any] = {"skip_instance_cache": True} if protocol != "memory" else {}
    try:
        if protocol in _READ_ONLY:
            _require_plain(url)
            return fsspec.filesystem(protocol, **_http_options(), **options), url
        system, root = fsspec.url_to_fs(url, **options)
        return system, str(root).rstrip("/")
    except ImportError as error:
        raise UsageError(
            f"{url}: {protocol}:// needs a package that is not installed ({error}): "
            f"{install_command('ship')}"
        ) from None
    except Exception as error:  # a library for each kind of store, and none says what it raises
        if isinstance(error, LongLiveError):
            raise
        raise _unusable(url, error) from None


def _unusable(url: str, error: Exception) -> UsageError:
    return UsageError(f"{plain(url)}: not an address that can be used ({plain(error)})")


def _require_plain(url: str) -> None:
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        plain = urlunsplit((*parts[:3], "", ""))
        raise UsageError(f"{url}: an address with ? or # has no files below it; give {plain}")


def _http_options() -> dict[str, Any]:
    import aiohttp

    # A large file takes long: only silence is an error.
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=_STALLED_AFTER_S, sock_read=_STALLED_AFTER_S
    )
    return {"client_kwargs": {"timeout": timeout}}
