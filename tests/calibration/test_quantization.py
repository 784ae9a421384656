"""Rounding to FP8 and INT8 is that of ONNX's own operators, in every precision."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from longlive_trt.calibration.quantization import (
    dequantize,
    quantize,
    rounded,
    scale_of,
    weight_scale_of,
)
from longlive_trt.calibration.recipes import FORMATS, FP8, INT8, Format, recipe_named
from longlive_trt.errors import UsageError

AMAX = st.floats(2.0**-30, 2.0**20, allow_nan=False, width=32)


@given(AMAX, st.sampled_from(list(FORMATS.values())))
def test_a_scale_is_the_same_number_in_every_precision(amax: float, format_: Format) -> None:
    scale = scale_of(torch.tensor(amax), format_)
    for half in (torch.float16, torch.bfloat16):
        assert scale.to(half).float() == scale
    # Nothing is cut off, and at most one part in 128 of the range is wasted.
    assert scale * format_.largest >= amax
    assert scale <= max(amax / format_.largest * (1 + 1 / 128), 2.0**-14)


@given(AMAX)
def test_weights_in_fp8_have_powers_of_two(amax: float) -> None:
    scale = float(weight_scale_of(torch.tensor(amax), FP8))
    assert np.log2(scale) == np.round(np.log2(scale))
    assert scale * FP8.largest >= amax
    assert scale < max(2 * amax / FP8.largest, 2.0**-13)


def test_all_scales_of_fp8_weights_become_one_exactly() -> None:
    values = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    values *= torch.logspace(-2, 1, 64)[:, None]
    scale = weight_scale_of(values.abs().amax(1), FP8)[:, None]
    stored = rounded(values, scale, FP8)
    again = rounded(stored, scale.amax(), FP8)
    # What is least in the smallest channels falls below the format's normal numbers.
    normal = stored.abs() >= scale.amax() * 2.0**-6
    assert normal.float().mean() > 0.8
    torch.testing.assert_close(again[normal], stored[normal], rtol=0, atol=0)


def onnx_round_trip(values: torch.Tensor, scale: float, format_: Format) -> np.ndarray:
    """Through QuantizeLinear and DequantizeLinear of the onnx package."""
    kinds = {FP8: TensorProto.FLOAT8E4M3FN, INT8: TensorProto.INT8}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=kinds[format_]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in "xy")
    scales = [helper.make_tensor("s", TensorProto.FLOAT, [], [scale])]
    graph = helper.make_graph(nodes, "round", [x], [y], scales)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    onnx.checker.check_model(model)
    (found,) = ReferenceEvaluator(model).run(None, {"x": values.numpy()})
    return np.asarray(found)


@pytest.mark.parametrize("format_", [FP8, INT8])
def test_rounding_is_that_of_onnx(format_: Format) -> None:
    values = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 3
    scale = scale_of(values.abs().amax() / 2, format_)
    expected = onnx_round_trip(values, float(scale), format_)
    np.testing.assert_array_equal(rounded(values, scale, format_).numpy(), expected)


@pytest.mark.parametrize("format_", [FP8, INT8])
def test_what_is_out_of_range_saturates(format_: Format) -> None:
    scale = torch.tensor(0.5)
    quantized = quantize(torch.tensor([1e9, -1e9, 0.0]), scale, format_)
    assert quantized.dtype == format_.dtype
    largest, least, zero = dequantize(quantized, scale).tolist()
    assert (largest, zero) == (format_.largest / 2, 0)
    assert least <= -format_.largest / 2


def test_an_unknown_recipe_is_named() -> None:
    with pytest.raises(UsageError, match="recipe fp4 is unknown; allowed: fp8, int8"):
        recipe_named("fp4")
