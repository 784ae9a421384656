"""Several sessions on one engine, in a time that moves only while something is done.

Sessions, their plans, and whose turn it is are the server's own; the model takes as long as the
1.3B model does on an H200, and pictures come a while after their block.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av")

from longlive_trt.serving.live import session as sessions
from longlive_trt.serving.live.encoding import EncodedPicture
from longlive_trt.serving.live.load import Claim, Load
from longlive_trt.serving.live.session import LiveSession
from longlive_trt.serving.live.turns import Turn, Turns
from longlive_trt.serving.live.wish import Wish
from longlive_trt.serving.media.h264 import Sample
from longlive_trt.serving.settings import Pacing, Settings
from tests.fakes.live import FakeModel

BLOCK_S, RECACHE_S, DECODE_S = 0.218, 0.123, 0.045
"""Recomputing the cache, and its text; decoding beside the next block."""
ONE_PICTURE_S = 1 / 16
SPARE_S = 0.05
SETTLED_S = 5.0


class World:
    """Time, and what happens in it; stands in for the thread that makes blocks."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._turns = Turns()
        self.model = FakeModel(block_s=BLOCK_S, recache_s=RECACHE_S, sleep=self.sleep)

    def at(self, when: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), happens))

    def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            when, _, happens = heapq.heappop(self._events)
            self.now = max(self.now, when)
            happens()
        self.now = end

    def run(self, until: float) -> None:
        while self.now < until:
            turn = self._turns.choose(self.now)
            if isinstance(turn, Turn):
                self._turns.begin(turn, self.now)
                turn.work.run()
                self._turns.end()
            else:
                following = self._events[0][0] if self._events else until
                self.sleep(max(1e-6, min(turn, following) - self.now))

    # ---- as sessions know a generator --------------------------------------------------------

    def add(self, worker: Any) -> None:
        self._turns.add(worker)

    def remove(self, worker: Any) -> None:
        self._turns.remove(worker)

    def load(self, asking: Any) -> Load:
        return self._turns.load(asking, self.now)

    def wake(self) -> None:
        """It looks again by itself."""


@dataclass
class Viewer:
    """Shows pictures at their rate; what was waited through is not made up for."""

    world: World
    late: list[tuple[float, int]] = field(default_factory=list)
    """By how much each block's first picture came late, and which it was."""
    answers_s: list[float] = field(default_factory=list)
    """From Enter until the first new picture is on screen."""
    wants_jpeg = False
    _clock: float | None = None
    _asked: dict[int, float] = field(default_factory=dict)

    def picture(self, picture: EncodedPicture) -> None:
        if not picture.sample.is_key:
            return
        turn = picture.pts_us / 1e6
        if self._clock is None:
            self._clock = self.world.now - turn
        late = max(0.0, self.world.now - self._clock - turn)
        self._clock += late
        self.late.append((late, picture.block))
        asked = self._asked.pop(picture.block, None)
        if asked is not None:
            self.answers_s.append(self._clock + turn - asked)

    def asks(self, session: LiveSession) -> None:
        planned = session.interact(f"at {self.world.now:.6f}")
        self._asked = {block: s for block, s in self._asked.items() if block < planned.cue.block}
        self._asked[planned.cue.block] = self.world.now

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args: None


class LaterPictures:
    """In the place of the thread that encodes: pictures come a while after their block."""

    def __init__(self, plan: Any, _encoder: Any, _recording: Any, outlet: Viewer, costs: Any,
                 *, now: Callable[[], float], **_others: Any) -> None:  # fmt: skip
        self._plan, self._outlet, self._costs, self._now = plan, outlet, costs, now
        self.world = outlet.world

    def put(self, made: Any, block: int, epoch: int) -> None:
        self.world.at(self._now() + DECODE_S, lambda: self._come(made, block, epoch))

    def _come(self, made: Any, block: int, epoch: int) -> None:
        plan = self._plan
        if not plan.stands(block, epoch):
            return
        self._costs.observe("decode", DECODE_S)
        first = plan.clock.first_frame(block)
        for number in range(len(made.frames)):
            frame = first + number
            plan.playhead.handed_out(frame, self._now())
            sample, pts = Sample(b"", number == 0), plan.clock.pts_us(frame)
            self._outlet.picture(EncodedPicture(epoch, block, frame, pts, sample, None, False))

    def close(self) -> None: ...


