"""Pacing, prompts, cuts and drafts, with a clock that stands until it is moved."""

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from longlive_trt.serving.live.clock import VideoClock
from longlive_trt.serving.live.costs import Costs
from longlive_trt.serving.live.encoding import EncodedPicture, Encoding
from longlive_trt.serving.live.kept.recording import Recording
from longlive_trt.serving.live.maker import Maker
from longlive_trt.serving.live.plan import Idle, Make, Plan
from longlive_trt.serving.live.playhead import Playhead
from longlive_trt.serving.live.schedule import Cue, Schedule
from longlive_trt.serving.media.h264 import BlockEncoder, Sample
from longlive_trt.serving.media.mp4 import Timing
from longlive_trt.serving.problems import ProblemError
from longlive_trt.serving.settings import Pacing
from tests.fakes.live import FakeModel

CLOCK = VideoClock(Fraction(16), 3, 4)
BLOCK_S = 0.75


def test_blocks_and_pictures() -> None:
    assert [CLOCK.first_frame(block) for block in range(4)] == [0, 9, 21, 33]
    assert [CLOCK.frames_of(block) for block in range(3)] == [9, 12, 12]
    assert [CLOCK.block_of(frame) for frame in (0, 8, 9, 20, 21)] == [0, 0, 1, 1, 2]
    assert [CLOCK.block_from(frame) for frame in (0, 1, 9, 10, 21)] == [0, 1, 1, 2, 2]
    assert CLOCK.block_s == BLOCK_S and CLOCK.latent_frame(2) == 6
    assert CLOCK.pts_us(16) == 1_000_000


def test_a_video_that_is_made_for_itself_keeps_nothing_to_go_back_to(tmp_path: Path) -> None:
    """A checkpoint is as large as a session, and a whole video has hundreds of blocks."""
    plan = Plan(CLOCK, Pacing(), Costs(), [Cue(1, 0, "first")], end=20, paced=False)
    plan.playhead.pause(0.0)
    maker = Maker(FakeModel(), plan, 1, "exact", now=lambda: 0.0)
    for block in range(10):
        answer = plan.next_turn(0.0)
        assert not isinstance(answer, Idle)
        turn = answer[1]
        assert maker.make(turn) is not None and plan.finished(turn)
        plan.playhead.handed_out(CLOCK.first_frame(block), 0.0)
        assert len(maker._checkpoints) <= 1
    assert maker.save(tmp_path / "state", plan.settle(0.0)) == 10


# ---- what was shown --------------------------------------------------------------------------


def played(frames: int, now: float = 0.0) -> Playhead:
    playhead = Playhead(CLOCK)
    for frame in range(frames):
        playhead.handed_out(frame, now)
    return playhead


def test_without_news_the_video_runs_at_its_rate_until_it_runs_dry() -> None:
    playhead = played(21)
    assert playhead.shown(0.0) == 0 and playhead.shown(0.5) == 8 and playhead.shown(99) == 20
    playhead.handed_out(21, 10.0)
    # What was waited through is not made up for.
    assert playhead.shown(10.0) == 20 and playhead.shown(10.0625) == 21


def test_a_viewer_that_lags_or_leads_is_believed() -> None:
    playhead = played(60)
    playhead.report(2, 0.1)
    assert playhead.shown(0.6) == 10
    playhead.report(4, 1.0)
    assert playhead.shown(1.0) == 4
    playhead.report(9, 1.1)
    assert playhead.shown(1.1) == 9
    # Of two viewers, the one ahead counts.
    playhead.report(8, 1.15)
    assert playhead.shown(1.15) == 9


def test_a_viewer_that_swallows_pictures_does_not_make_time_go_faster() -> None:
    playhead = played(1000)
    for tenth in range(50):
        playhead.report(999, tenth / 10)
    assert 5 * 16 < playhead.shown(5.0) <= 5 * 16 + 8


def test_a_viewer_from_whom_nothing_is_heard_is_not_taken_to_go_on() -> None:
    playhead = played(200)
    playhead.report(16, 1.0)
    assert playhead.shown(100.0) == 16 + 24


