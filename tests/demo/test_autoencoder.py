import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from longlive_trt.configs import VaeConfig
from longlive_trt.demo.autoencoder import AutoEncoder
from longlive_trt.demo.geometry import raw, vae_config
from longlive_trt.demo.scenes import SceneSource
from longlive_trt.demo.shipped import weights_path
from longlive_trt.demo.training.clips import psnr, to_bytes, to_unit
from longlive_trt.demo.world.clips import NEVER, render_clips
from longlive_trt.export.models.vae import VaeDecoder, to_pixels
from longlive_trt.export.models.vae_encoder import VaeEncoder

TINY = VaeConfig(
    dim=4, channels=3, multipliers=(1, 2, 4), res_blocks=1, temporal_upsample=(True, True),
    temporal_taps=1, mean=(0.0,) * 3, std=(1.0,) * 3,
)  # fmt: skip


@pytest.fixture(scope="module")
def shipped() -> dict[str, Tensor]:
    return {name: value.float() for name, value in load_file(weights_path("vae")).items()}


@torch.no_grad()
def test_decodes_as_the_product_does() -> None:
    torch.manual_seed(0)
    model = AutoEncoder(TINY)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    product = VaeDecoder(TINY)
    product.load_state_dict(
        {k: v for k, v in model.state_dict().items() if k.startswith(("decoder.", "conv2."))}
    )
    latents = torch.randn(2, 4, 3, 4, 6)
    torch.testing.assert_close(model.decode(latents), product(latents), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_encodes_as_the_product_does() -> None:
    torch.manual_seed(0)
    model = AutoEncoder(TINY)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    product = VaeEncoder(TINY)
    product.load_state_dict(
        {k: v for k, v in model.state_dict().items() if k.startswith(("encoder.", "conv1."))}
    )
    clips = torch.randn(2, 9, 3, 16, 24)
    torch.testing.assert_close(model.encode(clips)[0], product.encode(clips), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_latent_depends_on_no_later_frame() -> None:
    torch.manual_seed(0)
    model = AutoEncoder(TINY)
    clips = torch.randn(1, 13, 3, 16, 24)
    whole, _ = model.encode(clips)
    part, _ = model.encode(clips[:, :9])
    assert whole.shape == (1, 4, 3, 4, 6)
    torch.testing.assert_close(whole[:, :3], part, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_shipped_weights_show_clips_they_were_not_trained_on(
    shipped: dict[str, Tensor],
) -> None:
    """Streamed by the product's decoder in float32."""
    model = AutoEncoder(raw(vae_config()))
    model.load_state_dict(shipped)
    scenes = SceneSource(31).scenes(2)
    clips = render_clips(scenes, scenes, torch.full((2,), NEVER), 13)
    config = vae_config()
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (config.mean, config.std))
    latents = (model.encode(to_unit(clips))[0] - mean) / std
    product = VaeDecoder(config).eval()
    product.load_state_dict(
        {k: v for k, v in shipped.items() if k.startswith(("decoder.", "conv2."))}
    )
    frames, caches = product.decode_first(latents[:, :1])
    rest, _ = product.decode_next(latents[:, 1:], caches)
    assert psnr(to_pixels(torch.cat([frames, rest], 1)), clips).min() > 32


def test_bytes_are_units_again() -> None:
    clips = torch.randint(0, 256, (1, 2, 4, 4, 3), dtype=torch.uint8)
    assert torch.equal(to_bytes(to_unit(clips)), clips)
