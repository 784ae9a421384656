"""Which frames the key/value cache holds, where, and what a pass is told about them.

Pure bookkeeping: no tensors. The cache is a prefix of ``sink`` slots and a ring of ``past``
slots, one latent frame each. Slots fill in order, so what is valid is always a prefix, and
softmax does not care in which order it meets the keys: the ring never moves anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from longlive_trt.configs import ModelConfig, RolloutConfig
from longlive_trt.configs.schema import GLOBAL_ATTENTION_TOKENS, ROPE_TABLE_FRAMES
from longlive_trt.errors import UsageError

Recache = Literal["exact", "partial", "none"]
"""What a prompt switch recomputes: all that upstream does, what the next block sees, or nothing."""


@dataclass(frozen=True)
class Copy:
    """Frames of a pass's own keys and values that go to consecutive slots."""

    source_frame: int
    slot: int
    frames: int


@dataclass(frozen=True)
class PassPlan:
    frames: tuple[int, ...]
    """Global numbers of the latent frames that the pass computes."""
    frame_index: tuple[int, ...]
    cache_index: tuple[int, ...]
    sink_frames: int
    window_frames: int
    commits: tuple[Copy, ...]


@dataclass(frozen=True)
class RingLayout:
    """The cache's shape, for a rollout of ``total_frames`` or (None) without end."""

    block: int
    sink: int
    window: int
    """Frames attended in all: sink, past and current."""
    moving_sink: bool
    relative: bool
    unbounded: bool
    """Global attention: positions count all frames, and a switch rewrites the sink."""

    @classmethod
    def of(cls, config: ModelConfig, total_frames: int | None) -> "RingLayout":
        rollout = config.rollout
        require_supported(config, total_frames)
        return cls(
            block=rollout.frames_per_block,
            sink=rollout.sink_frames,
            window=_window_frames(config, total_frames),
            moving_sink=not rollout.global_sink,
            relative=rollout.rope == "relative",
            unbounded=rollout.is_global,
        )

    @property
    def past(self) -> int:
        return self.window - self.sink - self.block

    @property
    def slots(self) -> int:
        return self.sink + self.past


def require_supported(config: ModelConfig, total_frames: int | None) -> None:
    """Refuse, before any work, what the cache or the position table cannot hold."""
    rollout = config.rollout
    if rollout.sink_frames > rollout.frames_per_block:
        raise UsageError(
            f"rollout.sink_frames ({rollout.sink_frames}) is more than "
            f"rollout.frames_per_block ({rollout.frames_per_block}): upstream freezes noisy keys "
            f"in such a sink, which compiled graphs do not do; allowed: at most "
            f"{rollout.frames_per_block}"
        )
    _require_positions(rollout, total_frames)
    if rollout.is_global:
        _require_whole_budget(config, total_frames)


def _require_positions(rollout: RolloutConfig, total_frames: int | None) -> None:
    counts_frames = rollout.rope == "absolute" or rollout.is_global
    longest = ROPE_TABLE_FRAMES // rollout.frames_per_block * rollout.frames_per_block
    if counts_frames and (total_frames is None or total_frames > longest):
        asked = "an endless video" if total_frames is None else f"{total_frames} latent frames"
        raise UsageError(
            f"{asked}: absolute positions end after {longest} latent frames; make a shorter "
            f"video, or export with rollout.rope=relative and a window"
        )
    if not counts_frames and rollout.window_frames > ROPE_TABLE_FRAMES:
        raise UsageError(
            f"rollout.window_frames is {rollout.window_frames}; allowed: "
            f"at most {ROPE_TABLE_FRAMES}"
        )


def _require_whole_budget(config: ModelConfig, total_frames: int | None) -> None:
    tokens = config.tokens_per_frame
    budget, rest = divmod(GLOBAL_ATTENTION_TOKENS, tokens)
    if total_frames is not None and total_frames * tokens > GLOBAL_ATTENTION_TOKENS and rest:
        raise UsageError(
            f"{total_frames} latent frames: global attention sees the last "
            f"{GLOBAL_ATTENTION_TOKENS} tokens, which are no whole number of frames at "
            f"{tokens} tokens a frame; make at most {budget} frames, or set rollout.window_frames"
        )


