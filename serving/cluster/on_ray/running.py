"""``serve --cluster ray``: joins a Ray cluster or starts one here, and ends what it started."""

import logging
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import ray
from ray import serve

from longlive_trt.errors import EngineError, LongLiveError
from longlive_trt.serving.cluster.on_ray.deployments import APP, REFUSAL, make_application
from longlive_trt.serving.cluster.settings import FleetSettings
from longlive_trt.serving.engine import LiveModel
from longlive_trt.serving.server import bind
from longlive_trt.serving.settings import Settings

logger = logging.getLogger(__name__)

_STORE_BYTES = 200 << 20
"""Of Ray's object store: pictures and commands pass through, nothing stays."""
_REFUSAL = re.compile(re.escape(REFUSAL) + r"([^\n]*)")
_CONTROLLER_CPUS = 1
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ARENAS = "2"
"""Of the C library's allocator: with one for each of a worker's 40 threads, what one of them freed
is not used by the others, and a host's memory grows for hours.
"""
_PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20"}
"""Three times 5 s, and Serve gives its gate up: a busy machine takes longer to start a process."""


def serve_fleet(
    settings: Settings,
    fleet: FleetSettings,
    load: Callable[[], LiveModel],
    *,
    certificate: Path | None = None,
    key: Path | None = None,
    say: Callable[[str], None],
) -> int | None:
    """Until a signal comes; gives that signal's number."""
    port = free_port(settings)
    with _ray(fleet):
        numbers: list[int] = []
        try:
            with _ending_on_signals(numbers), _proxies(settings, port, certificate, key):
                deploy(settings, fleet, load)
                scheme = "http" if certificate is None else "https"
                name = "localhost" if settings.is_loopback else settings.host
                say(f"{scheme}://{name}:{port}{settings.root_path}/")
                threading.Event().wait()
        except KeyboardInterrupt:
            return numbers[0] if numbers else signal.SIGINT
    return None


@contextmanager
def started(settings: Settings, fleet: FleetSettings, port: int) -> Iterator[None]:
    """Ray, and Serve's proxies; at the end the application goes, and a Ray that began here."""
    with _ray(fleet), _proxies(settings, port, None, None):
        yield


@contextmanager
def _ending_on_signals(numbers: list[int]) -> Iterator[None]:
    """Whatever goes on: hosts may load for minutes. Ray, which is running by now, has put handlers
    of its own in place, that end the process at once; the only exception that its calls let through
    is a keyboard's.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_IGN if one == number else before[one])
        numbers.append(number)
        raise KeyboardInterrupt

    before = {one: signal.signal(one, handle) for one in _SIGNALS}
    yield


@contextmanager
def _ray(fleet: FleetSettings) -> Iterator[None]:
    before = {one: signal.getsignal(one) for one in _SIGNALS}
    _join_or_start(fleet)
    try:
        yield
    finally:
        ray.shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _proxies(
    settings: Settings, port: int, certificate: Path | None, key: Path | None
) -> Iterator[None]:
    serve.start(
        http_options={
            "host": settings.host,
            "port": port,
            "root_path": settings.root_path,
            "ssl_certfile": None if certificate is None else str(certificate),
            "ssl_keyfile": None if key is None else str(key),
        }
    )
    try:
        yield
    finally:
        # Hosts save what runs. Of a cluster that was joined nothing else is ours to end.
        serve.delete(APP)


def deploy(settings: Settings, fleet: FleetSettings, load: Callable[[], LiveModel]) -> None:
    """The application, or its next version; waits until hosts run."""
    try:
        serve.run(make_application(settings, fleet, load), name=APP)
    except RuntimeError as error:
        raise _failure(error) from error


def free_port(settings: Settings) -> int:
    """Ray's proxy is told a number: any that is free where none was chosen."""
    with bind(settings) as listening:
        port: int = listening.getsockname()[1]
    return port


def _join_or_start(fleet: FleetSettings) -> None:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # It tells with every start that its own ports ask for a token.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    # Workers find the package where this process does.
    paths = os.pathsep.join(path for path in sys.path if path)
    variables = {"PYTHONPATH": paths, "MALLOC_ARENA_MAX": _ARENAS, **_PATIENCE}
    environment = {"env_vars": variables}
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    if os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(runtime_env=environment, **quiet)
        except (ConnectionError, OSError) as error:
            raise LongLiveError(
                f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}: no Ray cluster answers there ({error}); "
                f"start one with `ray start --head`, or unset it to start one here"
            ) from None
        return
    # A cluster here is made as large as it is asked to be: what does not fit runs slower.
    hosts = fleet.scaling.most * fleet.cpus_per_host
    ray.init(
        address="local",
        num_cpus=math.ceil(hosts) + 2 * fleet.gateways + _CONTROLLER_CPUS,
        include_dashboard=False,
        object_store_memory=_STORE_BYTES,
        runtime_env=environment,
        **quiet,
    )


def _failure(error: RuntimeError) -> LongLiveError:
    """The line of ours in what Ray says."""
    state = serve.status().applications.get(APP)
    said = [str(error)]
    if state is not None:
        said += [state.message, *(one.message for one in state.deployments.values())]
    found = _REFUSAL.search("\n".join(said))
    if found is not None:
        return EngineError(found[1].strip())
    first = str(error).strip().partition("\n")[0]
    return EngineError(f"Ray Serve cannot run the fleet: {first}; `serve status` says more")
