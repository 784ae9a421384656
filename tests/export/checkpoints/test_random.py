import math

import pytest
import torch

from longlive_trt.export.checkpoints.opening import random_weights

SHAPES = {
    "blocks.0.self_attn.q.weight": (96, 64),
    "blocks.0.self_attn.q.bias": (96,),
    "blocks.0.self_attn.norm_q.weight": (96,),
    "blocks.0.modulation": (1, 6, 96),
    "blocks.0.attn.q.weight": (96, 64),
    "decoder.conv1.weight": (40, 8, 3, 3, 3),
    "decoder.middle.1.norm.gamma": (300, 1, 1),
    "token_embedding.weight": (50, 40),
}


def test_a_tensor_depends_on_seed_name_and_shape_only() -> None:
    forward, backward = random_weights(SHAPES, 3), random_weights(dict(reversed(SHAPES.items())), 3)
    loaded = {name: forward.load(name) for name in SHAPES}
    for name in reversed(SHAPES):
        assert torch.equal(backward.load(name), loaded[name])
        assert torch.equal(forward.load(name), loaded[name])
        assert not torch.equal(random_weights(SHAPES, 4).load(name), loaded[name])
    first, second = (loaded[f"blocks.0.{kind}.q.weight"] for kind in ("self_attn", "attn"))
    assert not torch.allclose(first / first.std(), second / second.std(), atol=0.1)


def test_the_numbers_stay_the_same_everywhere() -> None:
    values = random_weights({"a.weight": (2, 3)}, 0).load("a.weight").flatten()
    pinned = [0.5002807, 0.6680809, 0.7882693, -0.7379911, -0.0821400, -0.0938799]
    torch.testing.assert_close(values, torch.tensor(pinned), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "mean", "deviation"),
    [
        ("blocks.0.self_attn.q.weight", 0, 1 / 8),
        ("blocks.0.attn.q.weight", 0, 1 / 64),
        ("blocks.0.self_attn.q.bias", 0, 0.02),
        ("blocks.0.self_attn.norm_q.weight", 1, 0.1),
        ("blocks.0.modulation", 0, 0.02),
        ("decoder.conv1.weight", 0, 1 / math.sqrt(8 * 27)),
        ("decoder.middle.1.norm.gamma", 1, 0.1),
        ("token_embedding.weight", 0, 1),
    ],
)
def test_scales(name: str, mean: float, deviation: float) -> None:
    tensor = random_weights(SHAPES, 0).load(name)
    assert tensor.shape == SHAPES[name]
    assert tensor.dtype == torch.float32
    tolerance = 4 * deviation / math.sqrt(tensor.numel())
    assert tensor.mean().item() == pytest.approx(mean, abs=tolerance)
    assert tensor.std().item() == pytest.approx(deviation, rel=0.25)


def test_digest_follows_seed_and_shapes() -> None:
    weights = random_weights(SHAPES, 0)
    others = [random_weights(SHAPES, 1), random_weights({"a": (2,)}, 0)]
    assert weights.digest() == random_weights(dict(SHAPES), 0).digest()
    assert len({weights.digest(), *(other.digest() for other in others)}) == 3
    assert len(weights.digest()) == 64