def test_pictures_that_nobody_can_have_seen_are_not_believed() -> None:
    playhead = played(9)
    playhead.report(5000, 0.1)
    assert playhead.shown(5.0) == 8


def test_a_pause_holds_the_picture() -> None:
    playhead = played(100)
    playhead.pause(1.0)
    assert playhead.shown(50.0) == 16
    playhead.resume(50.0)
    assert playhead.shown(50.5) == 24
    playhead.pause(51.0)
    playhead.pause(52.0)
    assert playhead.shown(60.0) == 32


def test_what_is_about_to_be_shown_counts_as_seen() -> None:
    playhead = played(60)
    assert playhead.first_unseen(0.0, 0.12) == 1
    # At 0.5 s picture 8 is on screen, the last of block 0: a cut would come too late for block 1.
    assert playhead.first_unseen(0.5, 0.12) == 2
    assert Playhead(CLOCK).first_unseen(5.0, 0.12) == 0


# ---- the schedule ----------------------------------------------------------------------------


def test_a_schedule_says_what_a_change_undoes() -> None:
    schedule = Schedule((Cue(1, 0, "a"),))
    b, first = schedule.add(4, "b")
    assert (b.id, first) == (2, 4)
    assert schedule.edit(b, block=6)[1] == 4
    moved = schedule.find(2)
    assert moved is not None and schedule.edit(moved, block=3)[1] == 3
    moved = schedule.find(2)
    assert moved is not None and schedule.edit(moved, prompt="b")[1] is None
    assert schedule.edit(moved, prompt="c")[1] == 3
    cue = schedule.in_force(3)
    assert cue is not None and cue.prompt == "c"
    assert [one.prompt for one in schedule] == ["a", "c"]
    assert schedule.remove(cue) == 3 and len(schedule) == 1


def test_one_block_takes_one_prompt() -> None:
    schedule = Schedule((Cue(1, 0, "a"),))
    schedule.add(2, "b")
    schedule.add(2, "c")
    assert [cue.prompt for cue in schedule] == ["a", "c"]


# ---- the plan --------------------------------------------------------------------------------


@dataclass
class Film:
    """A plan and a maker, driven by hand; time moves when it is told to."""

    pacing: Pacing = field(default_factory=Pacing)
    model: FakeModel = field(default_factory=FakeModel)
    cues: tuple[Cue, ...] = (Cue(1, 0, "a red car"),)
    end: int | None = None
    now: float = 0.0
    shown: dict[int, Any] = field(default_factory=dict)
    outcomes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.costs = Costs()
        for stage, seconds in (("cycle", 0.1), ("block", 0.1), ("recache", 0.05)):
            self.costs.observe(stage, seconds)
        self.plan = Plan(CLOCK, self.pacing, self.costs, self.cues, end=self.end)
        self.plan.hidden.outcomes = self.outcomes.append
        self.maker = Maker(self.model, self.plan, 7, "exact", now=lambda: self.now)

    def turn(self) -> Make | None:
        answer = self.plan.next_turn(self.now)
        return None if isinstance(answer, Idle) else answer[1]

    def make(self, meanwhile: Any = None) -> bool:
        """One block, if one is to be made."""
        turn = self.turn()
        if turn is None:
            return False
        self.model.block_s = 1e-9 if meanwhile is not None else 0.0
        self.model.sleep = lambda _: meanwhile()
        made = self.maker.make(turn)
        self.model.block_s = 0.0
        if self.plan.finished(turn):
            self.hand_out(turn.block, made)
        return True

    def hand_out(self, block: int, made: Any) -> None:
        self.shown[block] = made.latents.tobytes()
        first = CLOCK.first_frame(block)
        for frame in range(first, first + CLOCK.frames_of(block)):
            self.plan.playhead.handed_out(frame, self.now)

    def fill(self) -> int:
        count = 0
        while self.make():
            count += 1
        return count

    def speculate(self) -> bool:
        draft = self.plan.draft_to_encode(self.now)
        if isinstance(draft, str):
            self.plan.draft_encoded(draft)
        turn = self.plan.next_speculation(self.now, float("inf"))
        if turn is None:
            return False
        result = self.maker.speculate(turn)
        return result is not None and self.plan.speculated(result)

    def interact(self, prompt: str, frame: int | None = None) -> Any:
        planned = self.plan.interact(prompt, self.now, frame=frame)
        if planned.cut is not None:
            self.forget(planned.cut.block)
        if planned.speculation is not None:
            self.hand_out(planned.speculation.block, planned.speculation.made)
        return planned

    def forget(self, block: int) -> None:
        self.shown = {number: bits for number, bits in self.shown.items() if number < block}

    def expected(self) -> dict[int, Any]:
        """The same video, made in one go from its recipe."""
        video = self.model.open(self.maker.seed, "exact")
        bits = {}
        for block in range(self.plan.made):
            cue = self.plan.schedule.starting_at(block)
            if cue is not None:
                video.prompt(cue.prompt)
            bits[block] = video.step().latents.tobytes()
        return bits


