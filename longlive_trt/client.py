"""A client of ``longlive-trt serve``: a live video that answers, in a few lines of Python.

    with LiveClient("http://localhost:8400").open("a red car at dusk") as video:
        for picture in video:
            if picture.frame == 80:
                video.prompt("the same road in the rain")

Needs ``websockets`` (in the extra ``serve``); pictures are decoded where PyAV is installed, which
longlive-trt always brings. This file stands alone: it can be copied into another project.
"""

import base64
import json
import struct
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Self
from urllib.parse import urlencode, urlsplit, urlunsplit

_HEADER = struct.Struct(">BBBIQQ")
_VERSION = 1
_REPORT_S = 0.25
Format = Literal["h264", "jpeg"]


class LiveError(Exception):
    """What the server answered: ``code`` is for programs, the text for people."""

    def __init__(self, code: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code, self.details = code, details or {}


@dataclass(frozen=True)
class LivePicture:
    frame: int
    epoch: int
    seconds: float
    is_key: bool
    data: bytes
    """H.264 with lengths before its units, or JPEG, as was asked for."""
    _decode: Callable[[], Any]

    def pixels(self) -> Any:
        """uint8 [height, width, 3]. To be asked for every picture in its order, or for none."""
        return self._decode()


class LiveClient:
    def __init__(self, address: str = "http://localhost:8400", token: str | None = None) -> None:
        """``token`` is the server's, where it asks for one."""
        self._address, self._token = address.rstrip("/"), token

    def open(self, prompt: str = "", *, format: Format = "h264", **values: Any) -> "LiveVideo":  # noqa: A002
        """A new live video; ``seed``, ``switch``, ``timeline``, ``resume``, ``num_frames``..."""
        start = {"type": "session.start", "prompt": prompt, "format": format, **values}
        if self._token is not None:
            start["access"] = self._token
        return LiveVideo(self, start)

    def join(self, session: str, token: str, *, format: Format = "h264") -> "LiveVideo":  # noqa: A002
        """Watch and steer a video that runs already."""
        start = {"type": "session.start", "session": session, "token": token, "format": format}
        return LiveVideo(self, start)

    def models(self) -> list[dict[str, Any]]:
        return list(self.ask("GET", "/v1/models")["data"])

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> Any:
        """An HTTP call; bytes where the answer is no JSON."""
        token = token or self._token
        headers = {"content-type": "application/json"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        address = self._address + path
        request = urllib.request.Request(address, data, headers, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request) as answer:  # noqa: S310
                content, kind = answer.read(), answer.headers.get_content_type()
        except urllib.error.HTTPError as error:
            raise _failure(error.read()) from None
        return json.loads(content) if kind == "application/json" else content

    @property
    def socket_address(self) -> str:
        parts = urlsplit(self._address)
        scheme = "wss" if parts.scheme == "https" else "ws"
        return urlunsplit((scheme, parts.netloc, f"{parts.path}/v1/realtime/video", "", ""))


class LiveVideo:
    """Iterating gives each picture when its turn has come, at the video's rate.

    Pictures are read ahead on a thread, so that those a prompt takes back are never seen.
    """

    def __init__(self, client: LiveClient, start: dict[str, Any]) -> None:
        self._client, self._start = client, start
        self.facts: dict[str, Any] = {}
        """Of ``video.start``: size, rate, seed, session and token."""
        self.cues: list[dict[str, Any]] = []
        self.stats: dict[str, Any] = {}
        self.done: dict[str, Any] | None = None
        self.position_in_queue: int | None = None
        self.answer_frame: int | None = None
        """The first picture of the newest prompt, once the server has said which it is."""
        self.on_message: Callable[[dict[str, Any]], None] = lambda _message: None
        """Called with everything the server says, on the reading thread."""
        self._epoch = 0
        self._decoder: Any = None
        self._waiting: deque[LivePicture] = deque()
        self._changed = threading.Condition()
        self._failure: Exception | None = None
        self._is_over = False
        self._clock: tuple[int, float] | None = None
        self._reported_s = 0.0

    def __enter__(self) -> Self:
        from websockets.sync.client import connect

        self._manager = connect(self._client.socket_address, compression=None, max_size=None)
        self._socket = self._manager.__enter__()
        self._socket.send(json.dumps(self._start))
        self._reader = threading.Thread(target=self._read, name="live-video", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._manager.__exit__(*error)
        self._reader.join()

    def __iter__(self) -> Iterator[LivePicture]:
        """Ends with the video, or raises what the server says is wrong."""
        while (picture := self._next()) is not None:
            if not self._is_over:
                self._report(picture)
            yield picture

    def wait(self, name: str, timeout_s: float = 30.0) -> None:
        """Until ``facts``, ``cues``, ``stats`` or ``done`` holds something."""
        with self._changed:
            self._changed.wait_for(lambda: getattr(self, name) or self._failure, timeout_s)
        if self._failure is not None and not getattr(self, name):
            raise self._failure

    def prompt(self, text: str, *, frame: int | None = None, event_id: str | None = None) -> None:
        """From the first block on that can be made in time, or from a later picture."""
        self.answer_frame = None
        self.send("session.interaction", prompt=text, frame=frame, event_id=event_id)

    def draft(self, text: str | None) -> None:
        """What may be sent soon: the server prepares for it."""
        self.send("prompt.draft", prompt=text)

    def pause(self) -> None:
        self.send("session.pause")

    def resume(self) -> None:
        self.send("session.resume")

    def stop(self) -> None:
        self.send("session.stop")

    def recording(self, seconds: float | None = None, decoder: str | None = None) -> bytes:
        """An MP4 of all that was shown, or of the last seconds; ``decoder`` makes it anew."""
        asked = {"seconds": seconds, "decoder": decoder}
        query = urlencode({name: value for name, value in asked.items() if value is not None})
        video: bytes = self._own("GET", f"recording.mp4?{query}")
        return video

    def recipe(self) -> dict[str, Any]:
        return dict(self._own("GET", "recipe"))

    def save_state(self) -> str:
        """For ``open(resume=...)``."""
        return str(self._own("POST", "state")["state_id"])

    def send(self, type: str, **values: Any) -> None:  # noqa: A002
        self._socket.send(json.dumps({"type": type, **values}))

    def _own(self, method: str, what: str) -> Any:
        path = f"/v1/sessions/{self.facts['session']}/{what}"
        return self._client.ask(method, path, token=self.facts["token"])

    def _read(self) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            while True:
                data = self._socket.recv()
                with self._changed:
                    if isinstance(data, str):
                        self._take(json.loads(data))
                    else:
                        self._waiting.append(self._picture(data))
                    self._changed.notify_all()
        except (ConnectionClosed, LiveError) as error:
            with self._changed:
                if self.done is None or isinstance(error, LiveError):
                    self._failure = error
                self._is_over = True
                self._changed.notify_all()

    def _next(self) -> LivePicture | None:
        has_waited = False
        with self._changed:
            while True:
                if self._waiting:
                    wait = self._due_in(self._waiting[0].frame)
                    if wait < 0 and has_waited:
                        # It came too late: what follows is shown at the video's rate from now on.
                        self._clock = self._waiting[0].frame, time.monotonic()
                    if wait <= 0:
                        return self._waiting.popleft()
                    self._changed.wait(wait)
                elif self._failure is not None:
                    raise self._failure
                elif self._is_over:
                    return None
                else:
                    has_waited = True
                    self._changed.wait()

    def _due_in(self, frame: int) -> float:
        now = time.monotonic()
        if self._clock is None:
            self._clock = frame, now
        first, begun = self._clock
        return begun + (frame - first) / float(self.facts["fps"]) - now

    def _report(self, picture: LivePicture) -> None:
        from websockets.exceptions import ConnectionClosed

        now = time.monotonic()
        if now - self._reported_s > _REPORT_S or picture.is_key:
            self._reported_s = now
            # What is still to be shown is shown; how the connection ended, the reader says.
            with suppress(ConnectionClosed):
                self.send("playback.shown", epoch=picture.epoch, frame=picture.frame)

    def _cut(self, epoch: int, frame: int) -> None:
        self._epoch = epoch
        kept = [picture for picture in self._waiting if picture.frame < frame]
        self._waiting = deque(kept)
        if frame == 0:
            self._clock = None

    def _take(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "video.start":
                self.facts, self._epoch = message, message["epoch"]
            case "session.queued":
                self.position_in_queue = message["position"]
            case "session.interaction.queued":
                self.answer_frame = message["takes_effect"]["frame"]
            case "timeline":
                self.cues = message["cues"]
            case "stats":
                self.stats = message
            case "video.cut":
                self._cut(message["epoch"], message["frame"])
            case "session.done":
                self.done = message
            case "error":
                raise LiveError(message["code"], message["message"])
        self.on_message(message)

    def _picture(self, data: bytes) -> LivePicture:
        version, _, flags, epoch, frame, pts_us = _HEADER.unpack_from(data)
        if version != _VERSION:
            raise LiveError("version", f"pictures of version {version}; this reads {_VERSION}")
        payload = data[_HEADER.size :]
        return LivePicture(
            frame, epoch, pts_us / 1e6, bool(flags & 1), payload, lambda: self._decoded(payload)
        )

    def _decoded(self, payload: bytes) -> Any:
        import av

        if self._decoder is None:
            kind = "mjpeg" if self.facts["format"] == "jpeg" else "h264"
            self._decoder = av.CodecContext.create(kind, "r")
            if self.facts["description"]:
                self._decoder.extradata = base64.b64decode(self.facts["description"])
        (frame,) = self._decoder.decode(av.Packet(payload))
        return frame.to_ndarray(format="rgb24")


def _failure(body: bytes) -> LiveError:
    try:
        error = json.loads(body)["error"]
        return LiveError(error["code"], error["message"], error)
    except (ValueError, KeyError, TypeError):
        return LiveError("unknown", body[:200].decode("utf-8", "replace"))
