"""A session that is taken back makes the same blocks again, or others in their place."""

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longlive_trt.configs import ModelConfig
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.errors import UsageError
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.noise import SeededNoise
from longlive_trt.runtime.ring import Recache
from longlive_trt.runtime.session import Block, Session
from longlive_trt.runtime.state import load_state, restore, save_state
from longlive_trt.runtime.transformer import Context

pytestmark = pytest.mark.usefixtures("few_objects")

Array = np.ndarray[Any, Any]
LONGEST = 60


@pytest.fixture(scope="module")
def mini(mini_bundle: Callable[[str], Path]) -> Iterator[Engines]:
    with Engines(open_bundle(mini_bundle("relative"))) as engines:
        yield engines


@pytest.fixture(scope="module")
def video(video_bundle: Path) -> Iterator[Engines]:
    """Has a decoder."""
    with Engines(open_bundle(video_bundle)) as engines:
        yield engines


def configured(engines: Engines, **rollout: Any) -> ModelConfig:
    config = engines.bundle.config
    return replace(config, rollout=replace(config.rollout, **rollout))


def context(engines: Engines, number: int, batch: int = 1) -> Context:
    config = engines.bundle.config.transformer
    drawn = np.random.default_rng(number)
    return engines.contexts(batch).of_states(
        drawn.standard_normal((batch, config.text_len, config.text_dim), np.float32)
    )


def opened(
    engines: Engines, *, decode: bool = False, batch: int = 1, config: ModelConfig | None = None
) -> Session:
    config = config or engines.bundle.config
    shape = (batch, config.rollout.frames_per_block, *config.latent_shape)
    noise = SeededNoise(7, shape, len(config.rollout.steps))
    return engines.session(config, noise, batch=batch, total_frames=LONGEST, decode=decode)


def begun(engines: Engines, blocks: int, **options: Any) -> Session:
    session = opened(engines, **options)
    session.switch_prompt(context(engines, 0, options.get("batch", 1)))
    for _ in range(blocks):
        session.step()
    return session


def latents(session: Session, blocks: int) -> list[Array]:
    return [session.step().latents for _ in range(blocks)]


def same(one: list[Array], other: list[Array]) -> bool:
    return all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


ROLLOUTS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "moving sink": {"global_sink": False},
    "global": {"window_frames": -1},
    "no past": {"window_frames": 6},
}


@pytest.mark.parametrize("rollout", ROLLOUTS)
@pytest.mark.parametrize("blocks", [1, 3, 6])
def test_the_same_blocks_come_again(mini: Engines, rollout: str, blocks: int) -> None:
    config = configured(mini, **ROLLOUTS[rollout])
    with begun(mini, blocks, config=config, batch=2) as session:
        checkpoint = session.checkpoint()
        first = latents(session, 4)
        session.rollback(checkpoint)
        assert session.blocks_made == blocks
        assert same(latents(session, 4), first)


@pytest.mark.parametrize("recache", ["exact", "partial", "none"])
@pytest.mark.parametrize("rollout", ROLLOUTS)
@pytest.mark.parametrize("blocks", [2, 6])
def test_the_same_blocks_come_again_with_a_switch_between(
    mini: Engines, recache: Recache, rollout: str, blocks: int
) -> None:
    config, other = configured(mini, **ROLLOUTS[rollout]), context(mini, 1)

    def make(session: Session) -> list[Array]:
        made = latents(session, 1)
        session.switch_prompt(other, recache)
        return made + latents(session, 3)

    with begun(mini, blocks, config=config) as session:
        checkpoint = session.checkpoint()
        first = make(session)
        session.rollback(checkpoint)
        assert same(make(session), first)


def test_a_switch_that_is_taken_back_leaves_no_trace(mini: Engines) -> None:
    with begun(mini, 6) as session:
        expected = latents(session, 4)
    with begun(mini, 6) as session:
        checkpoint = session.checkpoint()
        session.switch_prompt(context(mini, 1))
        switched = latents(session, 2)
        session.rollback(checkpoint)
        found = latents(session, 4)
        assert same(found, expected)
        assert not same(switched, expected[:2])


def test_a_moved_sink_moves_back(mini: Engines) -> None:
    config = configured(mini, global_sink=False)
    with begun(mini, 6, config=config) as session:
        checkpoint = session.checkpoint()
        session.switch_prompt(context(mini, 1))
        session.step()
        assert session.ring.sink_start == 6
        session.rollback(checkpoint)
        assert session.ring.sink_start == 0


