"""What a session will do next, and what it takes back: the bookkeeping that several threads share.

No tensor and no thread is known here; every call says what time it is. One lock is held shortly,
and never while a block is made.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from longlive_trt.serving.live.clock import VideoClock
from longlive_trt.serving.live.costs import Costs
from longlive_trt.serving.live.hidden import HiddenBlocks, Speculation
from longlive_trt.serving.live.load import Claim, Load
from longlive_trt.serving.live.playhead import Playhead
from longlive_trt.serving.live.schedule import Cue, Schedule
from longlive_trt.serving.problems import ProblemError
from longlive_trt.serving.settings import Pacing

_SPARE_S = 0.05
_MOST_CUTS = 256


@dataclass(frozen=True)
class Make:
    """The next block."""

    block: int
    cue: Cue | None
    epoch: int


@dataclass(frozen=True)
class Speculate:
    """A block under a draft, which nobody sees unless the draft is sent."""

    block: int
    prompt: str
    epoch: int


@dataclass(frozen=True)
class Idle:
    """Nothing to do before then; None is until something happens."""

    until: float | None


@dataclass(frozen=True)
class Cut:
    """Everything from this block on was taken back."""

    block: int
    frame: int
    epoch: int
    reason: str


@dataclass(frozen=True)
class Adopt:
    """A hidden block became the video's; here is the state that follows it."""

    speculation: Speculation


@dataclass(frozen=True)
class Planned:
    """What an interaction comes to."""

    cue: Cue
    frame: int
    in_s: float
    cut: Cut | None
    speculation: Speculation | None = None


_Result = TypeVar("_Result")


