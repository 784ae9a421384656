"""The VAE's encoder against Diffusers, its state dict's contract, and its stream against itself."""

import pytest
import torch
from torch import Tensor

from longlive_trt.configs import VaeConfig
from longlive_trt.export.checkpoints.diffusers_keys import vae_key
from longlive_trt.export.models.vae import VaeDecoder
from longlive_trt.export.models.vae_encoder import VaeEncoder
from tests.export.models.test_oracles_vae_text import (
    VAE_CONFIGS,
    diffusers_vae,
    error,
    randomized,
    renamed,
)

TOLERANCE = 1e-5


def random_encoder(config: VaeConfig, seed: int = 0) -> VaeEncoder:
    torch.manual_seed(seed)
    return VaeEncoder(config).eval().requires_grad_(False)


def random_frames(config: VaeConfig, chunks: int, size: tuple[int, int]) -> Tensor:
    """Diffusers takes four frames at a time, whatever a VAE's doublings are."""
    sides = (side * config.spatial_factor for side in size)
    return torch.rand(2, 1 + 4 * chunks, 3, *sides) * 2 - 1


@pytest.mark.parametrize(
    ("name", "chunks"), [*((name, 2) for name in VAE_CONFIGS), ("as LongLive's", 0)]
)
def test_it_encodes_as_diffusers(name: str, chunks: int) -> None:
    config = VAE_CONFIGS[name]
    torch.manual_seed(len(name) + chunks)
    oracle = randomized(diffusers_vae(config))
    encoder = VaeEncoder(config).eval().requires_grad_(False)
    expected_names = encoder.state_dict().keys()
    weights = {
        ours: tensor
        for theirs, tensor in oracle.state_dict().items()
        if (ours := vae_key(theirs, config.res_blocks)) in expected_names
    }
    encoder.load_state_dict(weights)
    frames = random_frames(config, chunks, (3, 2))
    mean, std = (torch.tensor(v).reshape(-1, 1, 1, 1) for v in (config.mean, config.std))
    raw = oracle.encode(frames.transpose(1, 2)).latent_dist.mode()
    expected = ((raw - mean) / std).transpose(1, 2)
    assert error(encoder.encode(frames), expected) <= TOLERANCE


def test_diffusers_names_are_those_of_encoder_and_decoder_together() -> None:
    config = VAE_CONFIGS["as LongLive's"]
    ours = {*VaeEncoder(config).state_dict(), *VaeDecoder(config).state_dict()}
    assert renamed(diffusers_vae(config), lambda key: vae_key(key, 2)).keys() == ours


@pytest.mark.parametrize("taps", [1, 3])
def test_chunks_of_any_size_give_the_same_latents(taps: int) -> None:
    config = VaeConfig(dim=4, temporal_taps=taps)
    encoder, frames = random_encoder(config), random_frames(config, 4, (2, 2))
    whole = encoder.encode(frames)
    first, caches = encoder.encode_first(frames[:, :1])
    rest, _ = encoder.encode_next(frames[:, 1:], caches)
    assert whole.shape == (2, 5, 16, 2, 2)
    assert error(torch.cat([first, rest], dim=1), whole) <= TOLERANCE


@pytest.mark.parametrize("name", VAE_CONFIGS)
def test_caches_have_the_shapes_that_it_says(name: str) -> None:
    config = VAE_CONFIGS[name]
    encoder, frames = random_encoder(config), random_frames(config, 1, (3, 2))
    first, caches = encoder.encode_first(frames[:, :1])
    _, renewed = encoder.encode_next(frames[:, 1:], caches)
    size = frames.shape[-2:]
    for histories in (caches, renewed):
        shapes = [tuple(cache.shape[1:]) for cache in histories]
        assert shapes == encoder.cache_shapes(*size)
    assert first.dtype == torch.float32


def test_its_state_dict_is_that_of_wan() -> None:
    with torch.device("meta"):
        shapes = {k: list(v.shape) for k, v in VaeEncoder(VaeConfig()).state_dict().items()}
    expected = {
        "conv1.weight": [32, 32, 1, 1, 1],
        "encoder.conv1.weight": [96, 3, 3, 3, 3],
        "encoder.downsamples.0.residual.2.weight": [96, 96, 3, 3, 3],
        "encoder.downsamples.2.resample.1.weight": [96, 96, 3, 3],
        "encoder.downsamples.3.shortcut.weight": [192, 96, 1, 1, 1],
        "encoder.downsamples.5.resample.1.weight": [192, 192, 3, 3],
        "encoder.downsamples.5.time_conv.weight": [192, 192, 3, 1, 1],
        "encoder.downsamples.6.residual.2.weight": [384, 192, 3, 3, 3],
        "encoder.downsamples.8.time_conv.weight": [384, 384, 3, 1, 1],
        "encoder.downsamples.10.residual.6.weight": [384, 384, 3, 3, 3],
        "encoder.middle.1.to_qkv.weight": [1152, 384, 1, 1],
        "encoder.head.0.gamma": [384, 1, 1, 1],
        "encoder.head.2.weight": [32, 384, 3, 3, 3],
    }
    assert expected.items() <= shapes.items()
    assert "encoder.downsamples.2.time_conv.weight" not in shapes
    assert "encoder.downsamples.11.residual.0.gamma" not in shapes
    # 194 tensors in all, 110 of them the decoder's.
    with torch.device("meta"):
        decoder = VaeDecoder(VaeConfig()).state_dict()
    assert len(shapes) + len(decoder) == 194
    numbers = sum(t.numel() for t in decoder.values()) + sum(
        torch.Size(shape).numel() for shape in shapes.values()
    )
    assert numbers == 126_892_531
