"""The same random weights in other people's implementations of the same models."""

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from longlive_trt.configs import TextEncoderConfig, VaeConfig
from longlive_trt.export.checkpoints.diffusers_keys import (
    text_encoder_key,
    transformer_key,
    vae_key,
)
from longlive_trt.export.models.text_encoder import TextEncoder
from longlive_trt.export.models.vae import VaeDecoder
from longlive_trt.export.models.vae_encoder import VaeEncoder

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5

VAE_CONFIGS = {
    "as LongLive's": VaeConfig(dim=8, channels=4, mean=(0.1, -0.2, 0.3, 0), std=(2, 1, 0.5, 3)),
    "late doubling": VaeConfig(
        dim=4, channels=2, multipliers=(1, 2, 2), res_blocks=1, temporal_upsample=(False, True),
        mean=(0.5, -0.5), std=(2, 0.5),
    ),
    "three blocks": VaeConfig(
        dim=4, channels=2, multipliers=(2, 3), res_blocks=3, temporal_upsample=(True,),
        mean=(0.0, 1.0), std=(1, 1.5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 1, 3, 2), (2, 2, 2, 3), (1, 5, 3, 3)], ids=str)
@pytest.mark.parametrize("name", VAE_CONFIGS)
def test_vae_decodes_as_diffusers(name: str, shape: tuple[int, int, int, int]) -> None:
    config = VAE_CONFIGS[name]
    torch.manual_seed(len(name) + sum(shape))
    oracle = randomized(diffusers_vae(config))
    for parameter in oracle.decoder.conv_out.parameters():
        parameter *= 0.3  # or its clamp would hide most pixels
    decoder = VaeDecoder(config).eval().requires_grad_(False)
    named = renamed(oracle, lambda key: vae_key(key, config.res_blocks))
    decoder.load_state_dict({name: named[name] for name in decoder.state_dict()})
    batch, count, height, width = shape
    latents = torch.randn(batch, count, config.channels, height, width)
    mean, std = (torch.tensor(v).reshape(-1, 1, 1, 1) for v in (config.mean, config.std))
    expected = oracle.decode(latents.transpose(1, 2) * std + mean).sample.transpose(1, 2)
    frames = decoder.decode(latents)
    assert (frames.abs() < 1).float().mean() > 0.9
    assert error(frames.clamp(-1, 1), expected) <= TOLERANCE


def diffusers_vae(config: VaeConfig) -> nn.Module:
    return diffusers.AutoencoderKLWan(
        base_dim=config.dim,
        z_dim=config.channels,
        dim_mult=list(config.multipliers),
        num_res_blocks=config.res_blocks,
        temperal_downsample=list(reversed(config.temporal_upsample)),
    )


TEXT_CONFIGS = {
    "golden size": TextEncoderConfig(
        vocab=64, dim=32, attention_dim=32, ffn_dim=64, heads=4, layers=2
    ),
    "narrow attention": TextEncoderConfig(
        vocab=50, dim=24, attention_dim=16, ffn_dim=40, heads=2, layers=3, buckets=16,
        max_distance=40,
    ),
}  # fmt: skip


@pytest.mark.parametrize("lengths", [(1,), (160,), (7, 48, 150)], ids=str)
@pytest.mark.parametrize("name", TEXT_CONFIGS)
def test_text_encodes_as_transformers(name: str, lengths: tuple[int, ...]) -> None:
    config = TEXT_CONFIGS[name]
    torch.manual_seed(len(name) + sum(lengths))
    oracle = randomized(transformers_umt5(config))
    encoder = TextEncoder(config).eval().requires_grad_(False)
    encoder.load_state_dict(renamed(oracle, text_encoder_key))
    ids = torch.randint(0, config.vocab, (len(lengths), 160))
    mask = (torch.arange(160) < torch.tensor(lengths)[:, None]).long()
    expected = oracle(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
    assert error(encoder(ids, mask), expected) <= TOLERANCE


def transformers_umt5(config: TextEncoderConfig) -> nn.Module:
    return transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=config.vocab,
            d_model=config.dim,
            d_kv=config.attention_dim // config.heads,
            d_ff=config.ffn_dim,
            num_layers=config.layers,
            num_heads=config.heads,
            relative_attention_num_buckets=config.buckets,
            relative_attention_max_distance=config.max_distance,
            feed_forward_proj="gated-gelu",
        )
    )


