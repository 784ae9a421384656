"""The tiny decoder: its checkpoint's names, an oracle written out in numpy, and its stream."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from longlive_trt.configs import TaehvConfig
from longlive_trt.export.models.decoders import decoder_of, presented
from longlive_trt.export.models.taehv import TaehvDecoder
from tests.export.models import tiny_decoder

GOLDEN = load_file(Path(__file__).parents[2] / "data" / "taehv" / "entrance.safetensors")
WIDTHS = (12, 8, 6, 4)
TOLERANCE = 1e-5
STRIDES = {False: 1, True: 2}


def random_decoder(seed: int = 0, **changes: object) -> TaehvDecoder:
    model = TaehvDecoder(TaehvConfig(**{"widths": WIDTHS, **changes})).eval()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.requires_grad_(False).named_parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 400
        values = torch.randn(parameter.shape, generator=generator) / math.sqrt(fan)
        # Sums do not grow from block to block, and most of the pictures is gray.
        parameter.copy_(values * (0.5 if ".conv.4." in name else 1))
    return model


def random_latents(*shape: int, seed: int = 1) -> Tensor:
    return 1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def frames_of(model: TaehvDecoder, latents: Tensor, chunks: list[int] | None = None) -> Tensor:
    if chunks is None:
        return presented(model.decode(latents), model.config)[0]
    first, *rest = latents.split(chunks, dim=1)
    frames, caches = model.decode_first(first)
    made = [frames]
    for chunk in rest:
        frames, caches = model.decode_next(chunk, caches)
        made.append(frames)
    return presented(torch.cat(made, dim=1), model.config)[0]


def test_names_and_shapes_are_those_of_the_public_files() -> None:
    model = decoder_of(TaehvConfig())
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert len(shapes) == 64 and sum(map(math.prod, shapes.values())) == 9_844_611
    for name, shape in {
        "decoder.1.weight": (256, 16, 3, 3),
        "decoder.1.bias": (256,),
        "decoder.3.conv.0.weight": (256, 512, 3, 3),
        "decoder.5.conv.4.bias": (256,),
        "decoder.7.conv.weight": (256, 256, 1, 1),
        "decoder.8.weight": (128, 256, 3, 3),
        "decoder.13.conv.weight": (256, 128, 1, 1),
        "decoder.14.weight": (64, 128, 3, 3),
        "decoder.17.conv.2.weight": (64, 64, 3, 3),
        "decoder.19.conv.weight": (128, 64, 1, 1),
        "decoder.20.weight": (64, 64, 3, 3),
        "decoder.22.weight": (3, 64, 3, 3),
        "decoder.22.bias": (3,),
    }.items():
        assert shapes[name] == shape


@pytest.mark.parametrize("latents", ["normalized", "raw"])
def test_the_public_decoder_squashes_and_begins_so(latents: str) -> None:
    model = TaehvDecoder(TaehvConfig(latents=latents)).requires_grad_(False)  # type: ignore[arg-type]
    given = "latents" if latents == "normalized" else "latents_raw"
    # What a decoder for raw latents gives for latents is what another gives for raw ones.
    expected = 3 * (GOLDEN[given] / 3).tanh()
    squashed = model._squashed(GOLDEN["latents"])
    assert error(squashed, expected) <= TOLERANCE
    if latents == "raw":
        return
    assert error(squashed, GOLDEN["decoder.0"]) <= TOLERANCE
    entrance = model.decoder["1"]
    for part in ("weight", "bias"):
        getattr(entrance, part).copy_(GOLDEN[f"decoder.1.{part}"].float())
    hidden = torch.relu(entrance(squashed.flatten(0, 1)))
    assert error(hidden.unflatten(0, (2, 2)), GOLDEN["decoder.2"]) <= TOLERANCE


@pytest.mark.parametrize(
    "temporal", [(False, True, True), (False, False, True), (False, True, False), (False,) * 3]
)
@pytest.mark.parametrize("shape", [(1, 4, 3, 5), (2, 2, 2, 3), (1, 1, 1, 1)], ids=str)
def test_a_whole_decode_is_the_oracles(
    temporal: tuple[bool, bool, bool], shape: tuple[int, int, int, int]
) -> None:
    model = random_decoder(temporal_upsample=temporal)
    batch, count, height, width = shape
    latents = random_latents(batch, count, 16, height, width)
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    strides = tuple(STRIDES[doubles] for doubles in temporal)
    expected = np.stack([tiny_decoder.decode(weights, row.numpy(), strides) for row in latents])  # type: ignore[arg-type]
    found = frames_of(model, latents)
    assert ((found > 0) & (found < 1)).float().mean() > 0.1
    assert error(found, torch.from_numpy(expected)) <= TOLERANCE
    chunks = [1] * count
    assert error(frames_of(model, latents, chunks), torch.from_numpy(expected)) <= TOLERANCE


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 3), max_size=3), batch=st.integers(1, 2))
def test_any_chunks_give_the_whole_clip(sizes: list[int], batch: int) -> None:
    model = random_decoder(3)
    latents = random_latents(batch, 1 + sum(sizes), 16, 2, 3)
    whole = frames_of(model, latents)
    assert whole.shape == (batch, 4 * latents.shape[1] - 3, 3, 16, 24)
    torch.testing.assert_close(
        frames_of(model, latents, [1, *sizes]), whole, rtol=0, atol=TOLERANCE
    )


def test_pictures_of_eight_latents_before_do_not_depend_on_older_ones() -> None:
    model = random_decoder(4)
    latents = random_latents(1, 12, 16, 2, 2)
    other = torch.cat([random_latents(1, 3, 16, 2, 2, seed=9), latents[:, 3:]], dim=1)
    ends = [frames_of(model, clip)[:, -4:] for clip in (latents, other, latents[:, 3:])]
    assert torch.equal(ends[0], ends[1])
    torch.testing.assert_close(ends[0], ends[2], rtol=0, atol=TOLERANCE)
    assert not torch.equal(*(frames_of(model, clip)[:, -8:-4] for clip in (latents, other)))


def test_pictures_are_frames_in_eight_bits() -> None:
    raw = torch.tensor([-1.0, 0.0, 0.5, 0.999, 1.0, 2.0]).reshape(1, 2, 3, 1, 1)
    frames, pixels = presented(raw, TaehvConfig())
    assert frames.flatten().tolist() == pytest.approx([0, 0, 0.5, 0.999, 1, 1])
    assert pixels.tolist() == [[[[[0, 0, 127]]], [[[254, 255, 255]]]]]


def error(actual: Tensor, expected: Tensor) -> float:
    """The relative L2 error."""
    assert actual.shape == expected.shape
    assert expected.any()
    return float((actual.double() - expected.double()).norm() / expected.double().norm())