def test_two_blocks_are_made_ahead_and_no_more() -> None:
    film = Film()
    # The first, which is on screen as soon as it is there, and two more.
    assert film.fill() == 3
    film.now = 0.55
    assert film.fill() == 0
    film.now = 0.57
    assert film.fill() == 1
    answer = film.plan.next_turn(film.now)
    assert isinstance(answer, Idle) and answer.until is not None
    assert film.now < answer.until <= film.now + BLOCK_S + 0.01


@pytest.mark.parametrize("lead", [1, 2, 3])
def test_the_lead_is_a_setting(lead: int) -> None:
    film = Film(Pacing(lead_blocks=lead))
    film.fill()
    assert film.plan.made == lead + 1


def test_nothing_is_made_while_paused_once_the_lead_is_full() -> None:
    film = Film()
    film.fill()
    film.plan.playhead.pause(0.0)
    film.now = 60.0
    assert film.fill() == 0


def test_a_prompt_takes_back_what_nobody_has_seen() -> None:
    film = Film()
    film.fill()
    film.now = 0.2
    planned = film.interact("a blue boat")
    assert planned.cut is not None
    assert (planned.cue.block, planned.cut.frame, planned.cut.epoch) == (1, 9, 1)
    assert planned.in_s == pytest.approx((9 - 0.2 * 16) / 16)
    assert film.plan.made == 1
    film.fill()
    assert film.shown == film.expected()
    assert [prompt for _, prompt in film.model.made[-2:]] == ["a blue boat"] * 2


def test_a_prompt_that_comes_while_its_block_is_made_makes_it_anew() -> None:
    film = Film()
    film.fill()
    film.now = 0.6
    film.make(lambda: film.interact("a blue boat"))
    assert film.plan.epoch == 1
    film.fill()
    assert film.shown == film.expected()


def test_a_model_that_cannot_keep_up_finishes_its_block_first() -> None:
    film = Film()
    film.make()
    for _ in range(20):
        film.costs.observe("cycle", 1.5)
    film.now = 3.0
    planned: list[Any] = []
    film.make(lambda: planned.append(film.interact("a blue boat")))
    assert (planned[0].cue.block, planned[0].cut, film.plan.made) == (2, None, 2)
    film.fill()
    assert film.shown == film.expected()


def test_a_prompt_for_later_takes_nothing_back() -> None:
    film = Film()
    film.fill()
    planned = film.interact("a blue boat", frame=100)
    assert planned.cut is None and planned.cue.block == 9 and planned.frame == 105
    for _ in range(40):
        film.now += 0.25
        film.fill()
    assert film.shown == film.expected() and film.plan.epoch == 0


def test_a_cue_that_was_not_seen_can_be_moved_reworded_and_removed() -> None:
    film = Film()
    film.fill()
    cue = film.interact("a blue boat", frame=21).cue
    film.fill()
    assert cue.block == 2
    moved = film.plan.edit(cue.id, film.now, frame=60)
    film.forget(2)
    assert moved.cut is not None and moved.cut.block == 2 and moved.cue.block == 6
    assert film.plan.edit(cue.id, film.now, prompt="a white bird").cut is None
    film.fill()
    assert film.shown == film.expected()
    assert film.plan.remove(cue.id, film.now) is None
    assert len(film.plan.schedule) == 1


