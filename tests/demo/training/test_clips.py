import pytest
import torch

from longlive_trt.demo.autoencoder import AutoEncoder
from longlive_trt.demo.geometry import model_config, raw_vae_config
from longlive_trt.demo.training.clips import LatentPool
from longlive_trt.demo.words import word_ids

BLOCKS = 2


@pytest.fixture(scope="module")
def pool() -> LatentPool:
    torch.manual_seed(0)
    codec = AutoEncoder(raw_vae_config()).eval()
    made = LatentPool(model_config(), BLOCKS, codec, word_ids(), seed=3, size=(16, 32))
    made.add(3)
    return made


def test_a_batch_is_blocks_of_latents_under_one_caption(pool: LatentPool) -> None:
    batch = pool.batch(5)
    assert batch.latents.shape == (BLOCKS, 5, 3, 16, 4, 8)
    assert batch.ids.shape == (5, model_config().transformer.text_len)
    assert batch.counts.shape == (BLOCKS, 5)
    assert (batch.counts.sum(0) > 0).all()


def test_more_clips_join_those_there(pool: LatentPool) -> None:
    before = len(pool)
    pool.add(2)
    assert len(pool) == before + 2
    assert len(pool.latents[0]) == len(pool)
