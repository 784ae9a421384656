"""Normalization, activation and biases in one pass over pictures whose channels lie last.

On a GPU Triton's kernels do it; elsewhere, and where Triton is not installed, plain torch.
"""

import math
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_TINY = 1e-6


def norm_silu(x: Tensor, gamma: Tensor, bias: Tensor | None = None) -> Tensor:
    """SiLU of the L2-normalized channels of ``x + bias``."""
    if x.is_cuda and _has_triton() and _is_power_of_two(x.shape[1]):
        return fused_norm_silu(x, gamma, bias)
    return plain_norm_silu(x, gamma, bias)


def plain_norm_silu(x: Tensor, gamma: Tensor, bias: Tensor | None) -> Tensor:
    wide = x.float()
    if bias is not None:
        wide = wide + bias.float().reshape(-1, 1, 1)
    return F.silu(norm(wide, gamma)).to(x.dtype)


def norm(x: Tensor, gamma: Tensor) -> Tensor:
    """The channels of every pixel, divided by their length and multiplied by ``gamma``.

    The product's norm has nothing added under the root. Here a pixel that is nearly nothing must
    not multiply its gradient by a million.
    """
    wide = x.float()
    inverse = (wide.square().sum(1, keepdim=True) + _TINY).rsqrt()
    gain = gamma.float().reshape(-1, 1, 1) * math.sqrt(x.shape[1])
    return (wide * inverse * gain).to(x.dtype)


def add_bias(x: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
    """``x + bias``, and plus ``residual`` if there is one."""
    added = x + bias.to(x.dtype).reshape(-1, 1, 1)
    return added if residual is None else residual + added


def fused_norm_silu(x: Tensor, gamma: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = _NormSilu.apply(x, gamma, bias)  # type: ignore[no-untyped-call]
    return result


def _is_power_of_two(channels: int) -> bool:
    """Triton's ranges have no other lengths."""
    return channels.bit_count() == 1


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, bias: Tensor | None) -> Tensor:
        from longlive_trt.demo import kernels

        x = x.contiguous(memory_format=torch.channels_last)
        gamma = gamma.float().contiguous()
        bias = None if bias is None else bias.float().contiguous()
        ctx.save_for_backward(x, gamma, bias)
        return kernels.norm_silu(x, gamma, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        from longlive_trt.demo import kernels

        dy = grads[0].contiguous(memory_format=torch.channels_last)
        x, gamma, bias = ctx.saved_tensors
        return kernels.norm_silu_gradients(x, gamma, bias, dy)
