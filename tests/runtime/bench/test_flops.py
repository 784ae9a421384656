"""Counted work against torch's own count."""

from dataclasses import replace
from typing import Any

import pytest

from longlive_trt.configs import load_config
from longlive_trt.runtime.bench.flops import BlockFlops, pass_flops, vae_flops

FULL = load_config("longlive-1.3b")
TERA = 1e12


def test_the_full_size_is_counted_as_specified() -> None:
    counted = BlockFlops.of(FULL)
    assert counted.transformer.total / TERA == pytest.approx(141.5, abs=0.05)
    # Self-attention, and a little cross-attention, of five passes.
    assert counted.transformer.attention / TERA == pytest.approx(5 * (16.148 + 0.442), abs=0.01)
    assert counted.vae is not None and counted.vae.total / TERA == pytest.approx(40.65, abs=0.05)
    assert pass_flops(FULL, 3, 12) / TERA == pytest.approx(28.29, abs=0.01)
    # Keys of a window that still fills.
    for attended, attention in ((3, 4.037), (6, 8.074), (9, 12.111)):
        less = pass_flops(FULL, 3, 12) - pass_flops(FULL, 3, attended)
        assert less / TERA == pytest.approx(16.148 - attention, abs=0.002)
    assert pass_flops(FULL, 12, 12) / TERA == pytest.approx(113.2, abs=0.05)
    # With a kept sink, nine of the twelve frames are recomputed.
    assert counted.recache.total == pass_flops(FULL, 9, 12)
    assert vae_flops(FULL, 1) / TERA == pytest.approx(13.55, abs=0.005)


def test_settings_change_the_work() -> None:
    def of(**rollout: Any) -> BlockFlops:
        return BlockFlops.of(replace(FULL, rollout=replace(FULL.rollout, **rollout)))

    assert of(steps=(1000, 500)).transformer.times(5) == of().transformer.times(3)
    assert of(global_sink=False).recache.total == pass_flops(FULL, 12, 12)
    assert of(window_frames=9).transformer.total == 5 * pass_flops(FULL, 3, 9)
    assert BlockFlops.of(replace(FULL, vae=None)).vae is None


def test_the_tiny_decoder_is_counted_as_specified() -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from longlive_trt.export.models.taehv import TaehvDecoder

    config = load_config("longlive-1.3b", overrides=["vae.kind=taehv"])
    block = BlockFlops.of(config).vae
    assert block is not None and block.total / TERA == pytest.approx(1.6, abs=0.05)
    assert BlockFlops.of(FULL, config.vae).vae == block
    with torch.device("meta"), torch.no_grad():
        model = TaehvDecoder(config.vae)
        caches = [torch.empty(1, *shape) for shape in model.cache_shapes(*config.latent.size)]
        with FlopCounterMode(display=False) as counted:
            model.decode_next(torch.empty(1, 3, *config.latent_shape), caches)
    assert counted.get_total_flops() == block.total


@pytest.mark.parametrize("name", ["longlive-1.3b", "tiny"])
def test_torch_counts_the_same(name: str) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from longlive_trt.export.models.transformer import Transformer, full_attention
    from longlive_trt.export.models.vae import VaeDecoder

    config = load_config(name)
    size = config.transformer
    assert config.vae is not None
    with torch.device("meta"), torch.no_grad():
        vae, transformer = VaeDecoder(config.vae), Transformer(size)
        shapes = vae.cache_shapes(config.latent.height, config.latent.width)
        caches = [torch.empty(1, *shape) for shape in shapes]
        latents = torch.empty(1, 3, *config.latent_shape)
        held = torch.empty(1, 9 * config.tokens_per_frame, size.heads, size.head_dim)
        context = transformer.prompt(torch.empty(1, size.text_len, size.text_dim))

        def attend(_layer: int, q: Any, k: Any, v: Any) -> Any:
            return full_attention(q, torch.cat([k, held], 1), torch.cat([v, held], 1))

        with FlopCounterMode(display=False) as following:
            vae.decode_next(latents, caches)
        with FlopCounterMode(display=False) as one_pass:
            transformer(latents, torch.empty(1, size.freq_dim), attend, context)
    assert following.get_total_flops() == vae_flops(config, 3)
    # The one row of the time embedding is left out.
    time = 2 * size.dim * (size.freq_dim + size.dim + 6 * size.dim)
    assert one_pass.get_total_flops() == pass_flops(config, 3, 12) + time
