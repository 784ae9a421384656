"""The VAE decoder against golden data, its state dict's contract, and its stream against itself."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from longlive_trt.configs import VaeConfig
from longlive_trt.export.models.vae import VaeDecoder, to_pixels
from longlive_trt.export.models.vae_layers import ChannelNorm

GOLDEN = Path(__file__).parents[2] / "data" / "vae"
TOLERANCE = 1e-5

Shapes = Iterator[tuple[str, tuple[int, ...]]]


@pytest.fixture(scope="module")
def decoder() -> VaeDecoder:
    model = VaeDecoder(VaeConfig(dim=16)).eval().requires_grad_(False)
    weights = load_file(GOLDEN / "vae.safetensors")
    kept = {k: v for k, v in weights.items() if not k.startswith(("encoder.", "conv1."))}
    model.load_state_dict(kept)
    return model


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "decode.safetensors")


def test_one_shot_decode_is_golden(decoder: VaeDecoder, golden: dict[str, Tensor]) -> None:
    frames = decoder.decode(golden["latents"])
    assert error(frames, golden["decode.raw"].transpose(1, 2)) <= TOLERANCE


def test_streamed_chunks_are_golden(decoder: VaeDecoder, golden: dict[str, Tensor]) -> None:
    chunks = [chunk.clamp(-1, 1) for chunk in stream(decoder, golden["latents"], [1, 2, 3, 1])]
    chunks[:2] = [torch.cat(chunks[:2], dim=1)]
    for index, chunk in enumerate(chunks):
        assert error(chunk, golden[f"cached.chunk{index}"]) <= TOLERANCE, index


def test_intermediates_are_golden(decoder: VaeDecoder, golden: dict[str, Tensor]) -> None:
    expected = load_file(GOLDEN / "intermediates.safetensors")
    stages = {
        "conv1": decoder.decoder.conv1,
        "middle0": decoder.decoder.middle[0],
        "middle2": decoder.decoder.middle[2],
        "ups3": decoder.decoder.upsamples[3],
        "ups7": decoder.decoder.upsamples[7],
    }
    seen: dict[str, Tensor] = {}
    hooks = [
        stage.register_forward_hook(lambda *call, name=name: seen.update({name: call[-1]}))
        for name, stage in stages.items()
    ]
    decoder.decode(golden["latents"][:, :3])
    for hook in hooks:
        hook.remove()
    rates = {"conv1": 1, "middle0": 1, "middle2": 1, "ups3": 2, "ups7": 4}
    for key, value in expected.items():
        _, name, frame = key.split(".")
        index, rate = int(frame.removeprefix("frame")), rates[name]
        start = max(0, 1 + (index - 1) * rate)
        piece = seen[name][:, :, start : start + value.shape[2]]
        assert error(piece, value) <= TOLERANCE, key


def test_the_checkpoint_names_its_mean_and_std(golden: dict[str, Tensor]) -> None:
    assert VaeConfig().mean == pytest.approx(golden["mean"].tolist())
    assert VaeConfig().std == pytest.approx(golden["std"].tolist())


def test_the_full_model_has_the_checkpoint_tensors() -> None:
    with torch.device("meta"):
        state = VaeDecoder(VaeConfig()).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == dict(_full_size_tensors())


def _full_size_tensors() -> Shapes:
    yield from _conv("conv2", 16, 16, 1, 1, 1)
    yield from _conv("decoder.conv1", 384, 16, 3, 3, 3)
    yield from _res("decoder.middle.0", 384, 384)
    yield "decoder.middle.1.norm.gamma", (384, 1, 1)
    yield from _conv("decoder.middle.1.to_qkv", 1152, 384, 1, 1)
    yield from _conv("decoder.middle.1.proj", 384, 384, 1, 1)
    yield from _res("decoder.middle.2", 384, 384)
    blocks = {0: (384, 384), 1: (384, 384), 2: (384, 384), 4: (192, 384), 5: (384, 384)}
    blocks |= {6: (384, 384), 8: (192, 192), 9: (192, 192), 10: (192, 192)}
    blocks |= {12: (96, 96), 13: (96, 96), 14: (96, 96)}
    for index, widths in blocks.items():
        yield from _res(f"decoder.upsamples.{index}", *widths)
    for index in (3, 7):
        yield from _conv(f"decoder.upsamples.{index}.resample.1", 192, 384, 3, 3)
        yield from _conv(f"decoder.upsamples.{index}.time_conv", 768, 384, 3, 1, 1)
    yield from _conv("decoder.upsamples.11.resample.1", 96, 192, 3, 3)
    yield "decoder.head.0.gamma", (96, 1, 1, 1)
    yield from _conv("decoder.head.2", 3, 96, 3, 3, 3)


def _conv(key: str, *shape: int) -> Shapes:
    yield f"{key}.weight", shape
    yield f"{key}.bias", shape[:1]


def _res(key: str, before: int, after: int) -> Shapes:
    yield f"{key}.residual.0.gamma", (before, 1, 1, 1)
    yield from _conv(f"{key}.residual.2", after, before, 3, 3, 3)
    yield f"{key}.residual.3.gamma", (after, 1, 1, 1)
    yield from _conv(f"{key}.residual.6", after, after, 3, 3, 3)
    if before != after:
        yield from _conv(f"{key}.shortcut", after, before, 1, 1, 1)


def test_the_full_model_streams_through_32_caches() -> None:
    with torch.device("meta"):
        shapes = VaeDecoder(VaeConfig()).cache_shapes(60, 104)
    assert len(shapes) == 32
    assert sum(math.prod(shape) for shape in shapes) == 944_286_720
    assert shapes[0] == (16, 2, 60, 104)
    assert shapes[1] == (384, 2, 60, 104)
    assert shapes[11] == (384, 2, 60, 104)  # the first time_conv, before its upsampling
    assert shapes[12] == (192, 2, 120, 208)
    assert shapes[-1] == (96, 2, 480, 832)


@st.composite
def small_configs(draw: st.DrawFn) -> VaeConfig:
    levels = draw(st.integers(1, 3))
    return VaeConfig(
        dim=draw(st.sampled_from([2, 4])),
        channels=2,
        multipliers=tuple(draw(st.integers(1, 2)) for _ in range(levels)),
        res_blocks=draw(st.integers(1, 2)),
        temporal_upsample=tuple(draw(st.booleans()) for _ in range(levels - 1)),
        mean=(0.5, -0.25),
        std=(1.5, 0.75),
    )


@settings(max_examples=20, deadline=None)
@given(
    config=small_configs(),
    chunks=st.lists(st.integers(1, 3), max_size=3),
    size=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 2**31),
)
def test_any_chunking_streams_the_one_shot_decode(
    config: VaeConfig, chunks: list[int], size: tuple[int, int, int], seed: int
) -> None:
    model = random_decoder(config, seed)
    batch, height, width = size
    total = 1 + sum(chunks)
    latents = torch.randn(batch, total, config.channels, height, width)
    whole = model.decode(latents)
    factor = config.spatial_factor
    frames = 1 + config.temporal_factor * (total - 1)
    assert whole.shape == (batch, frames, 3, height * factor, width * factor)
    streamed = torch.cat(list(stream(model, latents, [1, *chunks])), dim=1)
    assert error(streamed, whole) <= TOLERANCE


@settings(max_examples=10, deadline=None)
@given(config=small_configs(), further=st.integers(1, 2))
def test_caches_keep_the_announced_shapes(config: VaeConfig, further: int) -> None:
    model = random_decoder(config, 0)
    _, first = model.decode_first(torch.randn(1, 1, config.channels, 2, 3))
    _, later = model.decode_next(torch.randn(1, further, config.channels, 2, 3), first)
    announced = model.cache_shapes(2, 3)
    assert [tuple(cache.shape[1:]) for cache in first] == announced
    assert [tuple(cache.shape[1:]) for cache in later] == announced


def test_a_stream_leaves_the_caches_it_was_given_alone(decoder: VaeDecoder) -> None:
    latents = torch.randn(1, 2, 16, 2, 2)
    _, caches = decoder.decode_first(latents[:, :1])
    before = [cache.clone() for cache in caches]
    decoder.decode_next(latents[:, 1:], caches)
    assert all(torch.equal(cache, copy) for cache, copy in zip(caches, before, strict=True))


def test_temporal_upsampling_never_sees_the_first_latent_frame(decoder: VaeDecoder) -> None:
    _, caches = decoder.decode_first(torch.randn(1, 1, 16, 2, 2))
    empty = [index for index, cache in enumerate(caches) if not cache.any()]
    assert empty == [11, 18]


def test_misused_streams_are_refused(decoder: VaeDecoder) -> None:
    with pytest.raises(ValueError, match="takes 1 latent frame, not 2"):
        decoder.decode_first(torch.zeros(1, 2, 16, 2, 2))
    with pytest.raises(ValueError, match="takes 32 caches, not 1"):
        decoder.decode_next(torch.zeros(1, 1, 16, 2, 2), [torch.zeros(1)])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_half_precision_stays_close(
    decoder: VaeDecoder, golden: dict[str, Tensor], dtype: torch.dtype, tolerance: float
) -> None:
    half = VaeDecoder(decoder.config).eval().requires_grad_(False)
    half.load_state_dict(decoder.state_dict())
    latents = golden["latents"][:, :2].to(dtype)
    frames = torch.cat(list(stream(half.to(dtype), latents, [1, 1])), dim=1)
    assert frames.dtype == dtype
    assert error(frames.float(), golden["decode.raw"].transpose(1, 2)[:, :5]) <= tolerance


@pytest.mark.parametrize(("value", "normalized"), [(0.0, 0.0), (1e-5, 1.0), (4e4, 1.0)])
def test_half_precision_norms_neither_underflow_nor_overflow(
    value: float, normalized: float
) -> None:
    values = torch.full((1, 4, 1, 1, 1), value, dtype=torch.float16)
    assert torch.equal(ChannelNorm(4).half()(values), torch.full_like(values, normalized))


def test_pixels_are_clamped_and_truncated() -> None:
    raw = torch.tensor([-3.0, -1.0, 0.0, 0.999, 1.0, 3.0]).reshape(1, 2, 3, 1, 1)
    pixels = to_pixels(raw.to(torch.float64))
    assert pixels.dtype == torch.uint8
    assert pixels.tolist() == [[[[[0, 0, 127]]], [[[254, 255, 255]]]]]


def test_export_keeps_batch_and_latents_dynamic() -> None:
    config = VaeConfig(
        dim=4, channels=4, multipliers=(1, 2), res_blocks=1, temporal_upsample=(True,),
        mean=(0.0,) * 4, std=(1.0,) * 4,
    )  # fmt: skip
    model = random_decoder(config, 3)
    latents = torch.randn(2, 4, 4, 3, 2)
    _, caches = model.decode_first(latents[:, :1])
    batch, count = torch.export.Dim("batch"), torch.export.Dim("count")
    program = torch.export.export(
        NextLatents(model),
        (latents, caches),
        dynamic_shapes=({0: batch, 1: count}, [{0: batch} for _ in caches]),
    )
    fewer = [cache[:1] for cache in caches]
    for length in (1, 2, 4):
        frames, after = program.module()(latents[:1, :length], fewer)
        expected, expected_after = model.decode_next(latents[:1, :length], fewer)
        for got, wanted in zip([frames, *after], [expected, *expected_after], strict=True):
            assert error(got, wanted) <= TOLERANCE


class NextLatents(torch.nn.Module):
    def __init__(self, model: VaeDecoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor, caches: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return self.model.decode_next(latents, caches)


def stream(model: VaeDecoder, latents: Tensor, chunks: list[int]) -> Iterator[Tensor]:
    first, *rest = latents.split(chunks, dim=1)
    frames, caches = model.decode_first(first)
    yield frames
    for chunk in rest:
        frames, caches = model.decode_next(chunk, caches)
        yield frames


def random_decoder(config: VaeConfig, seed: int) -> VaeDecoder:
    torch.manual_seed(seed)
    model = VaeDecoder(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape) / math.sqrt(parameter[0].numel()))
    return model


def error(actual: Tensor, expected: Tensor) -> float:
    """The relative L2 error."""
    assert actual.shape == expected.shape
    assert expected.any()
    return float((actual - expected).norm() / expected.norm())
