"""Decoders whose residual blocks see one frame alone (``vae.temporal_taps: 1``)."""

from pathlib import Path

import pytest
import torch

from longlive_trt.configs import LatentConfig, ModelConfig, VaeConfig
from longlive_trt.engines.graphs.vae import build_vae_graphs
from longlive_trt.errors import ConfigError, UsageError
from longlive_trt.export.models.vae import VaeDecoder
from longlive_trt.precision import PRECISIONS
from longlive_trt.runtime.bench.flops import vae_flops

SIZES = {
    "dim": 4,
    "channels": 2,
    "multipliers": (1, 2),
    "res_blocks": 1,
    "temporal_upsample": (True,),
    "mean": (0.1, -0.2),
    "std": (1.5, 0.7),
}


@pytest.fixture
def still() -> VaeDecoder:
    torch.manual_seed(0)
    return VaeDecoder(VaeConfig(**SIZES, temporal_taps=1)).eval()


@torch.no_grad()
def test_equals_causal_convolutions_with_an_empty_past(still: VaeDecoder) -> None:
    causal = VaeDecoder(VaeConfig(**SIZES)).eval()
    state = still.state_dict()
    for key, weight in causal.state_dict().items():
        if state[key].shape != weight.shape:
            past = torch.zeros_like(weight[:, :, :2])
            state[key] = torch.cat([past, state[key]], dim=2)
    causal.load_state_dict(state)
    latents = torch.randn(2, 4, 2, 3, 5)
    torch.testing.assert_close(still(latents), causal(latents), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_streams_with_the_histories_of_the_convolutions_that_remain(still: VaeDecoder) -> None:
    latents = torch.randn(1, 5, 2, 3, 5)
    frames, caches = still.decode_first(latents[:, :1])
    made = [frames]
    for chunk in (latents[:, 1:2], latents[:, 2:]):
        frames, caches = still.decode_next(chunk, caches)
        made.append(frames)
    torch.testing.assert_close(torch.cat(made, 1), still(latents), rtol=1e-5, atol=1e-5)
    assert len(still.cache_shapes(3, 5)) == 2


def test_refuses_other_numbers_of_taps() -> None:
    with pytest.raises(ConfigError, match=r"temporal_taps is 2; allowed: 1 or 3"):
        VaeConfig(**SIZES, temporal_taps=2)


def test_kernels_for_a_gpu_say_that_they_take_causal_ones(tmp_path: Path) -> None:
    vae = VaeConfig(dim=16, temporal_taps=1)
    with pytest.raises(UsageError, match=r"see 1 latent frame at a time \(vae.temporal_taps\)"):
        build_vae_graphs(ModelConfig(name="still", vae=vae), tmp_path, PRECISIONS["fp16"], tmp_path)


def test_counts_the_work_of_what_is_there() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    latent = LatentConfig(height=4, width=6)
    config = ModelConfig(name="still", latent=latent, vae=VaeConfig(dim=8, temporal_taps=1))
    assert config.vae is not None
    model = VaeDecoder(config.vae).eval()
    _, caches = model.decode_first(torch.randn(1, 1, 16, 4, 6))
    with FlopCounterMode(display=False) as counted:
        model.decode_next(torch.randn(1, 3, 16, 4, 6), caches)
    assert counted.get_total_flops() == vae_flops(config, 3)
