"""The diffusion transformer in plain torch.

The module computes everything but self-attention's memory: how keys get their positions, which
keys a query sees and where new ones are kept is the caller's ``attend``. The reference rollout
keeps an upstream-like cache there; the exported graph reads cache tensors.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longlive_trt.configs import TransformerConfig
from longlive_trt.contract import ATTENTION_OP

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q, k, v) -> attended values; all [B, S, heads, head_dim], q and k normed, not rotated."""

KeyValue = tuple[Tensor, Tensor]


class RmsNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Two roundings in half precision, as upstream: the normalised value, then the product.
        normed = F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)
        return normed * self.weight


class AttentionProjections(nn.Module):
    """The four linear maps and two norms that self- and cross-attention share."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RmsNorm(dim, config.eps)
        self.norm_k = RmsNorm(dim, config.eps)

    def query(self, x: Tensor) -> Tensor:
        return split_heads(self.norm_q(self.q(x)), self.heads)

    def key_value(self, x: Tensor) -> KeyValue:
        return split_heads(self.norm_k(self.k(x)), self.heads), split_heads(self.v(x), self.heads)


class Block(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim, self.eps = config.dim, config.eps
        self.modulation = nn.Parameter(torch.zeros(1, 6, dim))
        self.self_attn = AttentionProjections(config)
        self.norm3 = nn.LayerNorm(dim, eps=config.eps)
        self.cross_attn = AttentionProjections(config)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, dim),
        )

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
        cross_attend: Callable[[Tensor], Tensor],
    ) -> Tensor:
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.modulation + time).unbind(1)
        a = modulate(x, shift, scale, self.eps)
        attended = attend(self.self_attn.query(a), *self.self_attn.key_value(a))
        x = x + gate * self.self_attn.o(attended.flatten(-2))
        crossed = cross_attend(self.cross_attn.query(self.norm3(x)))
        x = x + self.cross_attn.o(crossed.flatten(-2))
        fed: Tensor = self.ffn(modulate(x, ffn_shift, ffn_scale, self.eps))
        return x + ffn_gate * fed


class Head(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        _, patch_height, patch_width = config.patch
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))
        self.head = nn.Linear(config.dim, config.channels * patch_height * patch_width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.modulation + time.unsqueeze(1)).unbind(1)
        projected: Tensor = self.head(modulate(x, shift, scale, self.eps))
        return projected


def _mlp(in_dim: int, dim: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, dim), activation, nn.Linear(dim, dim))


class CacheFormat(nn.Module):
    """How keys and values [B, S, heads, head_dim] are kept between passes: as they are."""

    def pack(self, layer: int, part: str, x: Tensor) -> Tensor:
        return x

    def unpack(self, layer: int, part: str, x: Tensor) -> Tensor:
        return x


class AttentionFormat(nn.Module):
    """What self-attention computes in: what it is given."""

    operator = ATTENTION_OP
    """The function that a graph calls."""
    sees_kept = False
    """Whether a pass sees its own keys and values as the cache keeps them."""

    def mixed(self, x: Tensor) -> Tensor:
        """Queries or keys that were turned to their positions, as products and cache have them."""
        return x

    def query(self, x: Tensor) -> Tensor:
        """Queries, as the graph's function is given them."""
        return x

    def key(self, layer: int, x: Tensor) -> Tensor:
        """Keys that were turned and mixed, as the graph's function is given them."""
        return x

    def scales(self, layer: int) -> tuple[Tensor, ...]:
        """Of queries, keys, values and the softmax, where these are rounded to eight bits."""
        return ()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Of queries and keys at their positions."""
        return full_attention(q, k, v)

    def attend_given(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Of what the graph's function is given."""
        return self.attend(layer, q, k, v)


