"""Inputs of a product with GELU in eight bits, as layers have them, and what it is in float64."""

from typing import Any

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.dtypes import FLOAT8
from tests.plugins.kernels.arrays import NUMPY_TYPES

_LARGEST = 448.0


def gelu_inputs(
    rows: int, inner: int, columns: int, bias_type: str, seed: int
) -> tuple[list[Array], float]:
    """x, weight, bias and factor; and the scale of the product.

    Channels have means, and every 17th is much larger than the others.
    """
    random = np.random.default_rng(seed)
    spread = np.exp(0.4 * random.standard_normal(inner))
    spread[::17] *= 6
    x = (random.standard_normal((rows, inner)) + random.standard_normal(inner)) * spread
    weight = (random.standard_normal((columns, inner)) + 0.2) / spread
    narrow_x, x_scale = _narrow(x)
    narrow_weight, weight_scale = _narrow(weight / np.sqrt(inner))
    bias = random.standard_normal(columns).astype(NUMPY_TYPES[bias_type])
    # What is larger than six becomes the largest number.
    factor = np.array([_LARGEST / 6], np.float32)
    return [narrow_x, narrow_weight, bias, factor], x_scale * weight_scale


def _narrow(values: Array) -> tuple[Array, float]:
    scale = float(np.abs(values).max()) / _LARGEST
    return (values / scale).astype(np.float32).astype(FLOAT8.numpy), scale


def gelu_in_float64(torch: Any, inputs: list[Any], scale: float) -> Any:
    """Of torch's tensors, with the factor, and not rounded."""
    x, weight, bias, factor = (tensor.double() for tensor in inputs)
    product = x @ weight.T * scale + bias
    gelu = torch.nn.functional.gelu(product, approximate="tanh")
    return (gelu * factor).clip(-_LARGEST, _LARGEST)
