"""The shipped configurations: the values that their sources document, and how large they are."""

import pytest
import torch

from longlive_trt.configs import RolloutConfig, load_config, shipped_models
from longlive_trt.configs.family import family, sizes, transformer_weights
from longlive_trt.export.models.transformer import Transformer

FOUR = (1000, 750, 500, 250)
GLOBAL = {"window_frames": -1, "sink_frames": 0, "rope": "absolute"}
DOCUMENTED = {
    "longlive-1.3b": RolloutConfig(),
    "longlive-1.3b-moving-sink": RolloutConfig(global_sink=False),
    "self-forcing-1.3b": RolloutConfig(**GLOBAL),
    "self-forcing-1.3b-long": RolloutConfig(rope="relative"),
    "causal-forcing-1.3b": RolloutConfig(**GLOBAL),
    "causal-forcing-1.3b-frames-2": RolloutConfig(
        **GLOBAL, frames_per_block=1, steps=(1000, 500), first_steps=FOUR
    ),
    "causal-forcing-1.3b-frames-1": RolloutConfig(
        **GLOBAL, frames_per_block=1, steps=(1000,), first_steps=FOUR
    ),
    "causvid-1.3b": RolloutConfig(window_frames=9, sink_frames=0),
    "wan-14b": RolloutConfig(rope="relative"),
}


def test_every_shipped_model_has_its_entry() -> None:
    assert family().keys() == set(shipped_models()) == {*DOCUMENTED, "tiny"}
    assert all(entry.source and entry.license and entry.run for entry in family().values())


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_values_are_those_of_the_source(name: str) -> None:
    config, longlive = load_config(name), load_config("longlive-1.3b")
    assert config.rollout == DOCUMENTED[name]
    assert config.rollout.steps[0] == 1000 and config.rollout.timestep_shift == 5.0
    assert (config.vae, config.text_encoder, config.latent, config.fps) == (
        *(longlive.vae, longlive.text_encoder, longlive.latent, longlive.fps),
    )
    if name != "wan-14b":
        assert config.transformer == longlive.transformer


def test_the_geometry_of_14b() -> None:
    transformer = load_config("wan-14b").transformer
    sizes = (transformer.dim, transformer.heads, transformer.layers, transformer.ffn_dim)
    assert sizes == (5120, 40, 40, 13_824)
    assert transformer.head_dim == 128


@pytest.mark.parametrize("name", ["longlive-1.3b", "wan-14b", "tiny"])
def test_weights_are_counted_as_the_model_has_them(name: str) -> None:
    config = load_config(name).transformer
    with torch.device("meta"):
        model = Transformer(config)
    assert transformer_weights(config) == sum(p.numel() for p in model.parameters())


def test_sizes_in_sixteen_bits() -> None:
    longlive, long_ago = sizes(load_config("longlive-1.3b")), sizes(load_config("wan-14b"))
    assert longlive.weights == 1_418_996_800
    assert longlive.weights_bytes == 2 * longlive.weights
    # 115,015,680 bytes a layer.
    assert longlive.cache_bytes == 30 * 115_015_680
    assert longlive.prompt_bytes == 94_371_840
    assert long_ago.cache_bytes == 40 * 2 * 2 * 18_720 * 5120
    # 21 frames, where there is no window.
    assert sizes(load_config("self-forcing-1.3b")).cache_bytes == 2 * 2 * 30 * 1536 * 32_760