def test_what_was_seen_stays() -> None:
    film = Film()
    film.fill()
    film.now = 3.0
    with pytest.raises(ProblemError, match="on screen or past"):
        film.plan.edit(1, film.now, prompt="other")
    with pytest.raises(ProblemError, match="not on the timeline"):
        film.plan.remove(99, film.now)


def test_the_first_prompt_can_be_reworded_and_stays_the_first() -> None:
    film = Film()
    with pytest.raises(ProblemError, match="cannot be moved"):
        film.plan.edit(1, 0.0, frame=50)
    with pytest.raises(ProblemError, match="needs its first"):
        film.plan.remove(1, 0.0)
    assert film.plan.edit(1, 0.0, prompt="x").cue.prompt == "x"


def test_a_restart_begins_another_video() -> None:
    film = Film()
    film.fill()
    film.now = 2.0
    film.fill()
    cut = film.plan.restart(None, film.now)
    film.forget(0)
    film.maker.restart(8)
    assert (cut.block, cut.epoch, film.plan.made) == (0, 1, 0)
    film.fill()
    assert film.shown == film.expected() and film.maker.seed == 8


def test_prompts_end_somewhere() -> None:
    film = Film()
    film.plan._max_cues = 3
    film.interact("b", frame=100)
    film.interact("c", frame=200)
    with pytest.raises(ProblemError, match="at most 3 prompts"):
        film.interact("d")


def test_a_video_with_an_end_ends() -> None:
    film = Film(end=3)
    for _ in range(20):
        film.now += 0.5
        film.fill()
    assert film.plan.made == 3 and film.plan.is_finished


# ---- drafts ----------------------------------------------------------------------------------


def drafted(film: Film, prompt: str) -> None:
    film.plan.draft(prompt, film.now)
    film.now += 0.3


def test_a_draft_is_taken_up_when_the_keys_rest() -> None:
    film = Film()
    film.plan.draft("a b", 1.0)
    answer = film.plan.draft_to_encode(1.1)
    assert isinstance(answer, Idle) and answer.until == 1.25
    film.plan.draft("a bl", 1.2)
    assert isinstance(film.plan.draft_to_encode(1.3), Idle)
    assert film.plan.draft_to_encode(1.46) == "a bl"
    # Once.
    assert film.plan.draft_to_encode(1.5) == Idle(None)


def test_a_sent_draft_shows_what_was_made_in_secret() -> None:
    film = Film()
    film.fill()
    film.now = 0.6
    film.fill()
    drafted(film, "a blue boat")
    assert film.speculate()
    hidden = len(film.model.made)
    planned = film.interact("a blue boat")
    assert planned.speculation is not None and film.outcomes == ["promoted"]
    assert planned.in_s == pytest.approx(film.plan.playhead.due_in(planned.frame, film.now))
    assert len(film.model.made) == hidden
    film.fill()
    assert film.shown == film.expected()


@pytest.mark.parametrize("phase", [0.0, 0.2, 0.4, 0.6])
def test_a_hidden_block_is_ready_whenever_enter_comes(phase: float) -> None:
    """Where there is time for one in every block's time: 0.15 s of 0.75 s here."""
    film = Film()
    film.fill()
    drafted(film, "a blue boat")
    wait, period = 0.15, CLOCK.block_s
    end = film.now + 4 * period + phase * period
    while film.now < end:
        film.fill()
        if not film.speculate():
            film.now += 0.01
            continue
        film.now += wait
    planned = film.interact("a blue boat")
    assert planned.speculation is not None
    assert film.outcomes[-2:] in (["promoted", "discarded"], ["late", "promoted"])
    film.fill()
    assert film.shown == film.expected()


def test_two_hidden_blocks_are_kept_and_no_more() -> None:
    film = Film()
    film.fill()
    film.now = 0.6
    film.fill()
    drafted(film, "a blue boat")
    assert [film.speculate() for _ in range(3)] == [True, True, False]
    first = film.plan.hidden.first
    assert first is not None and first.block == film.plan.first_unseen(film.now)


