"""Which host takes a session, and how many hosts there should be.

Pure: the request router, the autoscaler and the simulation of ``benchmarks/fleet`` decide by it.
"""

import math
import random
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

_REMEMBERED = 100_000
FEW = 32
"""Of no more hosts than this the roomiest is chosen."""


@dataclass(frozen=True)
class HostView:
    """What a host says of itself."""

    name: str
    slots: int
    running: int
    is_draining: bool = False
    bundle_key: str = ""
    node: str = ""
    """Its machine's address and its process."""
    version: int = 0
    """The host counts what it says: what was said later counts."""
    figures: tuple[tuple[str, float], ...] = ()
    """For people and dashboards; nothing is decided by them."""

    @property
    def free(self) -> int:
        return 0 if self.is_draining else max(0, self.slots - self.running)


class _Room:
    """Hosts by how much room they have, so that the best is found among thousands at once."""

    def __init__(self) -> None:
        self._shelves: defaultdict[int, list[str]] = defaultdict(list)
        self._places: dict[str, tuple[int, int]] = {}
        """The shelf of each, and where on it."""

    def put(self, name: str, free: int) -> None:
        self.take(name)
        if free > 0:
            shelf = self._shelves[free]
            self._places[name] = (free, len(shelf))
            shelf.append(name)

    def take(self, name: str) -> None:
        place = self._places.pop(name, None)
        if place is None:
            return
        free, index = place
        shelf = self._shelves[free]
        last = shelf.pop()
        if last != name:
            shelf[index] = last
            self._places[last] = place
        if not shelf:
            del self._shelves[free]

    def best(self, draw: Callable[[], float], few: int) -> str | None:
        """Of few hosts the roomiest. Of many the roomier of any two: other gateways choose at this
        moment by views as old as this one, and would all choose the few that are the roomiest.
        """
        if not self._places:
            return None
        if len(self._places) <= few:
            return self._on(max(self._shelves), draw)
        return self._on(max(self._any_shelf(draw), self._any_shelf(draw)), draw)

    def _any_shelf(self, draw: Callable[[], float]) -> int:
        number = int(draw() * len(self._places))
        for free, shelf in self._shelves.items():
            number -= len(shelf)
            if number < 0:
                return free
        raise AssertionError("unreachable")

    def _on(self, free: int, draw: Callable[[], float]) -> str:
        shelf = self._shelves[free]
        return shelf[int(draw() * len(shelf))]


class Placement:
    """One gateway's view: what hosts said last, and what it has sent to each since."""

    def __init__(self, draw: Callable[[], float] = random.random, few: int = FEW) -> None:
        """``draw`` gives numbers from 0 to less than 1."""
        self._draw, self._few = draw, few
        self._room = _Room()
        self._hosts: dict[str, HostView] = {}
        self._bundles: Counter[str] = Counter()
        self._sent: Counter[str] = Counter()
        self._owners: OrderedDict[str, str] = OrderedDict()

    # ---- what is heard -----------------------------------------------------------------------

    def hear(self, view: HostView) -> None:
        before = self._hosts.get(view.name)
        if before is None or view.version >= before.version:
            if before is not None:
                self._bundles[before.bundle_key] -= 1
            self._bundles[view.bundle_key] += 1
            self._hosts[view.name] = view
            self._sort(view.name)

    def keep_only(self, names: Iterable[str]) -> None:
        """All other hosts are gone."""
        kept = set(names)
        for name in [name for name in self._hosts if name not in kept]:
            self._bundles[self._hosts.pop(name).bundle_key] -= 1
            del self._sent[name]
            self._room.take(name)

    def sent(self, host: str) -> None:
        """A session is on its way there, and its answer is awaited."""
        self._sent[host] += 1
        self._sort(host)

    def answered(self, host: str, view: HostView | None = None) -> None:
        self._sent[host] = max(0, self._sent[host] - 1)
        self._sort(host)
        if view is not None:
            self.hear(view)

    # ---- what is asked -----------------------------------------------------------------------

    @property
    def hosts(self) -> list[HostView]:
        return sorted(self._hosts.values(), key=lambda view: view.name)

    @property
    def free(self) -> int:
        return sum(self._free(view) for view in self._hosts.values())

    def find(self, name: str) -> HostView | None:
        return self._hosts.get(name)

    def best(self, bundle: str | None = None) -> str | None:
        """The host with the most room; among equals any, so that gateways do not all choose one.

        A session of one bundle waits for hosts that have it, if any have it; otherwise whoever is
        chosen says that it has another.
        """
        count = self._bundles[bundle] if bundle is not None else 0
        if count in (0, len(self._hosts)):
            return self._room.best(self._draw, self._few)
        fitting = [view for view in self._hosts.values() if view.bundle_key == bundle]
        roomiest = max(fitting, key=lambda view: (self._free(view), self._draw()))
        return roomiest.name if self._free(roomiest) else None

    def owner(self, session: str) -> str | None:
        return self._owners.get(session)

    def own(self, session: str, host: str) -> None:
        """Whatever concerns the session goes to this host from now on."""
        self._owners[session] = host
        self._owners.move_to_end(session)
        if len(self._owners) > _REMEMBERED:
            self._owners.popitem(last=False)

    def disown(self, session: str) -> None:
        self._owners.pop(session, None)

    def _sort(self, name: str) -> None:
        view = self._hosts.get(name)
        if view is not None:
            self._room.put(name, self._free(view))

    def _free(self, view: HostView) -> int:
        return max(0, view.free - self._sent[view.name])


@dataclass(frozen=True)
class Scaling:
    """How many hosts there should be."""

    least: int = 1
    most: int = 1
    spare: float = 0.2
    """This part of all slots is kept free: whoever comes does not wait for a machine to start."""
    shrink_at: float = 0.4
    """Hosts go when more than this part is free, so that it does not go to and fro."""

    def wanted(self, hosts: int, slots: int, running: int, waiting: int) -> int:
        """From what there is: hosts that run, their slots, and the sessions that run and wait."""
        if hosts == 0 or slots == 0:
            return max(self.least, 1 if waiting else 0)
        per_host = slots / hosts
        needed = math.ceil((running + waiting) / per_host / (1 - self.spare) - 1e-9)
        if needed > hosts or (slots - running - waiting) / slots > self.shrink_at:
            return min(max(needed, self.least), self.most)
        return min(max(hosts, self.least), self.most)


def facts_of(view: HostView) -> dict[str, object]:
    """As a host's routing stats carry it."""
    return {
        "name": view.name,
        "slots": view.slots,
        "running": view.running,
        "is_draining": view.is_draining,
        "bundle_key": view.bundle_key,
        "node": view.node,
        "version": view.version,
        "figures": dict(view.figures),
    }


def view_from(facts: Mapping[str, object]) -> HostView | None:
    """None where a host has not said anything yet."""
    if not facts:
        return None
    values = dict(facts)
    figures = values.pop("figures", {})
    assert isinstance(figures, dict)
    return HostView(**values, figures=tuple(figures.items()))  # type: ignore[arg-type]
