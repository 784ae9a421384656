"""A model of the demo's kind, small enough to be trained in a test."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longlive_trt.configs import (
    LatentConfig,
    ModelConfig,
    RolloutConfig,
    TextEncoderConfig,
    TransformerConfig,
    VaeConfig,
)
from longlive_trt.demo.autoencoder import AutoEncoder


@pytest.fixture(scope="session")
def small_config() -> ModelConfig:
    return ModelConfig(
        name="small",
        transformer=TransformerConfig(
            dim=48, heads=3, layers=2, ffn_dim=64, freq_dim=16, text_len=32, text_dim=32,
            channels=4, patch=(1, 2, 2),
        ),
        latent=LatentConfig(height=4, width=8),
        rollout=RolloutConfig(rope="relative"),
        vae=VaeConfig(
            dim=4, channels=4, multipliers=(1, 2, 2), res_blocks=1, temporal_taps=1,
            temporal_upsample=(True, True), mean=(0.0,) * 4, std=(1.0,) * 4,
        ),
        text_encoder=TextEncoderConfig(
            vocab=256, dim=32, attention_dim=32, ffn_dim=32, heads=2, layers=1
        ),
    )  # fmt: skip


@pytest.fixture(scope="session")
def small_vae(small_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of an autoencoder that has learned nothing."""
    assert small_config.vae is not None
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    state = AutoEncoder(small_config.vae).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path