class NoMeters:
    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args: None


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(sessions, "Encoding", LaterPictures)
    return World()


def opened(world: World, folder: Path, lead: int = 2) -> tuple[Viewer, LiveSession]:
    viewer = Viewer(world)
    settings = Settings(pacing=Pacing(lead_blocks=lead, speculate=False))
    session = LiveSession(
        world.model, world, Wish(prompt="a red car"), viewer, NoMeters(), settings, folder,  # type: ignore[arg-type]
        now=lambda: world.now,
    )  # fmt: skip
    return viewer, session


def asking(world: World, viewer: Viewer, session: LiveSession, seed: int) -> None:
    """A prompt every 2.5 to 3.5 s, at random."""
    chance = random.Random(seed)

    def ask() -> None:
        viewer.asks(session)
        world.at(world.now + 2.5 + chance.random(), ask)

    world.at(SETTLED_S + chance.random(), ask)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("viewers", [1, 2])
def test_sessions_run_in_real_time_while_prompts_come(
    world: World, tmp_path: Path, viewers: int, seed: int
) -> None:
    """Two sessions of 218 ms a block: no picture stands still for longer than its time."""
    watched = [opened(world, tmp_path) for _ in range(viewers)]
    for number, (viewer, session) in enumerate(watched):
        asking(world, viewer, session, seed * 10 + number)
    world.run(until=60.0)
    for viewer, session in watched:
        assert len(viewer.answers_s) > 15 and len(viewer.late) > 75
        assert max(viewer.late)[0] < ONE_PICTURE_S, viewer.late
        # One block on screen, the switch, and first the block that is being made, and the other's.
        switch = BLOCK_S + RECACHE_S + DECODE_S + SPARE_S
        most = 0.75 + switch + BLOCK_S + (viewers - 1) * (BLOCK_S + RECACHE_S)
        assert max(viewer.answers_s) < most
        session._close()
        session.discard()


def test_who_comes_later_is_not_opened_at_the_cost_of_who_runs(
    world: World, tmp_path: Path
) -> None:
    first = opened(world, tmp_path)
    world.model.opening_s = 1.0
    world.run(until=0.3)
    second = opened(world, tmp_path)
    world.run(until=10.0)
    for viewer, session in (first, second):
        assert max(viewer.late)[0] < ONE_PICTURE_S, viewer.late
        assert len(viewer.late) > 8
        session._close()
        session.discard()


def test_where_all_are_late_they_take_turns(world: World, tmp_path: Path) -> None:
    world.model.block_s = 0.9
    watched = [opened(world, tmp_path) for _ in range(3)]
    world.run(until=60.0)
    blocks = [len(viewer.late) for viewer, _ in watched]
    assert max(blocks) - min(blocks) <= 2 and min(blocks) > 18, blocks
    for _, session in watched:
        session._close()
        session.discard()


def test_room_is_what_makes_nothing_late() -> None:
    load = Load(1.0, (Claim(3.0, 1.0), Claim(1.5, 1.0)))
    # One of the others is late already; that is nobody's fault here.
    assert load.has_room_for(Claim(5.0, 1.0))
    assert not load.has_room_for(Claim(2.9, 1.0)), "the other would be late"
    assert not load.has_room_for(Claim(3.5, 1.0)), "it would be late itself"
    assert Load(1.0).has_room_for(Claim(2.0, 1.0)) and not Load(1.1).has_room_for(Claim(2.0, 1.0))
