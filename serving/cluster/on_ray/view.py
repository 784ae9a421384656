"""What one process knows of its fleet's hosts: Ray's router writes it, the gateway reads it.

Ray makes the router itself, on a thread of its own, and hands it to nobody: the two meet here.
"""

import threading
from collections.abc import Mapping
from functools import lru_cache

from longlive_trt.serving.cluster.placement import HostView, Placement, view_from


class FleetView:
    """Safe to be called from any thread."""

    def __init__(self) -> None:
        self._placement = Placement()
        self._alive: set[str] = set()
        self._on_way: dict[str, str] = {}
        self._lock = threading.Lock()

    def replicas(self, stats: Mapping[str, Mapping[str, object]]) -> None:
        """All that run, and what each said last."""
        with self._lock:
            self._alive = set(stats)
            self._placement.keep_only(self._alive)
            for name, facts in stats.items():
                view = view_from(facts)
                if view is not None and view.name == name:
                    self._placement.hear(view)

    def lost(self, name: str) -> None:
        with self._lock:
            self._alive.discard(name)
            self._placement.keep_only(self._alive)

    def choose(self, key: str, bundle: str | None) -> str | None:
        """A host for a session on its way, which ``key`` stands for; it may have a bundle."""
        with self._lock:
            self._forget(key)
            host = self._placement.best(bundle)
            if host is not None:
                self._on_way[key] = host
                self._placement.sent(host)
            return host

    def answered(self, key: str, view: HostView | None) -> None:
        with self._lock:
            self._forget(key)
            if view is not None and view.name in self._alive:
                self._placement.hear(view)

    def owner(self, session: str) -> str | None:
        """Where it is, if that host runs."""
        with self._lock:
            host = self._placement.owner(session)
            return host if host in self._alive else None

    def own(self, session: str, host: str | None) -> None:
        with self._lock:
            if host is None:
                self._placement.disown(session)
            else:
                self._placement.own(session, host)

    def is_alive(self, host: str) -> bool:
        with self._lock:
            return host in self._alive

    @property
    def is_empty(self) -> bool:
        with self._lock:
            return not self._alive

    def hosts(self) -> list[HostView]:
        with self._lock:
            return self._placement.hosts

    @property
    def free(self) -> int:
        with self._lock:
            return self._placement.free

    def _forget(self, key: str) -> None:
        host = self._on_way.pop(key, None)
        if host is not None:
            self._placement.answered(host)


@lru_cache
def view_of(app: str) -> FleetView:
    """One for each application that this process sends to."""
    return FleetView()
