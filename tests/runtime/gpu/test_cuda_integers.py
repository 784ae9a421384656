"""A bundle whose keys are turned in every pass and then rounded to int8, on an imagined GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.noise import SeededNoise
from longlive_trt.runtime.state import load_state, restore, save_state
from tests.fakes.cuda import FakeCuda, Schedule
from tests.fakes.engines import put_in_place
from tests.shared import Shared

BLOCKS, SWITCH, SAVED = 6, 3, 4


def latents(engines: Engines, path: Path) -> list[Any]:
    """Of a video that switches its prompt, and one that goes on from a state of it."""
    config = engines.bundle.config
    sizes, shape = config.transformer, (1, config.rollout.frames_per_block, *config.latent_shape)
    noise = SeededNoise(3, shape, len(config.rollout.steps))
    contexts, made = engines.contexts(1), []
    session = engines.session(config, noise, total_frames=3 * BLOCKS, decode=False)
    for block in range(BLOCKS):
        if block in (0, SWITCH):
            states = np.random.default_rng(block).standard_normal(
                (1, sizes.text_len, sizes.text_dim), np.float32
            )
            session.switch_prompt(contexts.of_states(states))
        if block == SAVED:
            save_state(path, session, bundle_key="", seed=3, prompt="")
        made.append(np.array(session.step().latents))
    session.close()
    resumed = engines.session(config, noise, total_frames=3 * BLOCKS, decode=False)
    saved = load_state(path)
    assert saved.tensors["k_cache.0"].dtype == np.float32
    assert saved.tensors["v_cache.0"].dtype == ml_dtypes.float8_e4m3fn
    # By token, as always, however they lie in the memory of a session.
    assert saved.tensors["v_cache.0"].shape == saved.tensors["k_cache.0"].shape
    restore(resumed, saved)
    made += [np.array(resumed.step().latents) for _ in range(SAVED, BLOCKS)]
    resumed.close()
    return made


@pytest.mark.exhaustive
@pytest.mark.parametrize("schedule", ["lazy", 1])
def test_a_gpu_makes_the_same_video(
    shared: Shared,
    schedule: Schedule,
    fake_cuda: Callable[..., FakeCuda],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Keys are kept in the compute type, values in float8."""
    bundle = open_bundle(shared("gpu8-relative-integers-fp32"))
    with Engines(bundle, "cpu") as engines:
        expected = latents(engines, tmp_path / "cpu")
    cuda = fake_cuda(schedule=schedule)
    put_in_place(cuda, monkeypatch)
    with Engines(bundle, "cuda") as engines:
        found = latents(engines, tmp_path / "gpu")
    cuda.finish_all()
    assert cuda.queues.fault is None
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    for block in range(SAVED, BLOCKS):
        assert np.array_equal(found[block], found[BLOCKS + block - SAVED])
