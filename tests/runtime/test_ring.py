"""The ring's bookkeeping against upstream's, which moves slots and keeps two counters.

Both caches are played through with tags in place of keys: which frame a slot holds, under which
prompt it was computed, and by which pass.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longlive_trt.configs import ModelConfig, RolloutConfig, load_config
from longlive_trt.configs.replay import Switch, prompts_by_block
from longlive_trt.errors import UsageError
from longlive_trt.runtime import ring as ring_module
from longlive_trt.runtime.ring import Copy, PassPlan, Ring, RingLayout

PASSES = 3


class Tag(NamedTuple):
    frame: int
    prompt: int
    number: int
    """Of the pass in its block; a re-cache is as clean as the last one."""


CLEAN = PASSES


class Seen(NamedTuple):
    tag: Tag
    position: int


@dataclass
class Upstream:
    """SEMANTICS 5 to 7, one rule after another, on a list of slots."""

    sink: int
    capacity: int | None
    budget: int
    """Frames attended in all."""
    slots: list[Tag | None] = field(default_factory=list)
    ever: int = 0
    held: int = 0

    def forward(
        self, start: int, count: int, prompt: int, number: int, rewrite_sink: bool = False
    ) -> set[Seen]:
        end = start + count
        recompute = end <= self.ever and start > 0
        rolls = self.capacity is not None and end > self.ever and count + self.held > self.capacity
        if rolls:
            assert self.capacity is not None
            evicted = count + self.held - self.capacity
            del self.slots[self.sink : self.sink + evicted]
            end_slot = self.capacity
        else:
            end_slot = self.held + (end - self.ever)
        self.slots += [None] * (end_slot - len(self.slots))
        for offset in range(count):
            slot = end_slot - count + offset
            if not (recompute and slot < self.sink and (rolls or not rewrite_sink)):
                self.slots[slot] = Tag(start + offset, prompt, number)
        recent = range(max(self.sink, end_slot - (self.budget - self.sink)), end_slot)
        if not recompute:
            self.ever, self.held = end, end_slot
        attended = set()
        for slot in (*range(self.sink), *recent):
            tag = self.slots[slot]
            assert tag is not None, "a slot that was never written is attended"
            attended.add(Seen(tag, slot))
        return attended

    def switch(self, start: int, prompt: int, moving_sink: bool) -> set[Seen]:
        if moving_sink:
            self.slots = [None] * len(self.slots)
        count = start if self.capacity is None else min(self.capacity, start)
        return self.forward(start - count, count, prompt, CLEAN, rewrite_sink=moving_sink)


@dataclass
class Player:
    """Does with tags what the transformer's passes do with keys, as the ring's plans say."""

    ring: Ring
    slots: dict[int, Tag] = field(default_factory=dict)

    def block(self, prompt: int, number: int) -> set[Seen]:
        return self._attended(self.ring.block_plan(), prompt, number)

    def commit_block(self, prompt: int) -> None:
        self._commit(self.ring.block_plan(), prompt)
        self.ring = self.ring.after_block()

    def switch(self, prompt: int, extent: Literal["exact", "partial"] = "exact") -> set[Seen]:
        plan = self.ring.recache_plan(extent)
        attended = self._attended(plan, prompt, CLEAN)
        self._commit(plan, prompt)
        self.ring = self.ring.after_recache()
        return attended

    def _attended(self, plan: PassPlan, prompt: int, number: int) -> set[Seen]:
        layout = self.ring.layout
        own = [Tag(frame, prompt, number) for frame in plan.frames]
        assert len(plan.cache_index) == layout.slots
        assert plan.sink_frames <= layout.sink
        assert plan.window_frames == 0 or plan.sink_frames == layout.sink
        valid = range(plan.sink_frames + plan.window_frames)
        seen = [Seen(self.slots[slot], plan.cache_index[slot]) for slot in valid]
        seen += [Seen(*pair) for pair in zip(own, plan.frame_index, strict=True)]
        assert len(set(seen)) == len(seen), "a frame is attended twice"
        return set(seen)

    def _commit(self, plan: PassPlan, prompt: int) -> None:
        written: set[int] = set()
        for copy in plan.commits:
            for offset in range(copy.frames):
                slot = copy.slot + offset
                assert slot not in written and 0 <= slot < self.ring.layout.slots
                written.add(slot)
                frame = plan.frames[copy.source_frame + offset]
                self.slots[slot] = Tag(frame, prompt, CLEAN)


def tokenless(rollout: RolloutConfig) -> ModelConfig:
    """One token a frame, so that a budget of tokens is one of frames."""
    tiny = load_config("tiny")
    return replace(tiny, latent=replace(tiny.latent, height=2, width=2), rollout=rollout)


def compare(rollout: RolloutConfig, blocks: int, switches: list[int], budget: int) -> None:
    config, block = tokenless(rollout), rollout.frames_per_block
    player = Player(Ring(RingLayout.of(config, blocks * block)))
    capacity = None if rollout.is_global else rollout.window_frames
    upstream = Upstream(rollout.sink_frames, capacity, capacity or budget)
    relative, moving = rollout.rope == "relative", not rollout.global_sink
    pending, prompt = sorted(switches), 0
    for start in range(0, blocks * block, block):
        if pending and pending[0] <= start:
            pending.pop(0)
            prompt += 1
            if start:
                ours = player.switch(prompt)
                assert_same(ours, upstream.switch(start, prompt, moving), relative)
        for number in range(PASSES + 1):
            theirs = upstream.forward(start, block, prompt, number)
            assert_same(player.block(prompt, number), theirs, relative)
        player.commit_block(prompt)


def assert_same(ours: set[Seen], theirs: set[Seen], relative: bool) -> None:
    assert {seen.tag for seen in ours} == {seen.tag for seen in theirs}
    if relative:
        assert ours == theirs
    else:
        # A key that is kept rotated was rotated by its own frame; what is left is this pass's own.
        newest = max(seen.tag.number for seen in ours)
        own = {seen for seen in ours if seen.tag.number == newest and newest != CLEAN}
        assert all(seen.position == seen.tag.frame for seen in own)


@st.composite
def rollouts(draw: st.DrawFn) -> RolloutConfig:
    block = draw(st.integers(1, 5))
    sink = draw(st.integers(0, block))
    window = draw(st.one_of(st.just(-1), st.integers(sink + block, sink + 4 * block + 2)))
    return RolloutConfig(
        frames_per_block=block,
        sink_frames=sink,
        window_frames=window,
        global_sink=draw(st.booleans()),
        rope=draw(st.sampled_from(["absolute", "relative"])),
    )


@settings(max_examples=200)
@given(
    rollout=rollouts(),
    blocks=st.integers(1, 14),
    switches=st.lists(st.integers(0, 60), max_size=6),
)
@example(rollout=RolloutConfig(), blocks=8, switches=[12])
@example(rollout=RolloutConfig(global_sink=False), blocks=8, switches=[12])
@example(rollout=RolloutConfig(global_sink=False), blocks=12, switches=[12, 15, 27])
@example(rollout=RolloutConfig(rope="relative"), blocks=9, switches=[11, 12, 13])
def test_every_pass_attends_what_upstream_attends(
    rollout: RolloutConfig, blocks: int, switches: list[int]
) -> None:
    compare(rollout, blocks, switches, budget=blocks * rollout.frames_per_block)


@settings(max_examples=80)
@given(
    rollout=rollouts(),
    blocks=st.integers(1, 14),
    switches=st.lists(st.integers(0, 60), max_size=4),
    extra=st.integers(0, 9),
)
def test_global_attention_attends_no_more_than_its_budget(
    rollout: RolloutConfig, blocks: int, switches: list[int], extra: int
) -> None:
    budget = rollout.frames_per_block + rollout.sink_frames + extra
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring_module, "GLOBAL_ATTENTION_TOKENS", budget)
        compare(replace(rollout, window_frames=-1), blocks, switches, budget)


def after_switches(
    rollout: RolloutConfig, starts: list[int], extent: Literal["exact", "partial"]
) -> tuple[Player, set[int]]:
    """A player before the block after the last switch, and the frames that this recomputed."""
    block, recomputed = rollout.frames_per_block, set[int]()
    player = Player(Ring(RingLayout.of(tokenless(rollout), 60 * block)))
    for prompt, start in enumerate(starts, 1):
        while player.ring.next_frame < start * block:
            player.commit_block(prompt - 1)
        recomputed = set(player.ring.recache_plan(extent).frames)
        player.switch(prompt, extent)
    return player, recomputed


@settings(max_examples=200)
@given(
    rollout=rollouts(),
    starts=st.lists(st.integers(1, 20), min_size=1, max_size=4, unique=True).map(sorted),
)
@example(rollout=RolloutConfig(), starts=[5])
@example(rollout=RolloutConfig(), starts=[4])
@example(rollout=RolloutConfig(global_sink=False, rope="relative"), starts=[5, 6])
@example(rollout=RolloutConfig(window_frames=-1), starts=[5])
def test_after_a_partial_switch_blocks_attend_what_they_do_after_an_exact_one(
    rollout: RolloutConfig, starts: list[int]
) -> None:
    """Frames, prompts, positions and slots are the same; only what the keys saw is not."""
    exact, recomputed = after_switches(rollout, starts, "exact")
    partial, fewer = after_switches(rollout, starts, "partial")
    assert fewer <= recomputed
    # Every frame that was recomputed is attended: the others' keys are the kept sink's.
    attended = {seen.tag for seen in partial.block(9, 0)}
    assert fewer <= {tag.frame for tag in attended if tag.number == CLEAN}
    for _ in range(3):
        assert (partial.ring, partial.slots) == (exact.ring, exact.slots)
        assert partial.block(9, 0) == exact.block(9, 0)
        for player in (partial, exact):
            player.commit_block(len(starts))


def test_a_late_partial_switch_leaves_out_what_only_its_own_frames_attend() -> None:
    for relative, positions in (("absolute", range(9, 15)), ("relative", range(3, 9))):
        rollout = RolloutConfig(rope=relative)
        ring = Ring(RingLayout.of(tokenless(rollout), 60), next_frame=15)
        plan = ring.recache_plan("partial")
        assert plan.frames == tuple(range(9, 15))
        assert (plan.sink_frames, plan.window_frames) == (3, 0)
        assert plan.frame_index == tuple(positions)
        assert plan.commits == (Copy(0, 3, 6),)


@pytest.mark.parametrize(
    ("rollout", "start", "frames"),
    [
        ({}, 12, (0, 1, 2, *range(6, 12))),
        ({"global_sink": False}, 15, (3, 4, 5, *range(9, 15))),
        ({"window_frames": 6}, 15, ()),
        ({"window_frames": 6}, 6, (0, 1, 2)),
        ({"window_frames": 3, "sink_frames": 0}, 15, ()),
    ],
)
def test_a_partial_switch_recomputes_what_the_next_block_attends(
    rollout: dict[str, Any], start: int, frames: tuple[int, ...]
) -> None:
    layout = RingLayout.of(tokenless(RolloutConfig(**rollout)), 60)
    plan = Ring(layout, next_frame=start).recache_plan("partial")
    assert plan.frames == frames


@pytest.mark.parametrize(
    ("block", "attended"),
    [
        (0, [0, 1, 2]),
        (1, [0, 1, 2, 3, 4, 5]),
        (2, list(range(9))),
        (3, list(range(12))),
        (4, [0, 1, 2, *range(6, 15)]),
        (5, [0, 1, 2, *range(9, 18)]),
        (6, [0, 1, 2, *range(12, 21)]),
        (8, [0, 1, 2, *range(18, 27)]),
    ],
)
def test_the_worked_table(block: int, attended: list[int]) -> None:
    player = Player(Ring(RingLayout.of(tokenless(RolloutConfig()), 30)))
    for _ in range(block):
        player.commit_block(0)
    assert sorted(seen.tag.frame for seen in player.block(0, 0)) == attended


def test_relative_positions_never_leave_the_window() -> None:
    ring = Ring(RingLayout.of(tokenless(RolloutConfig(rope="relative")), None), next_frame=300_000)
    plan = ring.block_plan()
    assert plan.frame_index == (9, 10, 11)
    assert sorted(plan.cache_index) == list(range(9))
    assert plan.cache_index[:3] == (0, 1, 2)
    assert ring.recache_plan().frame_index == tuple(range(3, 12))


def test_absolute_positions_are_frames() -> None:
    ring = Ring(RingLayout.of(tokenless(RolloutConfig()), 600), next_frame=300)
    assert ring.block_plan().frame_index == (300, 301, 302)
    assert ring.recache_plan().frame_index == tuple(range(291, 300))


@pytest.mark.parametrize(
    ("global_sink", "kept", "recomputed", "next_attended"),
    [
        (True, 3, range(6, 15), [0, 1, 2, *range(9, 18)]),
        (False, 0, range(3, 15), [3, 4, 5, *range(9, 18)]),
    ],
)
def test_a_late_switch(
    global_sink: bool, kept: int, recomputed: range, next_attended: list[int]
) -> None:
    rollout = RolloutConfig(global_sink=global_sink)
    player = Player(Ring(RingLayout.of(tokenless(rollout), 60)))
    for _ in range(5):
        player.commit_block(0)
    plan = player.ring.recache_plan()
    assert (plan.sink_frames, plan.frames) == (kept, tuple(recomputed))
    player.switch(1)
    assert sorted(seen.tag.frame for seen in player.block(1, 0)) == next_attended


def test_the_shipped_rollout_commits_one_run_of_slots_a_block() -> None:
    ring = Ring(RingLayout.of(tokenless(RolloutConfig()), 60), next_frame=30)
    assert ring.block_plan().commits == (Copy(0, 6, 3),)


# ---- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rollout", "total_frames", "named"),
    [
        ({"sink_frames": 4, "window_frames": 12}, 12, "rollout.sink_frames (4)"),
        ({}, None, "an endless video: absolute positions end after 1023"),
        ({}, 1026, "1026 latent frames: absolute positions end after 1023"),
        ({"frames_per_block": 4}, 1028, "end after 1024"),
        ({"window_frames": -1, "rope": "relative"}, None, "an endless video"),
        ({"window_frames": -1, "rope": "relative"}, 1026, "1026 latent frames"),
        ({"window_frames": 1025, "rope": "relative"}, None, "rollout.window_frames is 1025"),
    ],
)
def test_refused_before_any_work(
    rollout: dict[str, Any], total_frames: int | None, named: str
) -> None:
    with pytest.raises(UsageError) as caught:
        RingLayout.of(tokenless(RolloutConfig(**rollout)), total_frames)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("rollout", "total_frames"),
    [
        ({}, 1023),
        ({"frames_per_block": 4}, 1024),
        ({"rope": "relative"}, None),
        ({"rope": "relative", "window_frames": 1024}, None),
        ({"window_frames": -1}, 1023),
    ],
)
def test_the_longest_that_is_allowed(rollout: dict[str, Any], total_frames: int | None) -> None:
    RingLayout.of(tokenless(RolloutConfig(**rollout)), total_frames)


def test_a_budget_of_no_whole_frames_is_refused() -> None:
    tiny = load_config("tiny", overrides=["rollout.window_frames=-1"])
    frames = 32_760 // tiny.tokens_per_frame
    RingLayout.of(tiny, frames // 3 * 3)
    with pytest.raises(UsageError, match=f"at most {frames} frames"):
        RingLayout.of(tiny, frames + 3)


# ---- when prompts change ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requested", "taken"),
    [
        ([40, 80, 120, 160, 200], [42, 81, 120, 162, 201]),
        ([1], [3]),
        ([3], [3]),
        ([4, 5], [6, 9]),
        ([4, 5, 6], [6, 9, 12]),
        ([6, 7, 20], [6, 9, 21]),
    ],
)
def test_switches_wait_for_a_block_of_their_own(requested: list[int], taken: list[int]) -> None:
    schedule = [Switch(0, 0), *(Switch(frame, n) for n, frame in enumerate(requested, 1))]
    boundaries = prompts_by_block(schedule, 3)
    starts = {}
    for _ in range(80):
        start, prompt = next(boundaries)
        if prompt is not None:
            starts[prompt] = start
    assert starts == dict(enumerate([0, *taken]))
