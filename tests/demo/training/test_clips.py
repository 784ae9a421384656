from pathlib import Path

import pytest
import torch

from longlive_trt.configs import ModelConfig
from longlive_trt.demo.training.clips import LatentPool, load_autoencoder
from longlive_trt.demo.words import word_ids

BLOCKS = 2


@pytest.fixture(scope="module")
def pool(small_config: ModelConfig, small_vae: Path) -> LatentPool:
    codec = load_autoencoder(small_vae, torch.device("cpu"), small_config)
    made = LatentPool(small_config, BLOCKS, codec, word_ids(), seed=3)
    made.add(3)
    return made


def test_a_batch_is_blocks_of_latents_under_one_caption(pool: LatentPool) -> None:
    batch = pool.batch(5)
    assert batch.latents.shape == (BLOCKS, 5, 3, 4, 4, 8)
    assert batch.ids.shape == (5, 32)
    assert batch.counts.shape == (BLOCKS, 5)
    assert (batch.counts.sum(0) > 0).all()
    assert batch.changes.shape == (5,)


def test_only_a_change_has_another_caption_before_it(pool: LatentPool) -> None:
    batch = pool.batch(64)
    differs = (batch.ids != batch.earlier_ids).any(1)
    assert not differs[~batch.changes].any()
    assert differs[batch.changes].any()
    assert (batch.counts[0, batch.changes] == 0).all()


def test_more_clips_join_those_there(pool: LatentPool) -> None:
    before = len(pool)
    pool.add(2)
    assert len(pool) == before + 2
    assert len(pool.latents[0]) == len(pool)
