"""Orders and tables of the transformer, element by element from their definitions."""

import cmath

import pytest
import torch

from longlive_trt.configs import TransformerConfig
from longlive_trt.export.models.transformer import (
    RmsNorm,
    Transformer,
    rope_table,
    rotate,
    sinusoid,
    split_rope_channels,
)

CONFIG = TransformerConfig(
    dim=24, heads=2, layers=1, ffn_dim=8, freq_dim=8, text_len=3, text_dim=4, channels=3
)


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG).eval().requires_grad_(False)


def test_patches_are_read_channel_first(model: Transformer) -> None:
    latents = torch.randn(2, 2, 3, 4, 6)
    tokens = model.patchify(latents)
    assert tokens.shape == (2, 2 * 2 * 3, 24)
    weight, bias = model.patch_embedding.weight, model.patch_embedding.bias
    assert bias is not None
    for row in range(2):
        for column in range(3):
            patch = latents[1, 1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            expected = (weight[:, :, 0] * patch).sum((1, 2, 3)) + bias
            torch.testing.assert_close(tokens[1, 6 + 3 * row + column], expected)


def test_patches_are_written_channel_last(model: Transformer) -> None:
    tokens = torch.randn(2, 12, 12)
    frames = model.unpatchify(tokens, torch.empty(2, 2, 3, 4, 6))
    assert frames.shape == (2, 2, 3, 4, 6)
    for f, i, j, p, q, c in [(0, 0, 0, 0, 0, 0), (1, 1, 2, 1, 0, 2), (0, 1, 0, 0, 1, 1)]:
        token = tokens[1, f * 6 + i * 3 + j]
        assert frames[1, f, c, 2 * i + p, 2 * j + q] == token[(2 * p + q) * 3 + c]


@pytest.mark.parametrize("timestep", [0.0, 1.0, 833.3333129882812, 1000.0])
def test_the_sinusoid_is_cosines_first(timestep: float) -> None:
    found = sinusoid(timestep, 256)[0]
    assert found.dtype == torch.float64
    turned = [cmath.exp(1j * timestep * 10_000 ** (-r / 128)) for r in range(128)]
    expected = [z.real for z in turned] + [z.imag for z in turned]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("head_dim", "split"), [(128, (44, 42, 42)), (64, (24, 20, 20)), (12, (4, 4, 4))]
)
def test_channels_of_time_row_and_column(head_dim: int, split: tuple[int, int, int]) -> None:
    assert split_rope_channels(head_dim) == split


def test_rotation_turns_adjacent_pairs_by_time_row_and_column() -> None:
    head_dim, grid, frames = 128, (3, 5), torch.tensor([7, 1000])
    x = torch.randn(1, 2 * 15, 2, head_dim, dtype=torch.float64)
    turned = rotate(x, rope_table(frames, grid, head_dim))
    for f, i, j, head, pair in [
        (0, 0, 0, 0, 3),
        (1, 2, 4, 1, 21),
        (1, 2, 3, 0, 22),
        (0, 1, 4, 1, 63),
    ]:
        token = f * 15 + i * 5 + j
        if pair < 22:
            angle = int(frames[f]) * 10_000 ** (-2 * pair / 44)
        elif pair < 43:
            angle = i * 10_000 ** (-2 * (pair - 22) / 42)
        else:
            angle = j * 10_000 ** (-2 * (pair - 43) / 42)
        z = complex(*x[0, token, head, 2 * pair : 2 * pair + 2].tolist()) * cmath.exp(1j * angle)
        found = complex(*turned[0, token, head, 2 * pair : 2 * pair + 2].tolist())
        assert abs(found - z) < 1e-12


def test_rms_norm_rounds_before_and_after_the_weight() -> None:
    norm = RmsNorm(64, 1e-6).to(torch.bfloat16).requires_grad_(False)
    norm.weight.copy_(torch.randn(64))
    x = torch.randn(5, 64).to(torch.bfloat16)
    wide = x.float()
    normed = (wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(torch.bfloat16)
    assert torch.equal(norm(x), normed * norm.weight)


def test_the_text_is_attended_to_padding_included(model: Transformer) -> None:
    padded = torch.zeros(1, 3, 4)
    padded[:, 0] = 1
    ((key, _),) = model.prompt(padded)
    assert key.shape == (1, 3, 2, 12)
    torch.testing.assert_close(key[:, 1], key[:, 2])
    assert key[:, 1].abs().sum() > 0