def test_every_full_size_vae_tensor_has_its_name() -> None:
    with torch.device("meta"):
        theirs = diffusers_vae(VaeConfig())
        decoder, encoder = VaeDecoder(VaeConfig()), VaeEncoder(VaeConfig())
    ours = shapes(decoder.state_dict()) | shapes(encoder.state_dict())
    assert shapes(renamed(theirs, vae_key)) == ours
    assert all(vae_key(key) for key in theirs.state_dict())


def test_every_full_size_text_encoder_tensor_has_its_name() -> None:
    config = TextEncoderConfig()
    with torch.device("meta"):
        theirs, ours = transformers_umt5(config), TextEncoder(config)
    assert shapes(renamed(theirs, text_encoder_key)) == shapes(ours.state_dict())
    names = Counter(text_encoder_key(key) for key in theirs.state_dict())
    assert names.pop("token_embedding.weight") == 2
    assert set(names.values()) == {1}


def test_every_full_size_transformer_tensor_has_its_name() -> None:
    with torch.device("meta"):
        state = diffusers.WanTransformer3DModel(
            num_layers=30, num_attention_heads=12, attention_head_dim=128, ffn_dim=8960
        ).state_dict()
    found = {transformer_key(key): tuple(value.shape) for key, value in state.items()}
    assert len(found) == len(state) == 825
    assert found == _transformer_tensors()


def _transformer_tensors() -> dict[str, tuple[int, ...]]:
    d, f = 1536, 8960
    linears = {
        "text_embedding.0": (d, 4096), "text_embedding.2": (d, d), "time_embedding.0": (d, 256),
        "time_embedding.2": (d, d), "time_projection.1": (6 * d, d), "head.head": (64, d),
        "patch_embedding": (d, 16, 1, 2, 2),
    }  # fmt: skip
    tensors: dict[str, tuple[int, ...]] = {"head.modulation": (1, 2, d)}
    for i in range(30):
        tensors[f"blocks.{i}.modulation"] = (1, 6, d)
        for attention in ("self_attn", "cross_attn"):
            linears |= {f"blocks.{i}.{attention}.{name}": (d, d) for name in "qkvo"}
            for name in ("norm_q", "norm_k"):
                tensors[f"blocks.{i}.{attention}.{name}.weight"] = (d,)
        linears |= {f"blocks.{i}.ffn.0": (f, d), f"blocks.{i}.ffn.2": (d, f)}
        linears[f"blocks.{i}.norm3"] = (d,)
    for name, shape in linears.items():
        tensors |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return tensors


@pytest.mark.parametrize("translate", [transformer_key, vae_key, text_encoder_key])
@pytest.mark.parametrize(
    "key", ["", "blocks.0.attn3.to_q.weight", "decoder.up_blocks.0.resnets.0.extra", "shared"]
)
def test_foreign_names_have_no_counterpart(
    translate: Callable[[str], str | None], key: str
) -> None:
    assert translate(key) is None


def renamed(model: nn.Module, translate: Callable[[str], str | None]) -> dict[str, Tensor]:
    named = ((translate(key), value) for key, value in model.state_dict().items())
    return {key: value for key, value in named if key is not None}


def randomized(model: nn.Module) -> nn.Module:
    model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(0.7 * torch.randn(parameter.shape) / math.sqrt(parameter[0].numel()))
    return model


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def error(actual: Tensor, expected: Tensor) -> float:
    """The relative L2 error."""
    assert actual.shape == expected.shape
    assert expected.any()
    return float((actual - expected).norm() / expected.norm())
