"""Who owns a session, and how it stands: in the store, so that it outlives every machine.

A session's owners are numbered. Number n belongs to whoever creates its file first; from then on
nothing counts that the owners before it write.
"""

import json
import re
import secrets
import time
from dataclasses import asdict, dataclass
from typing import Literal, TypeVar

from longlive_trt.engines.bundles.stores import Store
from longlive_trt.errors import BundleError, LongLiveError, UsageError
from longlive_trt.reading.documents import JSON_BYTES, parse_json
from longlive_trt.reading.failures import InvalidFieldError, refusing
from longlive_trt.reading.shapes import structured
from longlive_trt.serving.live.schedule import Cue

FORMAT = 1
SESSION_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_OWNER = re.compile(r"([0-9]{8})\.owner\.json")
_OWNER_END = ".owner.json"
PROBES = "probes"
_ADVICE = "end the session and begin it anew"

Status = Literal["running", "moving", "ended"]
T = TypeVar("T")


@dataclass(frozen=True)
class Deed:
    """One owner's, written once."""

    format: int
    session: str
    fence: int
    host: str
    token_sha256: str
    bundle_key: str
    created_s: float
    """When the session began."""
    claimed_s: float


@dataclass(frozen=True)
class Kept:
    """A state in the store."""

    id: str
    frame: int
    """The first picture that is to be made after it."""
    restarts: int


@dataclass(frozen=True)
class News:
    """How a session stands at its owner, written again and again."""

    format: int
    status: Status
    seed: int
    switch: str
    restarts: int
    epoch: int
    cues: tuple[tuple[int, int, str], ...]
    end: int | None = None
    """The block after the last."""
    states: tuple[Kept, ...] = ()
    """The newest first."""
    message: str | None = None
    written_s: float = 0.0
    began_at: int = 0
    """The first picture that this owner made."""

    @property
    def state(self) -> str | None:
        return self.states[0].id if self.states else None

    def usable_state(self, frame: int | None = None) -> str | None:
        """The newest that nothing is missing after for who has all pictures before this one; else
        the oldest. None where the video began anew since, and where it is no older than that.
        """
        states = [kept for kept in self.states if kept.restarts == self.restarts]
        for kept in states:
            if frame is None or kept.frame <= frame:
                return kept.id
        return states[-1].id if len(states) > 1 else None

    def placed(self) -> tuple[Cue, ...]:
        return tuple(Cue(number, block, prompt) for number, block, prompt in self.cues)


class Registry:
    """Every call waits for the store: not to be made on an event loop."""

    def __init__(self, url: str) -> None:
        self._store = Store(url)

    def require_exclusive(self) -> None:
        """Refuse a store that cannot be written, or that lets two owners have one number."""
        name = f"{PROBES}/{secrets.token_hex(8)}"
        try:
            self._store.require_writable()
            first = self._store.create(name, b"1")
            second = self._store.create(name, b"2")
            self._store.delete(name)
        except UsageError:
            raise
        except (LongLiveError, OSError) as error:
            raise UsageError(f"--store {self._store.url}: cannot be written ({error})") from None
        if not first or second:
            raise UsageError(
                f"--store {self._store.url}: two writers can both create one file there, so "
                f"sessions could have two owners; use a folder, s3:// or gs://"
            )

    def claim(self, deed: Deed) -> bool:
        """Whether it is the first with its number."""
        name = _owner_file(deed.session, deed.fence)
        if self._store.create(name, _packed(deed)):
            return True
        # The first answer may have been lost on its way.
        return self._read(Deed, name) == deed

    def newest(self, session: str) -> Deed | None:
        names = self._store.names(_folder(session))
        numbers = [int(match[1]) for name in names if (match := _OWNER.fullmatch(name))]
        return self._read(Deed, _owner_file(session, max(numbers))) if numbers else None

    def is_superseded(self, session: str, fence: int) -> bool:
        return self._store.size(_owner_file(session, fence + 1)) is not None

    def tell(self, session: str, fence: int, news: News) -> None:
        self._store.write(_news_file(session, fence), _packed(news))

    def news(self, session: str, fence: int) -> News | None:
        """Of this owner, or of the last before it that left any."""
        for number in range(fence, 0, -1):
            found = self._read(News, _news_file(session, number))
            if found is not None:
                return found
        return None

    def sessions(self) -> list[str]:
        return self._store.folders("sessions")

    def files(self, session: str) -> list[str]:
        folder = _folder(session)
        return [f"{folder}/{name}" for name in self._store.names(folder)]

    def forget(self, session: str) -> None:
        """The newest owner last: while it is there, its number is taken."""
        for name in sorted(self.files(session), key=lambda name: (_OWNER_END in name, name)):
            self._store.delete(name)
        self._store.drop_folder(_folder(session))

    def _read(self, kind: type[T], name: str) -> T | None:
        data = self._store.read(name, JSON_BYTES)
        if data is None:
            return None
        with refusing(BundleError, f"{self._store.url}/{name}", _ADVICE):
            values = parse_json(data)
            if isinstance(values, dict) and values.get("format") not in (None, FORMAT):
                raise InvalidFieldError("format", values["format"], str(FORMAT))
            return structured(kind, values)


def deed(
    session: str, fence: int, host: str, token_sha256: str, bundle_key: str, created_s: float
) -> Deed:
    return Deed(FORMAT, session, fence, host, token_sha256, bundle_key, created_s, time.time())


def is_session_id(text: str) -> bool:
    return SESSION_ID.fullmatch(text) is not None


def _folder(session: str) -> str:
    if not is_session_id(session):
        raise UsageError(f"{session!r}: not the id of a session")
    return f"sessions/{session}"


def _owner_file(session: str, fence: int) -> str:
    return f"{_folder(session)}/{fence:08d}.owner.json"


def _news_file(session: str, fence: int) -> str:
    return f"{_folder(session)}/{fence:08d}.news.json"


def _packed(value: Deed | News) -> bytes:
    return json.dumps(asdict(value), ensure_ascii=False).encode()
