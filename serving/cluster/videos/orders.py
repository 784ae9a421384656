"""Videos that were ordered, in the store: what is wanted, what is made, and the whole."""

import json
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from longlive_trt.engines.bundles.stores import Store
from longlive_trt.errors import BundleError
from longlive_trt.reading.documents import JSON_BYTES, parse_json
from longlive_trt.reading.failures import refusing
from longlive_trt.reading.shapes import structured

FORMAT = 1
_ID = re.compile(r"video_[A-Za-z0-9_-]{16}")
_PART = re.compile(r"([0-9]{8})-([0-9]{8})\.part")
_ORDER, _FAILURE, CONTENT = "order.json", "failure.json", "content.mp4"
_ADVICE = "delete the video and order it anew"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is wanted; the session that makes it has the same id."""

    format: int = FORMAT
    id: str = field(default_factory=lambda: f"video_{secrets.token_urlsafe(12)}")
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    """Of that session."""
    created_s: float = field(default_factory=time.time)
    prompt: str
    seed: int
    switch: str
    timeline: tuple[tuple[int, str], ...] = ()
    seconds: float
    frames: int
    model: str
    size: str


@dataclass(frozen=True)
class _Failure:
    code: str
    message: str


class Orders:
    """Every call waits for the store: not to be made on an event loop."""

    def __init__(self, url: str) -> None:
        self._store = Store(url)

    def write(self, order: Order) -> None:
        data = json.dumps(asdict(order), ensure_ascii=False).encode()
        self._store.write(_name(order.id, _ORDER), data)

    def read(self, video: str) -> Order | None:
        if not is_video_id(video):
            return None
        name = _name(video, _ORDER)
        data = self._store.read(name, JSON_BYTES)
        if data is None:
            return None
        with refusing(BundleError, f"{self._store.url}/{name}", _ADVICE):
            return structured(Order, parse_json(data))

    def ids(self) -> list[str]:
        return [name for name in self._store.folders("videos") if is_video_id(name)]

    def fail(self, video: str, code: str, message: str) -> None:
        data = json.dumps({"code": code, "message": message}).encode()
        self._store.write(_name(video, _FAILURE), data)

    def failure(self, video: str) -> tuple[str, str] | None:
        """A code and a sentence."""
        name = _name(video, _FAILURE)
        data = self._store.read(name, JSON_BYTES)
        if data is None:
            return None
        with refusing(BundleError, f"{self._store.url}/{name}", _ADVICE):
            found = structured(_Failure, parse_json(data))
        return found.code, found.message

    # ---- what is made ------------------------------------------------------------------------

    def put_part(self, video: str, path: Path, first: int, end: int) -> None:
        self._store.put(path, _name(video, _part(first, end)))

    def parts(self, video: str) -> list[tuple[int, int]]:
        """From which picture to which each goes, whichever host made it."""
        found = [_PART.fullmatch(name) for name in self._names(video)]
        return [(int(match[1]), int(match[2])) for match in found if match]

    def fetch_part(self, video: str, first: int, end: int, path: Path) -> bool:
        return self._store.fetch(_name(video, _part(first, end)), path)

    def put_content(self, video: str, path: Path) -> None:
        """The whole; its parts are not needed any more."""
        self._store.put(path, _name(video, CONTENT))
        for name in self._names(video):
            if _PART.fullmatch(name):
                self._store.delete(_name(video, name))

    def content_bytes(self, video: str) -> int | None:
        return self._store.size(_name(video, CONTENT))

    def content(self, video: str) -> Iterator[bytes]:
        return self._store.chunks(_name(video, CONTENT))

    def delete(self, video: str) -> None:
        """The order last: while it is there, the rest is found by it."""
        names = self._names(video)
        for name in sorted(names, key=lambda name: name == _ORDER):
            self._store.delete(_name(video, name))
        self._store.drop_folder(_folder(video))

    def _names(self, video: str) -> list[str]:
        return self._store.names(_folder(video))


def is_video_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def _part(first: int, end: int) -> str:
    return f"{first:08d}-{end:08d}.part"


def _folder(video: str) -> str:
    assert is_video_id(video)
    return f"videos/{video}"


def _name(video: str, file: str) -> str:
    return f"{_folder(video)}/{file}"