class Transformer(nn.Module):
    """State dict keys and shapes are those of the public checkpoint."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.channels, dim, config.patch, stride=config.patch)
        self.text_embedding = _mlp(config.text_dim, dim, nn.GELU(approximate="tanh"))
        self.time_embedding = _mlp(config.freq_dim, dim, nn.SiLU())
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = Head(config)
        self.cache_format = CacheFormat()
        self.attention_format = AttentionFormat()

    def prompt(self, text_states: Tensor) -> list[KeyValue]:
        """Cross-attention keys and values of every layer, from [B, text_len, text_dim]."""
        embedded = self.text_embedding(text_states)
        return [block.cross_attn.key_value(embedded) for block in self._blocks()]

    def forward(
        self,
        latents: Tensor,
        time_features: Tensor,
        attend: Attend,
        context: Sequence[KeyValue],
        cross_attention: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The flow of latents [B, F, C, H, W] at the level of time_features [1, freq_dim]."""
        cross_attention = cross_attention or full_attention
        time = self.time_embedding(time_features)
        block_time = self.time_projection(time).unflatten(-1, (6, -1))
        x = self.patchify(latents)
        for layer, block in enumerate(self._blocks()):
            key, value = context[layer]
            x = block(
                x,
                block_time,
                lambda q, k, v, layer=layer: attend(layer, q, k, v),
                lambda q, key=key, value=value: cross_attention(q, key, value),
            )
        return self.unpatchify(self.head(x, time), latents)

    def _blocks(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    def patchify(self, latents: Tensor) -> Tensor:
        """[B, F, C, H, W] -> tokens [B, F*P, dim]: frame-major, then row, then column."""
        _, patch_height, patch_width = self.config.patch
        patches = latents.unflatten(-2, (-1, patch_height)).unflatten(-1, (-1, patch_width))
        patches = patches.permute(0, 1, 3, 5, 2, 4, 6).flatten(-3).flatten(1, 3)
        return F.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)

    def unpatchify(self, tokens: Tensor, like: Tensor) -> Tensor:
        _, patch_height, patch_width = self.config.patch
        rows, columns = like.shape[-2] // patch_height, like.shape[-1] // patch_width
        split = tokens.unflatten(-1, (patch_height, patch_width, self.config.channels))
        grid = split.unflatten(1, (-1, rows, columns))
        frames: Tensor = grid.permute(0, 1, 6, 2, 4, 3, 5).flatten(-2).flatten(-3, -2)
        return frames


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[..., heads * head_dim] -> [..., heads, head_dim]"""
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every query sees every key; [B, S, heads, head_dim] in and out."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def sinusoid(timestep: float, freq_dim: int) -> Tensor:
    """[1, freq_dim] in float64: cosines, then sines, of geometrically falling frequencies."""
    half = freq_dim // 2
    rates = torch.pow(10_000.0, -torch.arange(half, dtype=torch.float64) / half)
    angles = timestep * rates
    return torch.cat([angles.cos(), angles.sin()])[None]


def rope_angles(positions: Tensor, channels: int) -> Tensor:
    """[len(positions), channels / 2] float64 angles of one axis that owns ``channels``."""
    twos = torch.arange(0, channels, 2, dtype=torch.float64, device=positions.device)
    exponents = twos / channels
    return positions.to(torch.float64)[:, None] * torch.pow(10_000.0, -exponents)


def split_rope_channels(head_dim: int) -> tuple[int, int, int]:
    """How many of a head's channels turn with time, row and column."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def rope_table(frames: Tensor, grid: tuple[int, int], head_dim: int) -> Tensor:
    """[F*P, head_dim / 2] float64 angles for tokens of the given temporal positions, where those
    are."""
    rows, columns = grid
    by_place = (torch.arange(size, device=frames.device) for size in grid)
    by_time, by_row, by_column = (
        rope_angles(positions, channels)
        for positions, channels in zip(
            (frames, *by_place),
            split_rope_channels(head_dim),
            strict=True,
        )
    )
    shape = (len(frames), rows, columns, -1)
    return torch.cat(
        [
            by_time[:, None, None].expand(shape),
            by_row[None, :, None].expand(shape),
            by_column[None, None, :].expand(shape),
        ],
        dim=-1,
    ).flatten(0, 2)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn channel pairs of [B, S, heads, head_dim] by float64 angles [S, head_dim / 2]."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    even, odd = x.to(angles.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)
