"""Values in the layout that 8-bit attention reads, written into a slot."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from longlive_trt.plugins.attention.value_layout import value_position
from longlive_trt.plugins.kernels.values import quantize_values
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