def test_a_hidden_block_that_would_come_later_than_a_new_one_is_not_used() -> None:
    film = Film()
    film.fill()
    film.costs.observe("cycle", 0.9)
    drafted(film, "a blue boat")
    assert film.speculate() and film.plan.hidden.first is not None
    assert film.plan.hidden.first.block == 2
    for _ in range(4):
        film.costs.observe("cycle", 0.0)
    planned = film.interact("a blue boat")
    assert planned.cue.block == 1 and film.outcomes == ["early"]
    film.fill()
    assert film.shown == film.expected()


@pytest.mark.parametrize("what", ["other words", "nothing", "another prompt", "too late"])
def test_any_other_end_of_a_draft_leaves_no_trace(what: str) -> None:
    film = Film()
    film.fill()
    drafted(film, "a blue boat")
    assert film.speculate()
    if what == "other words":
        film.plan.draft("a blue boat at", film.now)
        outcome = "discarded"
    elif what == "nothing":
        film.plan.draft(None, film.now)
        outcome = "canceled"
    elif what == "another prompt":
        film.interact("a green car")
        outcome = "discarded"
    else:
        film.now += 1.5
        film.fill()
        film.interact("a blue boat")
        outcome = "late"
    film.fill()
    assert film.outcomes == [outcome]
    assert film.shown == film.expected()


def test_nothing_is_made_in_secret_without_time_to_spare() -> None:
    film = Film()
    film.costs.observe("cycle", 30.0)
    film.fill()
    drafted(film, "a blue boat")
    assert not film.speculate()


def test_speculation_can_be_switched_off() -> None:
    film = Film(Pacing(speculate=False))
    film.fill()
    drafted(film, "a blue boat")
    assert not film.speculate()


def test_what_is_shown_already_is_not_made_again() -> None:
    film = Film()
    film.fill()
    drafted(film, "a red car")
    assert not film.speculate()


# ---- everything at once ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_whatever_people_do_the_recipe_makes_the_same_bits(seed: int) -> None:
    chance = random.Random(seed)
    film = Film(Pacing(lead_blocks=chance.choice((1, 2, 3))))
    prompts = ["a red car", "a blue boat", "a green bird at night", "a white train"]

    def act() -> None:
        what = chance.random()
        if what < 0.35:
            frame = chance.choice((None, None, chance.randrange(200)))
            film.interact(chance.choice(prompts), frame)
        elif what < 0.6:
            film.plan.draft(chance.choice((None, *prompts)), film.now)
        elif what < 0.8 and len(film.plan.schedule) > 1:
            cue = chance.choice(list(film.plan.schedule))
            try:
                if chance.random() < 0.3:
                    cut = film.plan.remove(cue.id, film.now)
                else:
                    frame = chance.randrange(200)
                    cut = film.plan.edit(cue.id, film.now, frame=frame).cut
            except ProblemError:
                return
            if cut is not None:
                film.forget(cut.block)
        elif what < 0.9:
            (film.plan.playhead.pause if chance.random() < 0.4 else film.plan.playhead.resume)(
                film.now
            )
        else:
            film.plan.playhead.report(chance.randrange(250), film.now)

    for _ in range(150):
        film.now += chance.random() * 0.3
        if chance.random() < 0.25:
            act()
        if chance.random() < 0.8 and not film.make(act if chance.random() < 0.2 else None):
            film.speculate()
    film.fill()
    assert film.shown == film.expected()


# ---- what was made elsewhere before ------------------------------------------------------------


def resumed(begin: int, seen: int) -> Plan:
    return Plan(CLOCK, Pacing(), Costs(), [Cue(1, 0, "first")], begin=begin, seen=seen, epoch=5)


def made_until_idle(plan: Plan, now: float) -> list[int]:
    made = []
    while not isinstance(answer := plan.next_turn(now), Idle):
        _, turn = answer
        assert plan.begin_turn(turn) is not None and plan.finished(turn)
        for frame in range(CLOCK.first_frame(turn.block), CLOCK.first_frame(turn.block + 1)):
            plan.playhead.handed_out(frame, now)
        made.append(turn.block)
    return made


