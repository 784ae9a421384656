"""A live video: a plan that people change, a thread that carries it out, pictures that come out."""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from longlive_trt.serving.engine import LiveModel, MadeBlock
from longlive_trt.serving.live.clock import VideoClock
from longlive_trt.serving.live.costs import Costs
from longlive_trt.serving.live.encoding import EncodedPicture, Encoding
from longlive_trt.serving.live.generator import Generator
from longlive_trt.serving.live.kept.latents import KeptLatents
from longlive_trt.serving.live.kept.recording import Recording
from longlive_trt.serving.live.load import Claim
from longlive_trt.serving.live.maker import Maker
from longlive_trt.serving.live.plan import Cut, Idle, Make, Plan, Planned, Speculate
from longlive_trt.serving.live.recipe import SavedVideo
from longlive_trt.serving.live.schedule import Cue
from longlive_trt.serving.live.turns import Work
from longlive_trt.serving.live.wish import Known, Wish, require_decoder
from longlive_trt.serving.media.h264 import BlockEncoder
from longlive_trt.serving.media.mp4 import Timing
from longlive_trt.serving.settings import Settings

_PREPARED = 2
"""Prompts of a timeline that are encoded at once; the others when the one before is made."""


class Observer(Protocol):
    """Who is told what happens; called from several threads."""

    def picture(self, picture: EncodedPicture) -> None: ...

    @property
    def wants_jpeg(self) -> bool: ...

    def cut(self, cut: Cut) -> None: ...

    def applied(self, cue: Cue, epoch: int) -> None: ...

    def notice(self, text: str) -> None:
        """Something that a person may want to know."""
        ...

    def changed(self) -> None:
        """The timeline, or what is known of its cues."""
        ...

    def finished(self) -> None:
        """The last block was made."""
        ...

    def failed(self, error: BaseException) -> None: ...


class Meters(Protocol):
    """Where figures go that concern all sessions."""

    def block(self, stage: str, seconds: float) -> None: ...

    def rollback(self, reason: str) -> None: ...

    def speculation(self, outcome: str) -> None: ...


@dataclass
class _Operation:
    run: Callable[[], Any]
    result: "Future[Any]" = field(default_factory=Future)


