"""Normalization, activation and biases in one pass over pictures whose channels lie last.

On a GPU Triton's kernels do it; elsewhere, and where Triton is not installed, plain torch.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

_NUMBERS = 4096
"""Numbers that a program holds at once."""
_PROGRAMS = 1056
"""Programs that share a picture's pixels when sums over all of them are wanted."""
_TINY = 1e-6


def norm_silu(x: Tensor, gamma: Tensor, bias: Tensor | None = None) -> Tensor:
    """SiLU of the L2-normalized channels of ``x + bias``."""
    if x.is_cuda and triton is not None:
        fused: Tensor = _NormSilu.apply(x, gamma, bias)
        return fused
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


def _rows(channels: int) -> int:
    return max(1, _NUMBERS // channels)


if triton is not None:

    @triton.jit
    def _forward_kernel(x, gamma, bias, y, rows, C: tl.constexpr, R: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
        row = tl.program_id(0) * R + tl.arange(0, R)
        channel = tl.arange(0, C)
        at = row[:, None] * C + channel[None, :]
        inside = row[:, None] < rows
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if B:
            v += tl.load(bias + channel)[None, :]
        scale = tl.rsqrt(tl.sum(v * v, 1) + 1e-6) * (C**0.5)
        n = v * scale[:, None] * tl.load(gamma + channel)[None, :]
        tl.store(y + at, n * tl.sigmoid(n), mask=inside)

    @triton.jit
    def _backward_kernel(
        x,
        gamma,
        bias,
        dy,
        dx,
        dgamma,
        dbias,
        rows,
        EACH: tl.constexpr,
        C: tl.constexpr,
        R: tl.constexpr,
        B: tl.constexpr,
    ):  # type: ignore[no-untyped-def]
        program = tl.program_id(0)
        channel = tl.arange(0, C)
        g = tl.load(gamma + channel)
        if B:
            b = tl.load(bias + channel)
        sum_gamma = tl.zeros([C], tl.float32)
        sum_bias = tl.zeros([C], tl.float32)
        for step in range(EACH):
            row = (program * EACH + step) * R + tl.arange(0, R)
            at = row[:, None] * C + channel[None, :]
            inside = row[:, None] < rows
            v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            if B:
                v += b[None, :]
            squares = tl.sum(v * v, 1)
            scale = tl.rsqrt(squares + 1e-6) * (C**0.5)
            unit = v * scale[:, None]
            n = unit * g[None, :]
            s = tl.sigmoid(n)
            dn = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32) * s * (1 + n * (1 - s))
            sum_gamma += tl.sum(dn * unit, 0)
            dunit = dn * g[None, :]
            along = tl.sum(dunit * unit, 1) / C
            dv = (dunit - unit * along[:, None]) * scale[:, None]
            if B:
                sum_bias += tl.sum(dv, 0)
            tl.store(dx + at, dv, mask=inside)
        tl.store(dgamma + program * C + channel, sum_gamma)
        if B:
            tl.store(dbias + program * C + channel, sum_bias)


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        gamma = gamma.float().contiguous()
        bias = None if bias is None else bias.float().contiguous()
        y = torch.empty_like(x)
        channels = x.shape[1]
        rows = x.numel() // channels
        # Without a bias any pointer serves; the kernel never reads it.
        given = gamma if bias is None else bias
        _forward_kernel[(triton.cdiv(rows, _rows(channels)),)](
            x, gamma, given, y, rows, C=channels, R=_rows(channels), B=bias is not None
        )
        ctx.save_for_backward(x, gamma, bias)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, gamma, bias = ctx.saved_tensors
        dy = grads[0].contiguous(memory_format=torch.channels_last)
        channels = x.shape[1]
        rows = x.numel() // channels
        groups = triton.cdiv(rows, _rows(channels))
        each = triton.cdiv(groups, _PROGRAMS)
        programs = triton.cdiv(groups, each)
        dx = torch.empty_like(x)
        sums = torch.empty(2, programs, channels, dtype=torch.float32, device=x.device)
        given = gamma if bias is None else bias
        _backward_kernel[(programs,)](
            x, gamma, given, dy, dx, sums[0], sums[1], rows,
            EACH=each, C=channels, R=_rows(channels), B=bias is not None,
        )  # fmt: skip
        dgamma = sums[0].sum(0)
        return dx, dgamma, None if bias is None else sums[1].sum(0)