def test_blocks_that_were_seen_are_made_at_once_and_not_shown_again() -> None:
    """The state is of block 2, and viewers have all of block 5."""
    plan = resumed(begin=2, seen=CLOCK.first_frame(6))
    assert plan.playhead.shown(0.0) == CLOCK.first_frame(6) - 1
    # Those before are not paced, those after are made ahead as ever.
    assert made_until_idle(plan, 0.0) == [2, 3, 4, 5, 6, 7, 8]
    assert plan.playhead.shown(0.5) == CLOCK.first_frame(6) + 8


def test_nothing_that_was_seen_is_changed_by_a_prompt() -> None:
    plan = resumed(begin=2, seen=CLOCK.first_frame(6))
    planned = plan.interact("second", 0.0)
    assert (planned.cue.block, planned.cut, plan.epoch) == (6, None, 5)
    assert plan.first_unseen(0.0) == 6 and plan.settle(0.0) == 2


def test_what_a_state_was_made_of_is_not_taken_back() -> None:
    plan = resumed(begin=0, seen=0)
    made_until_idle(plan, 0.0)
    assert plan.made == 3 and not plan.hold(4) and plan.hold(3)
    planned = plan.interact("second", 0.0)
    assert planned.cue.block == 3 and planned.cut is None


def test_a_block_on_screen_keeps_its_pictures_when_what_follows_is_taken_back() -> None:
    """It is encoded picture by picture, and shown as soon: a prompt comes in its midst."""
    plan = resumed(begin=0, seen=0)
    made_until_idle(plan, 0.0)
    plan.playhead.report(10, 0.6)
    planned = plan.interact("second", 0.6)
    assert planned.cut is not None and planned.cut.block == 2
    assert plan.stands(1, 5) and not plan.stands(2, 5) and plan.stands(2, plan.epoch)
    plan.restart(None, 0.7)
    assert not plan.stands(0, 6) and not plan.stands(1, 5) and plan.stands(0, plan.epoch)


class SlowEncoder:
    """Gives a picture when it is told to."""

    def __init__(self) -> None:
        self.turn = threading.Semaphore(0)

    def encode(self, pixels: Any) -> Iterator[Sample]:
        for number, _ in enumerate(pixels):
            assert self.turn.acquire(timeout=5)
            yield Sample(bytes([number]), number == 0)


def test_pictures_of_a_block_that_stays_come_in_the_newest_epoch(tmp_path: Path) -> None:
    plan, encoder, came = resumed(begin=0, seen=0), SlowEncoder(), list[EncodedPicture]()
    # Time enough to make the next block anew before its turn.
    plan._costs.observe("cycle", 0.0)

    class Outlet:
        wants_jpeg = False

        def picture(self, picture: EncodedPicture) -> None:
            came.append(picture)

    def until(count: int) -> None:
        end = time.monotonic() + 5
        while len(came) < count:
            assert time.monotonic() < end
            time.sleep(0.002)

    stream = BlockEncoder(64, 48, Fraction(16)).facts
    recording = Recording(tmp_path / "samples", stream, Timing(Fraction(16)))
    failures: list[BaseException] = []
    encoding = Encoding(plan, encoder, recording, Outlet(), Costs(), on_failure=failures.append)  # type: ignore[arg-type]
    video = FakeModel().open(1, "exact")
    for block in (0, 1):
        _, turn = plan.next_turn(0.0)  # type: ignore[misc]
        assert plan.begin_turn(turn) is not None and plan.finished(turn)
        encoding.put(video.step(), block, plan.epoch)
    encoder.turn.release(4)
    until(4)
    # Nobody has seen block 1: it is made anew. Block 0 is on screen, and half of it encoded.
    plan.playhead.report(3, time.monotonic())
    planned = plan.interact("second", time.monotonic())
    assert planned.cut is not None and planned.cut.block == 1
    encoder.turn.release(20)
    until(9)
    encoding.close()
    assert failures == [] and [picture.frame for picture in came] == list(range(9))
    assert [picture.epoch for picture in came] == [5] * 4 + [6] * 5
    assert recording.frames == 9
    recording.close()
