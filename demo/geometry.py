"""The demo model's configuration, and the sizes that follow from it."""

from dataclasses import replace
from functools import cache
from pathlib import Path

from longlive_trt.configs import ModelConfig, VaeConfig, load_config

MODEL_FILE = Path(__file__).with_name("model.yaml")
WEIGHTS = Path(__file__).with_name("weights")


@cache
def model_config() -> ModelConfig:
    return load_config(MODEL_FILE)


def vae_config() -> VaeConfig:
    config = model_config().vae
    assert isinstance(config, VaeConfig)
    return config


def light_vae_config() -> VaeConfig:
    config = model_config().light_vae
    assert isinstance(config, VaeConfig)
    return config


def raw(config: VaeConfig) -> VaeConfig:
    """An autoencoder's while it is trained: latents are taken as they are."""
    return replace(config, mean=(0.0,) * config.channels, std=(1.0,) * config.channels)


def video_frames(latent_frames: int) -> int:
    return 1 + vae_config().temporal_factor * (latent_frames - 1)
