"""A fleet of machines that are only imagined: time is a number, and nothing waits for it.

Where sessions go is decided by the very placement of the product; hosts, gateways, the store and
the people who come are modeled.
"""

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from longlive_trt.serving.cluster.placement import FEW, HostView, Placement

GB = 1e9


@dataclass(frozen=True)
class Scenario:
    gpus: int
    sessions: int
    """That come within the time."""
    seconds: float = 3600.0
    slots: int = 2
    gateways: int = 4
    hold_s: float = 600.0
    """How long people stay, on average; half of them leave within a third of it."""
    patience_s: float = 60.0
    line: int = 100
    """So many wait at a gateway; others are refused."""
    few: int = FEW
    stats_s: float = 1.0
    """How old what gateways know of hosts is, at most."""
    failures_per_gpu_hour: float = 1e-3
    """Machines that die, spot machines that are taken away without notice included."""
    start_s: float = 90.0
    """A machine's, before it has its bundle."""
    bundle_bytes: float = 8 * GB
    load_s: float = 20.0
    first_block_s: float = 0.9
    """Prompt, first block, its pictures."""
    speed: float = 2.0
    """Of a session that has nothing to wait for, as a multiple of its video's."""
    claim_s: float = 0.05
    state_bytes: float = 3.45 * GB
    save_every_s: float = 60.0
    """0 saves on drains only."""
    machine_bytes_per_s: float = 3 * GB
    """Of one machine from and to the store."""
    store_bytes_per_s: float = 100 * GB
    upgrade_at_s: float | None = 1200.0
    upgrade_batch: float = 0.05
    """This part of all hosts is emptied at a time."""
    seed: int = 1


@dataclass
class Counted:
    first_frame_s: list[float] = field(default_factory=list)
    pause_s: list[float] = field(default_factory=list)
    lost_s: list[float] = field(default_factory=list)
    """Of each session on a machine that died: how much of its video is made again."""
    outcomes: Counter[str] = field(default_factory=Counter)
    most_running: int = 0
    store_bytes: float = 0.0
    store_late_s: float = 0.0
    """The longest that anything waited for the store."""
    refused_by_hosts: int = 0
    """Placements by an old view: the host was full already."""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self._coming: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._coming, (self.now + seconds, self._number, act))

    def run(self, until: float) -> None:
        while self._coming and self._coming[0][0] <= until:
            self.now, _, act = heapq.heappop(self._coming)
            act()
        self.now = until


@dataclass(eq=False)
class Session:
    gateway: int
    leaves_at: float
    asked_at: float
    host: "Machine | None" = None
    saved_at: float = 0.0
    moving_since: float | None = None
    has_state: bool = False
    again_s: float = 0.0
    """Of its video that was seen and is not in its state."""
    is_over: bool = False


@dataclass(eq=False)
class Machine:
    name: str
    slots: int
    sessions: dict[Session, None] = field(default_factory=dict)
    """In their order: an hour is to be the same every time."""
    is_draining: bool = False
    is_up: bool = False
    version: int = 0
    boots: int = 0

    def view(self) -> HostView:
        return HostView(
            self.name, self.slots, len(self.sessions), self.is_draining, version=self.version
        )


class Store:
    """Takes its bytes one after the other; periodic states take their share all the time."""

    def __init__(self, scenario: Scenario, clock: Clock, counted: Counted) -> None:
        self._scenario, self._clock, self._counted = scenario, clock, counted
        self._free_at = 0.0
        self.running = 0

    @property
    def periodic_share(self) -> float:
        scenario = self._scenario
        if not scenario.save_every_s:
            return 0.0
        wanted = self.running * scenario.state_bytes / scenario.save_every_s
        return wanted / scenario.store_bytes_per_s

    @property
    def save_every_s(self) -> float:
        """What becomes of the interval where the store cannot keep up."""
        return self._scenario.save_every_s * max(1.0, self.periodic_share / 0.9)

    def move(self, size: float) -> float:
        """Seconds until so many bytes are there, or here."""
        scenario = self._scenario
        left = max(0.1, 1 - self.periodic_share) * scenario.store_bytes_per_s
        begins = max(self._clock.now, self._free_at)
        self._free_at = begins + size / left
        late = begins - self._clock.now
        self._counted.store_late_s = max(self._counted.store_late_s, late)
        self._counted.store_bytes += size
        return max(self._free_at - self._clock.now, size / scenario.machine_bytes_per_s)