class LiveSession:
    """Safe to be called from any thread."""

    def __init__(
        self,
        model: LiveModel,
        generator: Generator,
        wish: Wish,
        observer: Observer,
        meters: Meters,
        settings: Settings,
        folder: Path,
        *,
        now: Callable[[], float] = time.monotonic,
        on_block: Callable[[int, MadeBlock], None] = lambda _block, _made: None,
    ) -> None:
        facts, saved, known = model.facts, wish.saved, wish.known
        self.id = known.id if known else secrets.token_urlsafe(12)
        self.clock = VideoClock(facts.fps, facts.block_latents, facts.temporal_factor)
        self.switch = saved.switch if saved else wish.switch
        self.costs = Costs()
        self.bundle_key = facts.bundle_key
        self._model, self._generator, self._observer = model, generator, observer
        self._meters, self._now, self._on_block = meters, now, on_block
        begin = saved.block if saved else 0
        self.resumed_at = self.clock.first_frame(begin)
        self.plan = Plan(
            self.clock,
            settings.pacing,
            self.costs,
            self._first_cues(wish),
            begin=begin,
            end=self._end(wish.frames, begin, facts.blocks, known),
            paced=wish.paced,
            max_cues=settings.limits.cues,
            epoch=known.epoch if known else 0,
            seen=known.frame if known else 0,
        )
        self.plan.hidden.outcomes, self.plan.rollbacks = meters.speculation, meters.rollback
        self._maker = Maker(
            model,
            self.plan,
            saved.seed if saved else wish.seed,
            self.switch,
            state=saved.path if saved else None,
            now=now,
        )
        self._maker.decoder = wish.decoder
        encoder = BlockEncoder(facts.width, facts.height, facts.fps)
        self.stream = encoder.facts
        self.timing = Timing(facts.fps)
        path = folder / f"{secrets.token_hex(16)}.samples"
        recorded = known.recorded if known else ()
        first = self.resumed_at - len(recorded)
        self.recording = Recording(
            path, self.stream, self.timing, first, settings.limits.recording_bytes
        )
        for number, sample in enumerate(recorded):
            self.recording.add(first + number, sample)
        self.latents: KeptLatents | None = None
        if len(facts.decoders) > 1:
            self.latents = KeptLatents(
                path.with_name(f"{path.stem}-latents"), begin, settings.limits.latents_bytes
            )
        self._encoding = Encoding(
            self.plan,
            encoder,
            self.recording,
            observer,
            self.costs,
            latents=self.latents,
            jpeg_quality=settings.jpeg_quality,
            on_block=self._block_is_out,
            on_failure=self.fail,
            now=now,
        )
        self._operations: deque[_Operation] = deque()
        for cue in list(self.plan.schedule)[:_PREPARED]:
            self._encode_beside(cue.prompt)
        self._is_closed = False
        self.restarts = 0
        self._told_end = False
        # Until then, whoever runs already is made blocks for first: opening may take long.
        self._opening_s = now() + (settings.pacing.lead_blocks + 1) * self.clock.block_s
        self._closing = threading.Lock()
        generator.add(self)

    # ---- what people do ----------------------------------------------------------------------

    @property
    def seed(self) -> int:
        return self._maker.seed

    def interact(
        self, prompt: str, *, frame: int | None = None, event_id: str | None = None
    ) -> Planned:
        self._encode_beside(prompt)
        load = self._generator.load(self)
        with self.plan.lock:
            planned = self.plan.interact(
                prompt, self._now(), frame=frame, event_id=event_id, load=load
            )
            self._after_change(planned.cut)
        if planned.speculation is not None:
            self._observer.applied(planned.cue, self.plan.epoch)
            self._encoding.reveal(planned.speculation, self.plan.epoch)
        return planned

    def edit(self, cue: int, *, prompt: str | None = None, frame: int | None = None) -> Planned:
        if prompt is not None:
            self._encode_beside(prompt)
        with self.plan.lock:
            planned = self.plan.edit(cue, self._now(), prompt=prompt, frame=frame)
            self._after_change(planned.cut)
            return planned

    def remove(self, cue: int) -> None:
        with self.plan.lock:
            self._after_change(self.plan.remove(cue, self._now()))

    def draft(self, prompt: str | None) -> None:
        self.plan.draft(prompt, self._now())
        self._generator.wake()

    def shown(self, epoch: int, frame: int) -> None:
        with self.plan.lock:
            if epoch == self.plan.epoch:
                self.plan.playhead.report(frame, self._now())
        self._generator.wake()

    def pause(self) -> None:
        with self.plan.lock:
            self.plan.playhead.pause(self._now())

    def resume(self) -> None:
        with self.plan.lock:
            self.plan.playhead.resume(self._now())
        self._generator.wake()

    def use_decoder(self, name: str) -> None:
        """From the next block on that is made."""
        require_decoder(self._model.facts, name)
        self._maker.decoder = name

    @property
    def decoder(self) -> str:
        maker = self._maker
        return maker.decoder or maker.decoder_in_use or self._model.facts.decoders[0]

    def restart(self, seed: int | None, prompt: str | None) -> None:
        with self.plan.lock:
            cut = self.plan.restart(prompt, self._now())
            self._operations.append(
                _Operation(lambda: self._maker.restart(self.seed if seed is None else seed))
            )
            self.resumed_at = 0
            self.restarts += 1
            self.recording.restart()
            if self.latents is not None:
                self.latents.restart()
            self._after_change(cut)

    def cues(self) -> list[Cue]:
        with self.plan.lock:
            return list(self.plan.schedule)

    def save(self, path: Path) -> "Future[SavedVideo | None]":
        """The state before the first block that nobody has seen; None before the first block."""
        return self._submit(lambda: self._save(path))

    def close(self) -> "Future[None]":
        """Stop; the recording stays readable until :meth:`discard`."""
        return self._submit(self._close)

    def discard(self) -> None:
        self.recording.close()
        if self.latents is not None:
            self.latents.close()

    # ---- what the generator asks -------------------------------------------------------------

    def next_work(self, now: float) -> Work | Idle:
        if self._operations:
            return Work(0.0, self._operate)
        if self._is_closed:
            return Idle(None)
        draft = self.plan.draft_to_encode(now)
        if isinstance(draft, str):
            self._take_up(draft)
        answer = self.plan.next_turn(now)
        if isinstance(answer, Idle):
            waits = [idle.until for idle in (answer, draft) if isinstance(idle, Idle)]
            return Idle(min((wait for wait in waits if wait is not None), default=None))
        due, turn = answer
        if not self._maker.is_open:
            due = max(due, self._opening_s)
        takes_s = self.costs.turn_s(is_switch=turn.cue is not None)
        return Work(due, lambda: self._make(turn), takes_s)

    def claim(self, now: float) -> Claim | None:
        return None if self._is_closed or not self._maker.is_open else self.plan.claim(now)

    def slack(self, now: float) -> float:
        return self.plan.slack(now)

    def spare_work(self, now: float, spare_s: float) -> Work | None:
        if self._is_closed:
            return None
        turn = self.plan.next_speculation(now, spare_s)
        if turn is None:
            return None
        return Work(now, lambda: self._speculate(turn), self.costs.turn_s(is_switch=True))

    def fail(self, error: BaseException) -> None:
        with self._closing:
            if self._told_end:
                return
            self._told_end = True
        self._observer.failed(error)

    # ---- on the generator's thread -----------------------------------------------------------

    def _make(self, turn: Make) -> None:
        begun = self._now()
        try:
            made = self._maker.make(turn)
        finally:
            wanted = self.plan.finished(turn)
        if made is None:
            return
        self._measure(turn, self._now() - begun, self._maker.made_in_s)
        if not wanted:
            return
        self._encoding.put(made, turn.block, turn.epoch)
        if turn.cue is not None:
            if self.clock.first_frame(turn.block) >= self.plan.playhead.begin:
                self._observer.applied(turn.cue, turn.epoch)
            following = self.plan.locked(lambda: self.plan.schedule.upcoming(turn.block))
            if following is not None:
                self._encode_beside(following.prompt)
        if self.plan.is_finished:
            self._observer.finished()

    def _measure(self, turn: Make, cycle_s: float, seconds: float) -> None:
        typical = self.costs.of("block")
        if turn.block == self.plan.begin:
            self.costs.guess("cycle", cycle_s)
            self.costs.guess("block", seconds)
            self._meters.block("block", seconds)
        elif turn.cue is None:
            self.costs.observe("cycle", cycle_s)
            self.costs.observe("block", seconds)
            self._meters.block("block", seconds)
        elif typical:
            # What a switch adds: its re-cache, and any wait for its text.
            self.costs.observe("recache", max(0.0, seconds - typical))
            self._meters.block("recache", max(0.0, seconds - typical))

    def _speculate(self, turn: Speculate) -> None:
        result = self._maker.speculate(turn)
        if result is not None and self.plan.speculated(result):
            self._encoding.hide(result)
            self._observer.changed()

    def _operate(self) -> None:
        operation = self._operations.popleft()
        try:
            operation.result.set_result(operation.run())
        except Exception as error:  # belongs to whoever asked
            operation.result.set_exception(error)

    def _save(self, path: Path) -> "SavedVideo | None":
        while self.plan.made > 0 and not self._is_closed:
            block = self._maker.save(path, max(1, self.plan.settle(self._now())))
            with self.plan.lock:
                # A prompt may have taken back, meanwhile, what the state was made of.
                if self.plan.hold(block):
                    cues = tuple(self.plan.schedule)
                    return SavedVideo(path, block, self.seed, self.switch, cues, self.bundle_key)
        return None

    def _close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._generator.remove(self)
        self.plan.close()
        self._maker.close()
        self._encoding.close()

    # ---- inside ------------------------------------------------------------------------------

    def _block_is_out(self, block: int, made: MadeBlock) -> None:
        self._on_block(block, made)
        for stage in ("decode", "encode"):
            self._meters.block(stage, self.costs.latest().get(stage, 0.0))
        self._generator.wake()

    def _first_cues(self, wish: Wish) -> list[Cue]:
        if wish.known is not None and wish.known.cues:
            return list(wish.known.cues)
        if wish.saved is not None:
            cues = list(wish.saved.cues)
            if wish.prompt:
                block = wish.saved.block
                cues = [cue for cue in cues if cue.block < block]
                highest = max((cue.id for cue in cues), default=0)
                cues.append(Cue(highest + 1, block, wish.prompt, None, self._now()))
            return cues
        cues = [Cue(1, 0, wish.prompt, None, self._now())]
        taken = {0}
        for frame, prompt in sorted(wish.cues):
            block = self.clock.block_from(frame)
            while block in taken:
                block += 1
            taken.add(block)
            cues.append(Cue(len(cues) + 1, block, prompt))
        return cues

    def _end(
        self, frames: int | None, begin: int, longest: int | None, known: Known | None
    ) -> int | None:
        """The block after the last, where there is one."""
        if known is not None and known.end is not None:
            return known.end
        if frames is None:
            return longest
        wanted = self.clock.block_of(self.clock.first_frame(begin) + frames - 1) + 1
        return wanted if longest is None else min(wanted, longest)

    def _after_change(self, cut: Cut | None) -> None:
        if cut is not None:
            self.recording.cut(cut.frame)
            if self.latents is not None:
                self.latents.cut(self.clock.block_from(cut.frame))
            self._observer.cut(cut)
        self._observer.changed()
        self._generator.wake()

    def _take_up(self, draft: str) -> None:
        future = self._model.prepare(draft)
        future.add_done_callback(lambda done: self._taken_up(draft, done))

    def _taken_up(self, draft: str, done: "Future[float]") -> None:
        if not done.cancelled() and done.exception() is None:
            self.costs.observe("text", done.result())
            self._meters.block("text", done.result())
            self.plan.draft_encoded(draft)
            self._generator.wake()

    def _encode_beside(self, prompt: str) -> None:
        def encoded(done: "Future[float]") -> None:
            if done.cancelled() or done.exception() is not None:
                return
            self.costs.observe("text", done.result())
            self._meters.block("text", done.result())
            notice = self._model.notice_of(prompt)
            if notice is not None:
                self._observer.notice(notice)

        self._model.prepare(prompt).add_done_callback(encoded)

    def _submit(self, run: Callable[[], Any]) -> "Future[Any]":
        operation = _Operation(run)
        if self._is_closed:
            operation.result.set_result(None)
            return operation.result
        self._operations.append(operation)
        self._generator.wake()
        return operation.result