def _window_frames(config: ModelConfig, total_frames: int | None) -> int:
    rollout = config.rollout
    if not rollout.is_global:
        return rollout.window_frames
    assert total_frames is not None
    smallest = rollout.sink_frames + rollout.frames_per_block
    return max(smallest, min(total_frames, GLOBAL_ATTENTION_TOKENS // config.tokens_per_frame))


@dataclass(frozen=True)
class Ring:
    """The state between two blocks; every change makes a new one."""

    layout: RingLayout
    next_frame: int = 0
    sink_start: int = 0
    """The first frame of the sink: it moves with a prompt switch if the sink does."""
    held_from: int | None = None
    """The frame in the first slot after the sink, where a change of the window put one there."""

    def block_plan(self) -> PassPlan:
        """What every pass of the next block sees, and where its clean keys go."""
        start, layout = self.next_frame, self.layout
        frames = tuple(range(start, start + layout.block))
        past = self._past_frames()
        held = min(layout.sink, start - self.sink_start)
        return PassPlan(
            frames=frames,
            frame_index=self._positions(frames, held + len(past)),
            cache_index=self._cache_positions(past),
            sink_frames=held,
            window_frames=len(past),
            commits=self._commits(frames),
        )

    def after_block(self) -> "Ring":
        return replace(self, next_frame=self.next_frame + self.layout.block)

    def resized(self, layout: RingLayout) -> "Ring | None":
        """With another window from the next block on, whatever lies in its slots staying there.

        None where the frames that it keeps do not lie at its beginning, in order.
        """
        if layout == self.layout:
            return self
        past = self._past_frames()
        kept = past[max(0, len(past) - layout.past) :]
        slots = [self._slot(frame) for frame in kept]
        if slots != list(range(layout.sink, layout.sink + len(kept))):
            return None
        first = kept.start if kept else self.next_frame
        return replace(self, layout=layout, held_from=first if self.next_frame else None)

    def recache_plan(self, extent: Literal["exact", "partial"] = "exact") -> PassPlan:
        """The pass that recomputes the cache under a new prompt; see also :meth:`after_recache`.

        Frames whose results nothing attends any more are left out. ``partial`` leaves out those
        too that only the recomputed frames attend, and not the next block; that may be all.
        """
        layout, start = self.layout, self.next_frame
        keeps_sink = not (self._rewrites_everything() or layout.moving_sink)
        recomputed = min(start, layout.window - (layout.sink if keeps_sink else 0))
        frames = tuple(range(start - recomputed, start))
        if layout.unbounded and recomputed < start:
            recent = start - (layout.window - layout.sink)
            frames = (*range(layout.sink), *range(recent, start))
        after = self.after_recache()
        if extent == "partial":
            frames = tuple(frame for frame in frames if after._keeps(frame, start))
        held = layout.sink if keeps_sink else 0
        return PassPlan(
            frames=frames,
            frame_index=self._positions(frames, held),
            cache_index=(*range(held), *(0,) * (layout.slots - held)),
            sink_frames=held,
            window_frames=0,
            commits=after._commits(frames),
        )

    def after_recache(self) -> "Ring":
        if self.layout.moving_sink and not self._rewrites_everything():
            start = self.next_frame - self.layout.window
            return replace(self, sink_start=start, held_from=None)
        is_reset = self._rewrites_everything()
        return replace(self, sink_start=0 if is_reset else self.sink_start, held_from=None)

    def _rewrites_everything(self) -> bool:
        """An early switch recomputes from frame 0 on, the sink included."""
        return self.layout.unbounded or self.next_frame <= self.layout.window

    def _past_frames(self) -> range:
        oldest = max(self._ring_start, self.next_frame - self.layout.past)
        return range(min(oldest, self.next_frame), self.next_frame)

    def _slot(self, frame: int) -> int:
        offset, sink = frame - self.sink_start, self.layout.sink
        if offset < sink:
            return offset
        return sink + (frame - self._ring_start) % self.layout.past

    @property
    def _ring_start(self) -> int:
        """A frame in the first slot after the sink; none before it is held."""
        start = self.sink_start + self.layout.sink
        return start if self.held_from is None else self.held_from

    def _positions(self, frames: Sequence[int], cached: int) -> tuple[int, ...]:
        if self.layout.relative and not self.layout.unbounded:
            return tuple(range(cached, cached + len(frames)))
        return tuple(frames)

    def _cache_positions(self, past: range) -> tuple[int, ...]:
        """Where each slot stands in time: the window's own order, or the video's."""
        layout = self.layout
        positions = [*range(layout.sink), *(0,) * layout.past]
        for rank, frame in enumerate(past):
            positions[self._slot(frame)] = frame if layout.unbounded else layout.sink + rank
        return tuple(positions)

    def _keeps(self, frame: int, end: int) -> bool:
        """Whether a frame has a slot when ``end`` comes next: the sink, and the newest."""
        return frame < self.sink_start + self.layout.sink or frame >= end - self.layout.past

    def _commits(self, frames: Sequence[int]) -> tuple[Copy, ...]:
        """Where those go that are kept, in runs of slots."""
        copies: list[Copy] = []
        for source, frame in enumerate(frames):
            if not self._keeps(frame, frames[-1] + 1):
                continue
            slot, last = self._slot(frame), copies[-1] if copies else None
            if last and (source, slot) == (
                last.source_frame + last.frames,
                last.slot + last.frames,
            ):
                copies[-1] = replace(last, frames=last.frames + 1)
            else:
                copies.append(Copy(source, slot, 1))
        return tuple(copies)
