"""The transformer's mathematics against Diffusers' ``WanTransformer3DModel``: one whole chunk."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longlive_trt.configs import TransformerConfig
from longlive_trt.export.checkpoints.diffusers_keys import transformer_key
from longlive_trt.export.models.transformer import (
    Transformer,
    full_attention,
    rope_table,
    rotate,
    sinusoid,
)

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-5

CONFIGS: dict[str, tuple[TransformerConfig, tuple[int, int, int]]] = {
    # (frames, latent height, latent width): odd token grids and odd lengths.
    "heads of 128": (
        TransformerConfig(dim=256, heads=2, layers=2, ffn_dim=320, text_len=7, text_dim=24),
        (3, 6, 10),
    ),
    "heads of 64": (
        TransformerConfig(dim=192, heads=3, layers=1, ffn_dim=200, text_len=512, text_dim=16),
        (5, 2, 14),
    ),
    "heads of 12, few channels": (
        TransformerConfig(
            dim=24, heads=2, layers=3, ffn_dim=50, freq_dim=32, text_len=3, text_dim=10, channels=4
        ),
        (1, 10, 6),
    ),
    "another patch": (
        TransformerConfig(
            dim=48,
            heads=2,
            layers=2,
            ffn_dim=64,
            text_len=5,
            text_dim=8,
            channels=6,
            patch=(1, 1, 3),
        ),
        (4, 3, 9),
    ),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("timestep", [1000.0, 833.3333129882812, 625.0, 0.0])
@pytest.mark.parametrize("name", CONFIGS)
def test_one_chunk_is_what_diffusers_computes(name: str, timestep: float, batch: int) -> None:
    config, (frames, height, width) = CONFIGS[name]
    torch.manual_seed(len(name) + batch)
    oracle = randomized(diffusers_transformer(config))
    ours = Transformer(config).eval().requires_grad_(False)
    ours.load_state_dict(renamed(oracle))
    latents = torch.randn(batch, frames, config.channels, height, width)
    text = torch.randn(batch, config.text_len, config.text_dim)
    expected = oracle(
        hidden_states=latents.transpose(1, 2),
        timestep=torch.full((batch,), timestep),
        encoder_hidden_states=text,
        return_dict=False,
    )[0].transpose(1, 2)
    found = one_chunk(ours, latents, timestep, text)
    assert float((found - expected).norm() / expected.norm()) <= TOLERANCE


def one_chunk(model: Transformer, latents: Tensor, timestep: float, text: Tensor) -> Tensor:
    config = model.config
    _, patch_height, patch_width = config.patch
    grid = (latents.shape[-2] // patch_height, latents.shape[-1] // patch_width)
    angles = rope_table(torch.arange(latents.shape[1]), grid, config.head_dim)

    def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return full_attention(rotate(q, angles), rotate(k, angles), v)

    features = sinusoid(timestep, config.freq_dim).float()
    flow: Tensor = model(latents, features, attend, model.prompt(text))
    return flow


def diffusers_transformer(config: TransformerConfig) -> Any:
    return diffusers.WanTransformer3DModel(
        patch_size=config.patch,
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        in_channels=config.channels,
        out_channels=config.channels,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=config.eps,
    )


def randomized(model: nn.Module) -> nn.Module:
    """Every parameter is drawn, so that none that is skipped or swapped goes unnoticed."""
    model.eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        is_norm = parameter.ndim == 1 and "norm" in name and name.endswith("weight")
        scale = 0.2 if parameter.ndim == 1 else (parameter[0].numel()) ** -0.5
        parameter.copy_(float(is_norm) + scale * torch.randn_like(parameter))
    return model


def renamed(model: nn.Module) -> dict[str, Tensor]:
    return {key: v for name, v in model.state_dict().items() if (key := transformer_key(name))}
