"""``serve``: the web server around the application, its signals, and its end."""

import asyncio
import logging
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn

from longlive_trt.errors import UsageError
from longlive_trt.serving.engine import LiveModel
from longlive_trt.serving.settings import Settings
from longlive_trt.serving.web.app import make_app
from longlive_trt.serving.web.live import Live

logger = logging.getLogger(__name__)

_GRACE_S = 10


class Server(uvicorn.Server):
    """Drains before it closes what is open."""

    def __init__(self, config: uvicorn.Config, live: Live) -> None:
        super().__init__(config)
        self._live = live
        self.signal: int | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit, self.signal = True, sig

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._live.drain()
        # Sockets say goodbye by themselves, with their own codes.
        await asyncio.sleep(0.2)
        await super().shutdown(sockets)


def make_server(
    settings: Settings,
    load: Callable[[], LiveModel],
    *,
    certificate: Path | None = None,
    key: Path | None = None,
) -> Server:
    live = Live(settings, load)
    config = uvicorn.Config(
        make_app(live),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        root_path=settings.root_path,
        server_header=False,
        ws="websockets-sansio",
        ws_max_size=settings.limits.message_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=20,
        ws_ping_timeout=20,
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=None if certificate is None else str(certificate),
        ssl_keyfile=None if key is None else str(key),
        lifespan="on",
        proxy_headers=bool(settings.allowed_hosts),
        forwarded_allow_ips="127.0.0.1,::1",
    )
    return Server(config, live)


def serve(
    settings: Settings,
    load: Callable[[], LiveModel],
    *,
    certificate: Path | None = None,
    key: Path | None = None,
    say: Callable[[str], None],
    open_browser: bool = False,
) -> int | None:
    """Until a signal comes; gives that signal's number."""
    listening = bind(settings)
    server = make_server(settings, load, certificate=certificate, key=key)
    scheme = "http" if certificate is None else "https"
    name = "localhost" if settings.is_loopback else settings.host
    port = listening.getsockname()[1]
    address = f"{scheme}://{name}:{port}{settings.root_path}/"
    say(address)
    if open_browser:
        threading.Timer(0.5, webbrowser.open, [address]).start()
    try:
        server.run(sockets=[listening])
    finally:
        listening.close()
    return server.signal


def bind(settings: Settings) -> socket.socket:
    """The listening socket, taken before anything slow is done."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        raise UsageError(
            f"{settings.host} port {settings.port} cannot be used ({error.strerror}); choose "
            f"another with --port, or 0 for any that is free"
        ) from None
    listening.listen(128)
    listening.set_inheritable(True)
    return listening
