"""The UMT5 text encoder: token ids into the states that condition the transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longlive_trt.configs import TextEncoderConfig

NORM_EPS = 1e-6


class TextEncoder(nn.Module):
    """The state dict's keys are those of ``models_t5_umt5-xxl-enc-bf16.pth``."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab, config.dim)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm = _RmsNorm(config.dim)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids [B, T] and their mask into states [B, T, dim], zero where the mask is."""
        padded = mask == 0
        buckets = position_buckets(ids.shape[1], self.config, ids.device)
        states = self.token_embedding(ids)
        for block in self.blocks:
            states = block(states, padded, buckets)
        result: Tensor = self.norm(states).masked_fill(padded[..., None], 0)
        return result


def position_buckets(tokens: int, config: TextEncoderConfig, device: torch.device) -> Tensor:
    """The bucket [query, key] of every relative position."""
    position = torch.arange(tokens, device=device)
    offset = position[None, :] - position[:, None]
    distance = offset.abs()
    per_side = config.buckets // 2
    bucket = distance.clamp_max(per_side // 2)
    for start in _coarse_bucket_starts(per_side, config.max_distance):
        bucket = bucket + (distance >= start).long()
    return bucket + (offset > 0).long() * per_side


def _coarse_bucket_starts(per_side: int, max_distance: int) -> list[int]:
    """The least distance of every logarithmic bucket but the first.

    The distance a is in bucket k or a later one if n ln(a/e) / ln(m/e) >= k, where the distances
    below e have buckets of their own and n buckets share those up to m. As whole numbers, that
    is a^n e^k >= m^k e^n: rounding of logarithms cannot move a boundary.
    """
    exact = per_side // 2
    coarse = per_side - exact
    starts, distance = [], exact
    for k in range(1, coarse):
        while distance**coarse * exact**k < max_distance**k * exact**coarse:
            distance += 1
        starts.append(distance)
    return starts


class _Block(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.norm1 = _RmsNorm(config.dim)
        self.attn = _Attention(config)
        self.norm2 = _RmsNorm(config.dim)
        self.ffn = _GatedFeedForward(config)
        self.pos_embedding = _PositionBias(config)

    def forward(self, states: Tensor, padded: Tensor, buckets: Tensor) -> Tensor:
        states = states + self.attn(self.norm1(states), self.pos_embedding(buckets), padded)
        result: Tensor = states + self.ffn(self.norm2(states))
        return result


class _RmsNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, states: Tensor) -> Tensor:
        normalized = F.rms_norm(states.float(), self.weight.shape, eps=NORM_EPS)
        return self.weight * normalized.to(states.dtype)


class _PositionBias(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.buckets, config.heads)

    def forward(self, buckets: Tensor) -> Tensor:
        bias: Tensor = self.embedding(buckets)
        return bias.permute(2, 0, 1)


class _Attention(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self._heads = config.heads
        self.q, self.k, self.v = (
            nn.Linear(config.dim, config.attention_dim, bias=False) for _ in range(3)
        )
        self.o = nn.Linear(config.attention_dim, config.dim, bias=False)

    def forward(self, states: Tensor, bias: Tensor, padded: Tensor) -> Tensor:
        query, key, value = (
            project(states).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        # The logits are unscaled, so large ones are common; half precision would blur them.
        logits = query.float() @ key.float().transpose(-1, -2) + bias.float()
        logits = logits.masked_fill(padded[:, None, None, :], torch.finfo(logits.dtype).min)
        attended = logits.softmax(dim=-1).to(value.dtype) @ value
        result: Tensor = self.o(attended.transpose(1, 2).flatten(2))
        return result


class _GatedFeedForward(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim, bias=False), nn.GELU(approximate="tanh")
        )
        self.fc1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.fc2 = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        result: Tensor = self.fc2(self.fc1(states) * self.gate(states))
        return result
