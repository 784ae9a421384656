"""Values in the layout that 8-bit attention reads, written into a slot and moved to another."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from longlive_trt.plugins.attention.value_layout import value_position
from longlive_trt.plugins.cuda.tensors import as_device_tensor
from longlive_trt.plugins.kernels.values import move_values, moved, quantize_values
from tests.plugins.conftest import random_normal

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("first_token", [0, 8, 21])
def test_values_land_in_the_transposed_layout(need_gpu, first_token):
    need_gpu((8, 9))
    tokens, pitch = 150, 208
    v = random_normal((2, tokens, 3, 128), "bfloat16", 4)
    scale = torch.tensor([0.01, 0.02, 0.03], device="cuda")
    out = torch.full((2, 3, 128, pitch), 0x55, dtype=torch.uint8, device="cuda")
    quantize_values(v, scale, out.view(torch.float8_e4m3fn), first_token=first_token)
    scaled = (v.float() * (1 / scale)[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    expected = np.full((2, 3, 128, pitch), 0x55, dtype=np.uint8)
    bytes_of = scaled.view(torch.uint8).cpu().numpy().transpose(0, 2, 3, 1)
    positions = [value_position(first_token + token) for token in range(tokens)]
    expected[..., positions] = bytes_of
    np.testing.assert_array_equal(out.cpu().numpy(), expected)


@pytest.mark.parametrize(
    ("source_first", "target_first", "tokens"),
    # Blocks and a re-cache of frames of 1,560 tokens in a cache of nine, and odd ones.
    [
        (0, 0, 4680),
        (0, 4680, 4680),
        (0, 9360, 4680),
        (0, 0, 14040),
        (1560, 4680, 9360),
        (5, 18, 77),
    ],
)
def test_moved_values_are_those_of_numpy(need_gpu, source_first, target_first, tokens):
    need_gpu((8, 9))
    generator = np.random.default_rng(tokens)
    source, target = (generator.integers(0, 255, (1, 3, 128, 14048), np.uint8) for _ in range(2))
    place = {"source_first": source_first, "target_first": target_first, "tokens": tokens}
    on_device = [torch.from_numpy(x).cuda().view(torch.float8_e4m3fn) for x in (source, target)]
    stream = torch.cuda.current_stream().cuda_stream
    move_values(*(as_device_tensor(x, "x") for x in on_device), **place, stream=stream)
    moved(source, target, **place)
    np.testing.assert_array_equal(on_device[1].view(torch.uint8).cpu().numpy(), target)