class World:
    def __init__(self, scenario: Scenario) -> None:
        self.scenario, self.clock, self.counted = scenario, Clock(), Counted()
        self.random = random.Random(scenario.seed)  # noqa: S311
        self.store = Store(scenario, self.clock, self.counted)
        self.machines = [Machine(f"gpu-{n}", scenario.slots) for n in range(scenario.gpus)]
        self.views = [Placement(self.random.random, scenario.few) for _ in range(scenario.gateways)]
        self.lines: list[deque[Session]] = [deque() for _ in self.views]
        self.moving: deque[Session] = deque()
        self._changed: dict[Machine, None] = {}
        self._running = 0

    def run(self) -> Counted:
        scenario = self.scenario
        for machine in self.machines:
            self._up(machine)
        self._refresh()
        self._come(scenario.sessions / scenario.seconds)
        for machine in self.machines:
            self._plan_failure(machine)
        if scenario.upgrade_at_s is not None:
            self.clock.after(scenario.upgrade_at_s, lambda: self._upgrade(0))
        self.clock.run(scenario.seconds)
        return self.counted

    # ---- people ------------------------------------------------------------------------------

    def _come(self, per_second: float) -> None:
        scenario, now = self.scenario, self.clock.now
        hold = self.random.lognormvariate(0, 1.5) * scenario.hold_s / 3.08
        gateway = self.random.randrange(scenario.gateways)
        session = Session(gateway, now + hold, now)
        if now > 0:
            self.counted.outcomes["came"] += 1
            line = self.lines[gateway]
            if len(line) >= scenario.line:
                self.counted.outcomes["refused"] += 1
            else:
                line.append(session)
                self._serve(gateway)
                self.clock.after(scenario.patience_s, lambda: self._lose_patience(session))
        self.clock.after(self.random.expovariate(per_second), lambda: self._come(per_second))

    def _lose_patience(self, session: Session) -> None:
        line = self.lines[session.gateway]
        if session.host is None and not session.is_over and session in line:
            line.remove(session)
            session.is_over = True
            self.counted.outcomes["gave up waiting"] += 1

    def _leave(self, session: Session) -> None:
        if session.is_over:
            return
        session.is_over = True
        self.counted.outcomes["left by themselves"] += 1
        if session.host is not None:
            self._free(session)
        elif session in self.moving:
            self.moving.remove(session)

    # ---- gateways ----------------------------------------------------------------------------

    def _refresh(self) -> None:
        """What hosts said within the last second reaches every gateway."""
        for machine in self._changed:
            view = machine.view()
            for placement in self.views:
                placement.hear(view if machine.is_up else _gone(view))
        self._changed.clear()
        for gateway in range(len(self.views)):
            self._serve(gateway)
        self.clock.after(self.scenario.stats_s, self._refresh)

    def _serve(self, gateway: int) -> None:
        placement, line = self.views[gateway], self.lines[gateway]
        while (self.moving or line) and (name := placement.best()) is not None:
            machine = self.machines[int(name[4:])]
            has_room = machine.is_up and not machine.is_draining
            if not has_room or len(machine.sessions) >= machine.slots:
                # The host says so, and how it stands.
                self.counted.refused_by_hosts += 1
                placement.hear(machine.view() if machine.is_up else _gone(machine.view()))
                continue
            session = self.moving.popleft() if self.moving else line.popleft()
            self._take(machine, session)
            placement.hear(machine.view())

    def _take(self, machine: Machine, session: Session) -> None:
        scenario, now = self.scenario, self.clock.now
        session.host = machine
        machine.sessions[session] = None
        self._said(machine)
        self._count(1)
        if session.moving_since is not None:
            self._resume(session, session.moving_since)
            return
        waited = now - session.asked_at
        self.counted.first_frame_s.append(waited + scenario.claim_s + scenario.first_block_s)
        self.counted.outcomes["began"] += 1
        session.leaves_at += waited
        session.saved_at = now
        self.clock.after(session.leaves_at - now, lambda: self._leave(session))

    def _resume(self, session: Session, since: float) -> None:
        """With its state fetched, and what was seen made again."""
        scenario = self.scenario
        fetched = self.store.move(scenario.state_bytes) if session.has_state else 0.0
        again = session.again_s / scenario.speed
        waited = self.clock.now - since
        pause = waited + scenario.claim_s + fetched + again + scenario.first_block_s
        self.counted.pause_s.append(pause)
        self.counted.outcomes["moves"] += 1
        session.moving_since, session.again_s = None, 0.0
        session.saved_at = self.clock.now

    # ---- machines ----------------------------------------------------------------------------

    def _up(self, machine: Machine) -> None:
        machine.is_up, machine.is_draining = True, False
        self._said(machine)

    def _boot(self, machine: Machine) -> None:
        scenario = self.scenario
        machine.is_up = False
        machine.boots += 1
        boot = machine.boots
        self._said(machine)

        def pull() -> None:
            took = self.store.move(scenario.bundle_bytes) + scenario.load_s
            self.clock.after(took, lambda: self._up(machine) if machine.boots == boot else None)

        self.clock.after(scenario.start_s, pull)

    def _plan_failure(self, machine: Machine) -> None:
        rate = self.scenario.failures_per_gpu_hour / 3600
        if rate:
            self.clock.after(self.random.expovariate(rate), lambda: self._die(machine))

    def _die(self, machine: Machine) -> None:
        self._plan_failure(machine)
        if not machine.is_up:
            return
        self.counted.outcomes["machines that died"] += 1
        for session in list(machine.sessions):
            since = self.clock.now - session.saved_at
            every = self.store.save_every_s
            session.again_s = since % every if every else since
            self.counted.lost_s.append(session.again_s)
            self._displace(session, has_state=since > every > 0)
        self._boot(machine)

    def _upgrade(self, first: int) -> None:
        """Batch after batch: emptied, started anew; the next when these are up."""
        size = max(1, int(len(self.machines) * self.scenario.upgrade_batch))
        batch = self.machines[first : first + size]
        if not batch:
            self.counted.outcomes["upgraded after s"] = round(self.clock.now)
            return
        for machine in batch:
            self._drain(machine)
        self._await_batch(batch, first + size)

    def _await_batch(self, batch: list[Machine], following: int) -> None:
        if all(machine.is_up and not machine.is_draining for machine in batch):
            self._upgrade(following)
        else:
            self.clock.after(5, lambda: self._await_batch(batch, following))

    def _drain(self, machine: Machine) -> None:
        if not machine.is_up:
            return
        machine.is_draining = True
        self._said(machine)
        saved = 0.0
        for session in list(machine.sessions):
            saved = max(saved, self.store.move(self.scenario.state_bytes))
            self.clock.after(saved, lambda one=session: self._give_away(one, machine))  # type: ignore[misc]
        self.clock.after(saved + 1e-3, lambda: self._boot(machine))

    def _give_away(self, session: Session, machine: Machine) -> None:
        if not session.is_over and session.host is machine:
            session.saved_at = self.clock.now
            self._displace(session, has_state=True)

    def _displace(self, session: Session, *, has_state: bool) -> None:
        self._free(session)
        session.has_state, session.moving_since = has_state, self.clock.now
        self.moving.append(session)
        self._serve(session.gateway)

    def _free(self, session: Session) -> None:
        machine = session.host
        assert machine is not None
        machine.sessions.pop(session, None)
        session.host = None
        self._said(machine)
        self._count(-1)

    def _said(self, machine: Machine) -> None:
        machine.version += 1
        self._changed[machine] = None

    def _count(self, change: int) -> None:
        self._running += change
        self.store.running = self._running
        self.counted.most_running = max(self.counted.most_running, self._running)


def _gone(view: HostView) -> HostView:
    return HostView(view.name, 0, 0, version=view.version)
