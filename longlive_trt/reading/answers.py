"""What another server answers to one question: whole, within a time and a size."""

import http.client
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from longlive_trt.console.printing import plain
from longlive_trt.errors import UsageError
from longlive_trt.reading.documents import JSON_BYTES, parse_json
from longlive_trt.reading.failures import ReadingError
from longlive_trt.reading.files import MIB


@dataclass(frozen=True)
class Answer:
    status: int
    data: bytes

    def values(self) -> Any:
        """Of one that is JSON."""
        try:
            return parse_json(self.data.decode())
        except UnicodeDecodeError:
            raise ReadingError("not valid UTF-8") from None


def require_address(option: str, address: str) -> None:
    """Of a server that is asked by HTTP."""
    try:
        parts = urlsplit(address)
        is_known = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        is_known = False
    if not is_known or not address.isprintable() or " " in address:
        raise UsageError(
            f"{option} {plain(address)}: give an address with http:// or https://, such as "
            "http://localhost:8400"
        )


def ask(method: str, address: str, token: str | None, *, seconds: float) -> Answer:
    """One call. A status of failure is an answer too; what is none is a ReadingError."""
    request = urllib.request.Request(address, method=method)  # noqa: S310
    if token is not None:
        # Where an answer leads elsewhere, the token stays.
        request.add_unredirected_header("authorization", f"Bearer {token}")
    return _within(seconds, lambda: _answer(request, seconds))


def _answer(request: urllib.request.Request, seconds: float) -> Answer:
    try:
        try:
            response: Any = urllib.request.urlopen(request, timeout=seconds)  # noqa: S310
        except urllib.error.HTTPError as error:
            response = error
        with response:
            data = response.read(JSON_BYTES + 1)
    except (http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        problem = plain(reason) or type(reason).__name__
        raise ReadingError(f"no answer that can be read comes from there ({problem})") from None
    if len(data) > JSON_BYTES:
        raise ReadingError(f"its answer is larger than {JSON_BYTES // MIB} MiB")
    return Answer(response.status, data)


def _within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """Timeouts of a socket begin anew with every byte; this one does not."""
    outcome: list[Answer | BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name="asking", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise ReadingError(f"no whole answer within {seconds:g} s")
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]
