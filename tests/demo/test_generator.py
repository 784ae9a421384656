"""The training's passes against the product's reference rollout."""

import pytest
import torch
from torch import Tensor

from longlive_trt.configs import (
    LatentConfig,
    ModelConfig,
    RolloutConfig,
    TextEncoderConfig,
    TransformerConfig,
)
from longlive_trt.demo.generator import Generator, initialize
from longlive_trt.demo.geometry import model_config
from longlive_trt.demo.rollout import BatchRollout
from longlive_trt.export.models.rollout import ReferenceRollout

CONFIG = ModelConfig(
    transformer=TransformerConfig(
        dim=48, heads=3, layers=2, ffn_dim=64, freq_dim=16, text_len=8, text_dim=32, channels=4
    ),
    latent=LatentConfig(height=4, width=6),
    rollout=RolloutConfig(rope="relative"),
    text_encoder=TextEncoderConfig(
        vocab=20, dim=32, attention_dim=32, ffn_dim=32, heads=2, layers=1
    ),
)
BLOCKS, BATCH = 7, 2
TIMESTEP = 833.3333129882812
SHAPE = (BLOCKS, BATCH, 3, 4, 4, 6)


@pytest.fixture
def model() -> Generator:
    torch.manual_seed(0)
    made = Generator(CONFIG).eval().requires_grad_(False)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return made


def ids() -> Tensor:
    made = torch.randint(3, 20, (BATCH, 8))
    made[:, 5:] = 0
    return made


def states(model: Generator, tokens: Tensor) -> Tensor:
    encoded: Tensor = model.text(tokens, (tokens != 0).long())
    return encoded


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@torch.no_grad()
def test_all_blocks_at_once_equal_the_reference_one_by_one(model: Generator) -> None:
    clean, noised, tokens = torch.randn(SHAPE), torch.randn(SHAPE), ids()
    times = torch.full((BLOCKS, BATCH), TIMESTEP)
    context = model.context(tokens)
    other = torch.randn(SHAPE)
    made, beside = model(clean, torch.stack([noised, other]), times.expand(2, -1, -1), context)
    assert apart(made, beside) > 0.1
    reference = ReferenceRollout(model.transformer, CONFIG, BATCH, 3 * BLOCKS)
    reference.switch_prompt(states(model, tokens))
    for block in range(BLOCKS):
        flow = reference.forward(noised[block], 3 * block, TIMESTEP)
        assert apart(made[block], flow) < 2e-6
        reference.forward(clean[block], 3 * block, 0.0)
    after = model.after(model.history(clean, context), noised, times, context)
    assert apart(after, made) < 2e-6


@torch.no_grad()
def test_rollouts_with_switches_equal_the_reference(model: Generator) -> None:
    noise = torch.randn(BLOCKS, 4, *SHAPE[1:])
    reference = ReferenceRollout(model.transformer, CONFIG, BATCH, 3 * BLOCKS)
    rollout = BatchRollout(model, BATCH)
    for block in range(BLOCKS):
        # Before and after the first block has left the window.
        if block in (0, 2, 5):
            tokens = ids()
            reference.switch_prompt(states(model, tokens))
            rollout.prompt(tokens)
        expected = reference.run_block(noise[block][0], list(noise[block][1:]))
        left = iter(noise[block])
        assert apart(rollout.block(lambda left=left: next(left)), expected) < 2e-6


@torch.no_grad()
def test_begins_as_the_identity() -> None:
    torch.manual_seed(0)
    model = Generator(CONFIG)
    initialize(model)
    noised = torch.randn(SHAPE)
    times = torch.full((BLOCKS, BATCH), 1000.0)
    made = model(noised, noised[None], times[None], model.context(ids()))[0]
    alike = torch.nn.functional.cosine_similarity(made.flatten(), noised.flatten(), dim=0)
    assert alike > 0.9


def test_all_weights_fit_thirty_megabytes() -> None:
    from longlive_trt.demo.autoencoder import AutoEncoder
    from longlive_trt.demo.geometry import raw, vae_config

    nets = (Generator(model_config()), AutoEncoder(raw(vae_config())))
    assert 2 * sum(p.numel() for net in nets for p in net.parameters()) < 30_000_000