class Plan:
    def __init__(
        self,
        clock: VideoClock,
        pacing: Pacing,
        costs: Costs,
        cues: Sequence[Cue],
        *,
        begin: int = 0,
        end: int | None = None,
        paced: bool = True,
        max_cues: int = 500,
        epoch: int = 0,
        seen: int = 0,
    ) -> None:
        """``begin`` and ``end`` are blocks: the first to be made, and the one after the last.

        Pictures before ``seen`` were seen already, where the video was made before: their blocks
        are made again, at once, and nobody is shown them.
        """
        self.clock, self._pacing, self._costs = clock, pacing, costs
        self.schedule = Schedule(tuple(cues))
        self.playhead = Playhead(clock, max(seen, clock.first_frame(begin)))
        self.begin, self.end, self.made = begin, end, begin
        self._settled = clock.block_of(self.playhead.begin)
        self.epoch = epoch
        self.lock = threading.RLock()
        self._paced, self._max_cues = paced, max_cues
        self._in_flight: Make | None = None
        self._edits: list[Cut | Adopt] = []
        self._cuts: deque[Cut] = deque(maxlen=_MOST_CUTS)
        self._draft: str | None = None
        self._draft_s = 0.0
        self._draft_state = "none"
        self.hidden = HiddenBlocks()
        self.rollbacks: Callable[[str], None] = lambda _reason: None

    # ---- what people ask for -----------------------------------------------------------------

    def interact(
        self,
        prompt: str,
        now: float,
        *,
        frame: int | None = None,
        event_id: str | None = None,
        load: Load | None = None,
    ) -> Planned:
        """A new prompt, from the first block on that nobody has seen and that can be made in time
        (:meth:`_place`), or from a later picture. ``load`` is what others want made.
        """
        with self.lock:
            self._require_room()
            if frame is None:
                block = self._place(now, load or Load(now))
            else:
                block = max(self.first_unseen(now), self.clock.block_from(frame))
            hidden = self._take_hidden(prompt, block, now) if frame is None else None
            if hidden is not None:
                block = hidden.block
            cue, changed = self.schedule.add(block, prompt, event_id=event_id, now=now)
            cut = self._take_back(changed, "prompt", now)
            self._draft, self._draft_state = None, "none"
            if hidden is not None:
                self._adopt(hidden)
            return self._planned(cue, cut, hidden, now)

    def edit(
        self, cue_id: int, now: float, *, prompt: str | None = None, frame: int | None = None
    ) -> Planned:
        with self.lock:
            cue = self._changeable(cue_id, now)
            unseen = self.first_unseen(now)
            block = None if frame is None else max(unseen, self.clock.block_from(frame))
            if cue.block == self.begin and block not in (None, cue.block):
                raise ProblemError("conflict", "The first prompt of a video cannot be moved.")
            changed, first = self.schedule.edit(cue, prompt=prompt, block=block)
            cut = None if first is None else self._take_back(first, "timeline", now)
            return self._planned(changed, cut, None, now)

    def remove(self, cue_id: int, now: float) -> Cut | None:
        with self.lock:
            cue = self._changeable(cue_id, now)
            if cue.block == self.begin:
                raise ProblemError("conflict", "A video needs its first prompt; send another one.")
            return self._take_back(self.schedule.remove(cue), "timeline", now)

    def restart(self, prompt: str | None, now: float) -> Cut:
        """From the first block on, with the prompt in force; what was planned is forgotten."""
        with self.lock:
            block = self.clock.block_of(max(0, self.playhead.shown(now)))
            cue = self.schedule.in_force(block)
            text = prompt if prompt is not None else (cue.prompt if cue else "")
            self.schedule = Schedule((Cue(1, 0, text, None, now),))
            self.hidden.drop("discarded")
            self._in_flight = None
            self.begin = self.made = self._settled = 0
            self.epoch += 1
            paused = self.playhead.paused
            self.playhead = Playhead(self.clock, 0)
            self.playhead.paused = paused
            self._edits.clear()
            cut = Cut(0, 0, self.epoch, "restart")
            self._edits.append(cut)
            self._cuts.append(cut)
            self.rollbacks("restart")
            return cut

    def draft(self, prompt: str | None, now: float) -> None:
        with self.lock:
            if prompt == self._draft:
                return
            self._draft, self._draft_s = prompt or None, now
            self._draft_state = "typing" if self._draft else "none"
            self.hidden.drop_others(self._draft, "discarded" if self._draft else "canceled")

    # ---- what the thread that makes blocks asks ----------------------------------------------

    def next_turn(self, now: float) -> tuple[float, Make] | Idle:
        """The next block and when its first picture is due; or how long there is nothing to do."""
        with self.lock:
            if self._in_flight is not None or self.is_finished:
                return Idle(None)
            due = now + self.playhead.due_in(self.clock.first_frame(self.made), now)
            turn = Make(self.made, self.schedule.starting_at(self.made), self.epoch)
            if not self._paced:
                return (now + 3600, turn)
            showing = self.clock.block_of(max(self.playhead.shown(now), self.playhead.begin))
            started = self.playhead.shown(now) >= self.playhead.begin
            ahead = self.made - showing - (1 if started else 0)
            if ahead < self._pacing.lead_blocks:
                return (due, turn)
            if self.playhead.paused:
                return Idle(None)
            return Idle(now + self.playhead.due_in(self.clock.first_frame(showing + 1), now) + 1e-3)

    def claim(self, now: float) -> Claim | None:
        """What is wanted of the thread that makes blocks, as others have to reckon with it."""
        answer = self.next_turn(now)
        if isinstance(answer, Idle):
            return None
        due, turn = answer
        takes_s = self._costs.turn_s(is_switch=turn.cue is not None)
        return Claim(due - self._costs.of("decode"), takes_s)

    def draft_to_encode(self, now: float) -> str | Idle:
        """A draft whose writer has paused; asked until it is told that it was taken."""
        with self.lock:
            if self._draft is None or self._draft_state != "typing":
                return Idle(None)
            quiet = self._draft_s + self._pacing.quiet_s
            if now < quiet:
                return Idle(quiet)
            self._draft_state = "encoding"
            return self._draft

    def draft_encoded(self, prompt: str) -> None:
        with self.lock:
            if prompt == self._draft:
                self._draft_state = "encoded"

    def next_speculation(self, now: float, spare_s: float) -> Speculate | None:
        """A hidden block, if the draft is encoded and there is time before anything is due."""
        with self.lock:
            if not self._pacing.speculate or self._draft is None or self.playhead.paused:
                return None
            if self._draft_state != "encoded" or self._in_flight or self.made <= self.begin:
                return None
            cost = self._costs.switch_s() + _SPARE_S
            if cost > min(spare_s, self.slack(now)):
                return None
            unseen = self.first_unseen(now)
            self.hidden.drop("late", before=unseen)
            block = self.hidden.place_for(unseen, self.first_unseen(now + cost), self.made)
            if block is None or block <= self.begin:
                return None
            in_force = self.schedule.in_force(block)
            if in_force is not None and in_force.prompt == self._draft:
                return None
            return Speculate(block, self._draft, self.epoch)

    def slack(self, now: float) -> float:
        """Seconds until the next block has to be begun."""
        with self.lock:
            if self.is_finished or self.playhead.paused:
                return math.inf
            due = self.playhead.due_in(self.clock.first_frame(self.made), now)
            return due - self._costs.block_s()

    def begin_turn(self, turn: Make | Speculate) -> list[Cut | Adopt] | None:
        """What changed before it, to be followed first; None if the turn has become void.

        Changes that come from now on are followed with the next turn, not in the midst of this one.
        """
        with self.lock:
            if turn.epoch != self.epoch:
                return None
            if isinstance(turn, Make):
                # A hidden block may have taken its place.
                if turn.block != self.made:
                    return None
                self._in_flight = turn
            return self.take_edits()

    def finished(self, turn: Make) -> bool:
        """Whether the block that was made is still wanted."""
        with self.lock:
            if self._in_flight is turn:
                self._in_flight = None
            if turn.epoch != self.epoch or turn.block != self.made:
                return False
            self.made += 1
            return True

    def speculated(self, result: Speculation) -> bool:
        with self.lock:
            wanted = result.epoch == self.epoch and result.prompt == self._draft
            if wanted:
                self.hidden.add(result)
            else:
                self.hidden.outcomes("discarded")
            return wanted

    def take_edits(self) -> list[Cut | Adopt]:
        with self.lock:
            edits, self._edits = self._edits, []
            return edits

    def close(self) -> None:
        """Nothing more is made: hidden blocks go, with their pictures and the states after them."""
        with self.lock:
            self._draft, self._draft_state = None, "none"
            self.hidden.drop("discarded")
            self._edits.clear()

    def first_unseen(self, now: float) -> int:
        with self.lock:
            limit = self.made + (1 if self._in_flight else 0)
            if not self._paced:
                # A video that is made for itself is never taken back.
                return limit
            unseen = self.playhead.first_unseen(now, self._pacing.margin_s)
            return max(min(unseen, limit), self._settled)

    def settle(self, now: float) -> int:
        """What was seen until now stays, whatever viewers say later; gives the first unseen."""
        with self.lock:
            self._settled = max(self._settled, min(self.first_unseen(now), self.made))
            return min(self._settled, self.made)

    def hold(self, block: int) -> bool:
        """Never take back what comes before a block; False where it was taken back already."""
        with self.lock:
            if block > self.made:
                return False
            self._settled = max(self._settled, block)
            return True

    def stands(self, block: int, epoch: int) -> bool:
        """Whether a block that was made in an epoch was not taken back since."""
        with self.lock:
            return all(cut.block > block for cut in self._cuts if cut.epoch > epoch)

    @property
    def is_finished(self) -> bool:
        return self.end is not None and self.made >= self.end

    def locked(self, ask: Callable[[], _Result]) -> _Result:
        with self.lock:
            return ask()

    @property
    def draft_state(self) -> str:
        return self._draft_state

    # ---- inside ------------------------------------------------------------------------------

    def _take_back(self, block: int, reason: str, now: float) -> Cut | None:
        """Blocks from here on are made anew; None where none was made yet."""
        self.hidden.drop("discarded", since=block)
        if block >= self.made + (1 if self._in_flight else 0):
            return None
        self.made = min(self.made, block)
        self.epoch += 1
        self._in_flight = None
        frame = self.clock.first_frame(block)
        self.playhead.cut(frame, now)
        cut = Cut(block, frame, self.epoch, reason)
        self._edits.append(cut)
        self._cuts.append(cut)
        self.rollbacks(reason)
        return cut

    def _place(self, now: float, load: Load) -> int:
        """The first block that nobody has seen. If it was made, or is being made, and its answer
        would be late for its turn, it is shown meanwhile, and the answer is the next one: so no
        picture stands still.
        """
        unseen = self.first_unseen(now)
        is_there = unseen < self.made + (1 if self._in_flight else 0)
        if not is_there or unseen <= self.begin or self.playhead.paused:
            return unseen
        turn_s = now + self.playhead.due_in(self.clock.first_frame(unseen), now)
        due_s = turn_s - self._costs.of("decode") - _SPARE_S
        answer = Claim(due_s, self._costs.turn_s(is_switch=True))
        return unseen if load.has_room_for(answer) else unseen + 1

    def _take_hidden(self, prompt: str, place: int, now: float) -> Speculation | None:
        """The hidden block, where it is on screen at least as early as one made now."""
        self.hidden.drop_others(prompt, "discarded")
        self.hidden.drop("late", before=self.first_unseen(now))
        hidden = self.hidden.first
        if hidden is None:
            return None
        first_frame, due_in = self.clock.first_frame, self.playhead.due_in
        made_now = max(due_in(first_frame(place), now), self._costs.switch_s())
        if due_in(first_frame(hidden.block), now) > made_now:
            self.hidden.drop("early")
            return None
        return self.hidden.take()

    def _adopt(self, hidden: Speculation) -> None:
        assert self.made == hidden.block
        self.made = hidden.block + 1
        self._edits.append(Adopt(hidden))

    def _planned(
        self, cue: Cue, cut: Cut | None, hidden: Speculation | None, now: float
    ) -> Planned:
        frame = self.clock.first_frame(cue.block)
        turn = self.playhead.due_in(frame, now)
        wait = 0.0 if hidden else self._costs.switch_s() if cue.block >= self.made else 0.0
        if self.playhead.paused:
            turn = wait
        return Planned(cue, frame, max(turn, wait), cut, hidden)

    def _changeable(self, cue_id: int, now: float) -> Cue:
        cue = self.schedule.find(cue_id)
        if cue is None:
            raise ProblemError("not_found", "That prompt is not on the timeline any more.")
        if cue.block < self.first_unseen(now):
            raise ProblemError(
                "conflict", "That prompt is on screen or past, so it cannot be changed any more."
            )
        return cue

    def _require_room(self) -> None:
        if len(self.schedule) >= self._max_cues:
            raise ProblemError(
                "rate_limited",
                f"A video holds at most {self._max_cues} prompts. Save the state and resume it, "
                "or start a new video.",
            )
