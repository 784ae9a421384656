"""Element types as torch has them."""

import torch

from longlive_trt import dtypes
from longlive_trt.dtypes import ElementType
from longlive_trt.precision import PRECISIONS


def torch_type(element: ElementType) -> torch.dtype:
    found: torch.dtype = getattr(torch, element.numpy.name)
    return found


TORCH_TYPES = {name: torch_type(precision.element) for name, precision in PRECISIONS.items()}
"""By the name of a precision."""
QUANTIZED_TYPES = tuple(torch_type(element) for element in dtypes.QUANTIZED_TYPES)
