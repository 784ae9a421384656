"""The text encoder against golden data, and its contracts."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from longlive_trt.configs import TextEncoderConfig
from longlive_trt.export.models.text_encoder import TextEncoder, position_buckets

GOLDEN = Path(__file__).parents[2] / "data" / "text_encoder"
CONFIG = TextEncoderConfig(vocab=64, dim=32, attention_dim=32, ffn_dim=64, heads=4, layers=2)
CPU = torch.device("cpu")
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    model = TextEncoder(CONFIG).eval().requires_grad_(False)
    model.load_state_dict(load_file(GOLDEN / "text_encoder.safetensors"))
    return model


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "encode.safetensors")


def test_states_are_golden(encoder: TextEncoder, golden: dict[str, Tensor]) -> None:
    states = encoder(golden["ids"], golden["mask"])
    assert error(states, golden["output_zeroed"]) <= TOLERANCE
    assert not states[golden["mask"] == 0].any()
    assert (golden["mask"] == 0).any()


def test_buckets_are_golden(golden: dict[str, Tensor]) -> None:
    assert torch.equal(position_buckets(160, CONFIG, CPU).int(), golden["bucket"])


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (16, 64), (4, 3)])
def test_buckets_follow_the_logarithm(buckets: int, max_distance: int) -> None:
    config = TextEncoderConfig(buckets=buckets, max_distance=max_distance)
    per_side, exact = buckets // 2, buckets // 4

    def bucket(offset: int) -> int:
        base, distance = (per_side if offset > 0 else 0), abs(offset)
        if distance < exact:
            return base + distance
        share = math.log(distance / exact) / math.log(max_distance / exact)
        # The summand lifts an exact power over its boundary where the logarithm falls short.
        return base + min(per_side - 1, exact + math.floor((per_side - exact) * share + 1e-9))

    expected = [[bucket(key - query) for key in range(200)] for query in range(200)]
    assert position_buckets(200, config, CPU).tolist() == expected


def test_padding_changes_nothing(encoder: TextEncoder, golden: dict[str, Tensor]) -> None:
    ids, mask = golden["ids"], golden["mask"]
    scrambled = torch.where(mask == 0, torch.randint_like(ids, CONFIG.vocab), ids)
    assert not torch.equal(scrambled, ids)
    assert torch.equal(encoder(scrambled, mask), encoder(ids, mask))
    length = int(mask[0].sum())
    alone = encoder(ids[:1, :length], mask[:1, :length])
    assert error(encoder(ids, mask)[:1, :length], alone) <= TOLERANCE


def test_a_prompt_without_tokens_has_zero_states(encoder: TextEncoder) -> None:
    nothing = torch.zeros(1, 5, dtype=torch.int64)
    assert torch.equal(encoder(nothing, nothing), torch.zeros(1, 5, CONFIG.dim))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 3e-2)])
def test_half_precision_stays_close(
    encoder: TextEncoder, golden: dict[str, Tensor], dtype: torch.dtype, tolerance: float
) -> None:
    half = TextEncoder(CONFIG).eval().requires_grad_(False)
    half.load_state_dict(encoder.state_dict())
    states = half.to(dtype)(golden["ids"], golden["mask"])
    assert states.dtype == dtype
    assert error(states.float(), golden["output_zeroed"]) <= tolerance


def test_the_full_model_has_the_checkpoint_tensors() -> None:
    with torch.device("meta"):
        state = TextEncoder(TextEncoderConfig()).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == dict(_full_size_tensors())
    assert len(state) == 242
    assert sum(value.numel() for value in state.values()) == 5_680_910_336


def _full_size_tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "token_embedding.weight", (256_384, 4096)
    yield "norm.weight", (4096,)
    for block in range(24):
        prefix = f"blocks.{block}"
        for name in ("norm1", "norm2"):
            yield f"{prefix}.{name}.weight", (4096,)
        for name in "qkvo":
            yield f"{prefix}.attn.{name}.weight", (4096, 4096)
        for name in ("gate.0", "fc1"):
            yield f"{prefix}.ffn.{name}.weight", (10_240, 4096)
        yield f"{prefix}.ffn.fc2.weight", (4096, 10_240)
        yield f"{prefix}.pos_embedding.embedding.weight", (32, 64)


def test_export_keeps_batch_and_length_dynamic(
    encoder: TextEncoder, golden: dict[str, Tensor]
) -> None:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    ids, mask = golden["ids"], golden["mask"]
    dynamic = {0: batch, 1: length}
    program = torch.export.export(encoder, (ids, mask), dynamic_shapes=(dynamic, dynamic))
    for count, tokens in ((2, 160), (1, 33)):
        inputs = ids[:count, :tokens], mask[:count, :tokens]
        assert error(program.module()(*inputs), encoder(*inputs)) <= TOLERANCE


def error(actual: Tensor, expected: Tensor) -> float:
    """The relative L2 error."""
    assert actual.shape == expected.shape
    assert expected.any()
    return float((actual - expected).norm() / expected.norm())
