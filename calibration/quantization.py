"""Scales, and numbers rounded to FP8 or INT8 as QuantizeLinear rounds them."""

import torch
from torch import Tensor

from longlive_trt.calibration.recipes import Format

# The least normal number of half precision.
_SMALLEST_SCALE = 2.0**-14


def scale_of(amax: Tensor, format_: Format) -> Tensor:
    """The scale that maps ``amax`` to the format's largest number, the same in every precision."""
    return _exact(amax.float() / format_.largest).clamp_min(_SMALLEST_SCALE)


def weight_scale_of(amax: Tensor, format_: Format) -> Tensor:
    """Floating-point weights have powers of two: all scales of a layer become one exactly.

    What rounding costs is the same as with any other scale.
    """
    if format_.dtype == torch.int8:
        return scale_of(amax, format_)
    mantissa, exponent = torch.frexp(amax.float() / format_.largest)
    power = torch.where(mantissa == 0.5, exponent - 1, exponent)
    return torch.ldexp(torch.ones_like(mantissa), power).clamp_min(_SMALLEST_SCALE)


def _exact(values: Tensor) -> Tensor:
    """The next number up that half precision of both kinds holds."""
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp(torch.ceil(mantissa * 256) / 256, exponent)


def exact_in_half_precision(values: Tensor) -> Tensor:
    return _exact(values.float()).clamp_min(_SMALLEST_SCALE)


def quantize(values: Tensor, scale: Tensor, format_: Format) -> Tensor:
    scaled = values.float() / scale.float()
    # In place, since fresh memory costs more than the arithmetic.
    if format_.dtype == torch.int8:
        return scaled.round_().clamp_(-128, 127).to(torch.int8)
    return scaled.clamp_(-format_.largest, format_.largest).to(format_.dtype)


def dequantize(quantized: Tensor, scale: Tensor) -> Tensor:
    return quantized.to(scale.dtype) * scale


def rounded(values: Tensor, scale: Tensor, format_: Format) -> Tensor:
    """What is left of the values after a quantization and back."""
    return dequantize(quantize(values, scale, format_), scale.to(values.dtype))
