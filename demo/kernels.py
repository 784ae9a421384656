"""Triton's kernels for :mod:`fused`; importing this needs Triton."""
# The kernels are a language of their own: mypy does not know it, and constants are capitals in it.
# mypy: ignore-errors
# ruff: noqa: N803

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS = 4096
"""Numbers that a program holds at once."""
PROGRAMS = 1056
"""Programs that share a picture's pixels when sums over all of them are wanted."""
TINY = tl.constexpr(1e-6)


@triton.jit
def _forward(x, gamma, bias, y, rows, C: tl.constexpr, R: tl.constexpr, B: tl.constexpr):
    row = tl.program_id(0) * R + tl.arange(0, R)
    channel = tl.arange(0, C)
    at = row[:, None] * C + channel[None, :]
    inside = row[:, None] < rows
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if B:
        v += tl.load(bias + channel)[None, :]
    scale = tl.rsqrt(tl.sum(v * v, 1) + TINY) * (C**0.5)
    n = v * scale[:, None] * tl.load(gamma + channel)[None, :]
    tl.store(y + at, n * tl.sigmoid(n), mask=inside)


@triton.jit
def _backward(
    x, gamma, bias, dy, dx, dgamma, dbias, rows,
    EACH: tl.constexpr, C: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
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
        scale = tl.rsqrt(tl.sum(v * v, 1) + TINY) * (C**0.5)
        unit = v * scale[:, None]
        n = unit * g[None, :]
        s = tl.sigmoid(n)
        dn = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32) * s * (1 + n * (1 - s))
        sum_gamma += tl.sum(dn * unit, 0)
        dunit = dn * g[None, :]
        along = tl.sum(dunit * unit, 1) / C
        dv = (dunit - unit * along[:, None]) * scale[:, None]
        if B:
            sum_bias += tl.sum(tl.where(inside, dv, 0.0), 0)
        tl.store(dx + at, dv, mask=inside)
    tl.store(dgamma + program * C + channel, sum_gamma)
    if B:
        tl.store(dbias + program * C + channel, sum_bias)


def norm_silu(x: Tensor, gamma: Tensor, bias: Tensor | None) -> Tensor:
    """Of channels that lie last."""
    y, channels = torch.empty_like(x), x.shape[1]
    rows, at_once = x.numel() // channels, max(1, NUMBERS // channels)
    # Without a bias any pointer serves; the kernel never reads it.
    given = gamma if bias is None else bias
    _forward[(triton.cdiv(rows, at_once),)](
        x, gamma, given, y, rows, C=channels, R=at_once, B=bias is not None
    )
    return y


def norm_silu_gradients(
    x: Tensor, gamma: Tensor, bias: Tensor | None, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    channels = x.shape[1]
    rows, at_once = x.numel() // channels, max(1, NUMBERS // channels)
    groups = triton.cdiv(rows, at_once)
    each = triton.cdiv(groups, PROGRAMS)
    programs = triton.cdiv(groups, each)
    dx = torch.empty_like(x)
    sums = torch.empty(2, programs, channels, dtype=torch.float32, device=x.device)
    given = gamma if bias is None else bias
    _backward[(programs,)](
        x, gamma, given, dy, dx, sums[0], sums[1], rows,
        EACH=each, C=channels, R=at_once, B=bias is not None,
    )  # fmt: skip
    return dx, sums[0].sum(0), None if bias is None else sums[1].sum(0)