def test_a_switch_that_was_asked_for_since_is_forgotten(mini: Engines) -> None:
    with begun(mini, 2) as session:
        checkpoint = session.checkpoint()
        expected = latents(session, 2)
        session.rollback(checkpoint)
        session.switch_prompt(context(mini, 1))
        session.rollback(checkpoint)
        assert same(latents(session, 2), expected)


def test_a_switch_that_was_asked_for_before_is_still_to_come(mini: Engines) -> None:
    with begun(mini, 5) as session:
        session.switch_prompt(context(mini, 1))
        checkpoint = session.checkpoint()
        expected = latents(session, 2)
        session.rollback(checkpoint)
        assert same(latents(session, 2), expected)


def test_one_checkpoint_serves_many_times(mini: Engines) -> None:
    with begun(mini, 5) as session:
        checkpoint = session.checkpoint()
        made = []
        for number in (1, 2, 1):
            session.switch_prompt(context(mini, number))
            made.append(latents(session, 3))
            session.rollback(checkpoint)
    assert same(made[0], made[2])
    assert not same(made[0], made[1])


def test_two_checkpoints_of_one_session(mini: Engines) -> None:
    with begun(mini, 3) as session:
        early = session.checkpoint()
        whole = latents(session, 2)
        session.switch_prompt(context(mini, 1))
        whole += latents(session, 1)
        late = session.checkpoint()
        whole += latents(session, 2)
        for checkpoint, expected in ((late, whole[3:]), (late, whole[3:]), (early, whole[:2])):
            session.rollback(checkpoint)
            assert same(latents(session, 2), expected)
        # To a later one from before it, too: nothing is left of the way there.
        session.rollback(late)
        assert same(latents(session, 2), whole[3:])


def test_a_video_that_was_taken_back_is_saved_as_it_stands(mini: Engines, tmp_path: Path) -> None:
    with begun(mini, 5) as session:
        checkpoint = session.checkpoint()
        expected = latents(session, 2)
        session.rollback(checkpoint)
        save_state(tmp_path / "state", session, bundle_key="k", seed=7, prompt="")
    with opened(mini) as session:
        restore(session, load_state(tmp_path / "state"))
        assert same(latents(session, 2), expected)


def test_a_checkpoint_needs_a_prompt(mini: Engines) -> None:
    with begun(mini, 0) as session, pytest.raises(UsageError, match="before its first block"):
        session.checkpoint()


# ---- pictures --------------------------------------------------------------------------------


def test_the_same_pictures_come_again(video: Engines) -> None:
    def make(session: Session) -> list[Block]:
        made = [session.step()]
        session.switch_prompt(other)
        return [*made, session.step()]

    other = context(video, 1)
    with begun(video, 2, decode=True) as session:
        # The block before is still being decoded.
        checkpoint = session.checkpoint()
        first = make(session)
        session.rollback(checkpoint)
        again = make(session)
        pictures = [[block.pixels() for block in made] for made in (first, again)]
        assert [part.shape[1] for part in pictures[0]] == [12, 12]
        assert same(*pictures)
        session.rollback(checkpoint)
        instead = [session.step().pixels() for _ in range(2)]
        # The switch comes after the first of them.
        assert same(pictures[0][:1], instead[:1]) and not same(pictures[0][1:], instead[1:])


def test_pictures_that_were_asked_for_before_stay_readable(video: Engines) -> None:
    with begun(video, 1, decode=True) as session:
        checkpoint = session.checkpoint()
        block = session.step()
        session.rollback(checkpoint)
        session.switch_prompt(context(video, 1))
        replaced = session.step()
        assert not np.array_equal(block.pixels(), replaced.pixels())
        session.rollback(checkpoint)
        assert np.array_equal(session.step().pixels(), block.pixels())


# ---- memory ----------------------------------------------------------------------------------


def test_a_checkpoint_is_a_copy_and_holds_nothing_else(mini: Engines) -> None:
    with begun(mini, 2) as session:
        checkpoint = session.checkpoint()
        kept = {name: tensor.copy() for name, tensor in checkpoint.tensors.items()}
        session.switch_prompt(context(mini, 1))
        latents(session, 3)
        owned = [weakref.ref(tensor) for tensor in session.passes.cache.values()]
        gone = weakref.ref(session)
    del session
    gc.collect()
    assert gone() is None and all(tensor() is None for tensor in owned)
    assert all(np.array_equal(kept[name], checkpoint.tensors[name]) for name in kept)
    copies = [weakref.ref(tensor) for tensor in checkpoint.tensors.values()]
    assert copies
    del checkpoint
    gc.collect()
    assert all(tensor() is None for tensor in copies)
