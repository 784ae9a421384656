"""The product's transformer and text encoder, run over many blocks at once to be trained.

A clip is seen as blocks, in several streams. The clean one (t = 0) yields the keys and values that
the rollout's cache would hold; blocks of the noised ones attend to those of the first block (the
sink), of the last two, and to themselves. Positions are cache slots, as with relative rotary
positions, shifted so that the current block always has the last ones: attention knows distances
alone, so early blocks may be shifted too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longlive_trt.configs import ModelConfig
from longlive_trt.export.models.text_encoder import TextEncoder
from longlive_trt.export.models.transformer import (
    AttentionProjections,
    Block,
    Transformer,
    rope_table,
    split_heads,
)

KeyValue = tuple[Tensor, Tensor]

_PLACES = 4
"""Blocks that a query sees at most: the sink, two before it, its own."""


@dataclass(frozen=True)
class Turns:
    """Cosines and sines of rotary positions, [tokens, 1, head_dim / 2], of one block's place."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class Past:
    """A layer's clean keys, rotated for each place but a block's own, and its clean values."""

    keys: list[Tensor]
    values: Tensor


class Generator(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.text_encoder is not None
        rollout = config.rollout
        window = rollout.window_frames // rollout.frames_per_block
        if window != _PLACES or rollout.sink_frames != rollout.frames_per_block:
            raise ValueError("training takes a sink of one block and a window of four")
        self.config = config
        self.text = TextEncoder(config.text_encoder)
        self.transformer = Transformer(config.transformer)
        head_dim = config.transformer.head_dim
        angles = rope_table(torch.arange(rollout.window_frames), config.token_grid, head_dim)
        shape = (_PLACES, -1, 1, head_dim // 2)
        self.register_buffer("cos", angles.cos().float().view(shape), persistent=False)
        self.register_buffer("sin", angles.sin().float().view(shape), persistent=False)
        half = config.transformer.freq_dim // 2
        rates = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        self.register_buffer("rates", rates.float(), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        weight: Tensor = self.transformer.head.head.weight
        return torch.bfloat16 if weight.is_cuda else weight.dtype

    def turns(self, place: int) -> Turns:
        assert isinstance(self.cos, Tensor) and isinstance(self.sin, Tensor)
        return Turns(self.cos[place], self.sin[place])

    @property
    def all_turns(self) -> Turns:
        """Of all places in a row."""
        assert isinstance(self.cos, Tensor) and isinstance(self.sin, Tensor)
        return Turns(self.cos.flatten(0, 1), self.sin.flatten(0, 1))

    def context(self, ids: Tensor) -> list[KeyValue]:
        """Cross-attention's keys and values by layer, [B, text_len, heads, head_dim]."""
        with torch.autocast(ids.device.type, torch.bfloat16, ids.is_cuda, False):
            states = self.text(ids, (ids != 0).long())
            return [(k.to(self.dtype), v) for k, v in self.transformer.prompt(states)]

    def modulations(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """The time embedding [n, dim] and the blocks' share of it [n, 6, dim], in float32."""
        net = self.transformer
        assert isinstance(self.rates, Tensor)
        angles = times.float()[:, None] * self.rates
        time = net.time_embedding(torch.cat([angles.cos(), angles.sin()], 1))
        return time, net.time_projection(time).unflatten(-1, (6, -1))

    def tokens(self, latents: Tensor) -> Tensor:
        """[n, frames, C, h, w] -> [n, tokens, dim]."""
        net = self.transformer
        _, rows, columns = net.config.patch
        patches = latents.unflatten(-2, (-1, rows)).unflatten(-1, (-1, columns))
        patches = patches.permute(0, 1, 3, 5, 2, 4, 6).flatten(-3).flatten(1, 3)
        weight = net.patch_embedding.weight.flatten(1)
        return linear(patches.to(self.dtype), weight, net.patch_embedding.bias)

    def flow(self, x: Tensor, time: Tensor, like: Tensor) -> Tensor:
        head = self.transformer.head
        shift, scale = (head.modulation + time.unsqueeze(1)).chunk(2, dim=1)
        made = linear(modulated(x, shift, scale, head.eps), head.head.weight, head.head.bias)
        return self.transformer.unpatchify(made.float(), like)

    def forward(
        self, clean: Tensor, noised: Tensor, times: Tensor, context: Sequence[KeyValue]
    ) -> Tensor:
        """The flow of noised blocks [streams, K, B, frames, C, h, w] at ``times`` [streams, K, B].

        All streams see the same clean blocks [K, B, ...].
        """
        streams, blocks, batch = times.shape
        latents = torch.cat([clean[None], noised]).flatten(0, 2)
        levels = torch.cat([torch.zeros_like(times[:1]), times]).flatten()
        x, time, _ = self._run(latents, levels, context, (1 + streams, blocks, batch), None)
        first = blocks * batch
        made = self.flow(x[first:], time[first:], latents[first:])
        parts: Tensor = made.unflatten(0, times.shape)
        return parts

    def history(self, clean: Tensor, context: Sequence[KeyValue]) -> list[Past]:
        """What blocks see of clean ones before them, by layer, for several calls of ``after``."""
        shape = (1, *clean.shape[:2])
        levels = clean.new_zeros(shape).flatten()
        return self._run(clean.flatten(0, 1), levels, context, shape, None)[2]

    def after(
        self, history: Sequence[Past], noised: Tensor, times: Tensor, context: Sequence[KeyValue]
    ) -> Tensor:
        """As ``forward``, with a history that is known."""
        shape = (1, *noised.shape[:2])
        flat = noised.flatten(0, 1)
        x, time, _ = self._run(flat, times.flatten(), context, shape, history)
        parts: Tensor = self.flow(x, time, flat).unflatten(0, noised.shape[:2])
        return parts

    def _run(
        self, latents: Tensor, times: Tensor, context: Sequence[KeyValue],
        shape: tuple[int, int, int], history: Sequence[Past] | None,
    ) -> tuple[Tensor, Tensor, list[Past]]:  # fmt: skip
        """Streams x blocks x clips through all layers; the first stream is clean, if any is."""
        x = self.tokens(latents)
        time, share = self.modulations(times)
        pasts: list[Past] = []
        for layer, block in enumerate(self.transformer.blocks):
            assert isinstance(block, Block)
            known = None if history is None else history[layer]

            def attend(q: Tensor, k: Tensor, v: Tensor, known: Past | None = known) -> Tensor:
                past = known or self._past(k, v, shape)
                pasts.append(past)
                return self._attend(q, k, v, shape, past)

            x = run_block(block, x, share, context[layer], attend)
        return x, time, pasts

    def _past(self, k: Tensor, v: Tensor, shape: tuple[int, int, int]) -> Past:
        count = shape[1] * shape[2]
        turns = [self.turns(place) for place in range(_PLACES - 1)]
        keys = [rotated(k[:count], t.cos, t.sin).unflatten(0, shape[1:]) for t in turns]
        return Past(keys, v[:count].unflatten(0, shape[1:]))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, shape: tuple[int, int, int], past: Past
    ) -> Tensor:
        streams, blocks, batch = shape
        own = self.turns(_PLACES - 1)
        q, k = (rotated(x, own.cos, own.sin).unflatten(0, shape) for x in (q, k))
        v = v.unflatten(0, shape)
        parts = []
        for first, count, places in _groups(blocks):
            keys, values = [], []
            for place in places:
                start = _past_block(first, place)
                span = slice(start, start + (count if place else 1))
                keys.append(past.keys[place][span].expand(streams, count, *[-1] * 4))
                values.append(past.values[span].expand(streams, count, *[-1] * 4))
            here = slice(first, first + count)
            attended = attention(
                q[:, here].flatten(0, 2),
                torch.cat([*keys, k[:, here]], dim=3).flatten(0, 2),
                torch.cat([*values, v[:, here]], dim=3).flatten(0, 2),
            )
            parts.append(attended.unflatten(0, (streams, count, batch)))
        return torch.cat(parts, dim=1).flatten(0, 2)


def _groups(blocks: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """First block, number of blocks and past places of those that see equally many blocks."""
    early = [(b, 1, tuple(range(_PLACES - 1 - b, _PLACES - 1))) for b in range(_PLACES - 1)]
    steady = (_PLACES - 1, blocks - _PLACES + 1, tuple(range(_PLACES - 1)))
    return [g for g in (*early, steady) if g[0] < blocks]


def _past_block(block: int, place: int) -> int:
    """Which block lies at a place of the cache while ``block`` is made."""
    if block >= _PLACES - 1 and place == 0:
        return 0
    return block - (_PLACES - 1 - place)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm of [n, tokens, dim], scaled and shifted by [n, 1, dim]."""
    return _compiled("modulated")(x, shift, scale, eps)


def gated(x: Tensor, made: Tensor, gate: Tensor) -> Tensor:
    return _compiled("gated")(x, made, gate)


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _compiled("normed")(x, weight, eps)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channel pairs of [n, tokens, heads, head_dim] turned by angles [tokens, 1, head_dim / 2]."""
    return _compiled("rotated")(x, cos, sin)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    wide = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return (wide * (1 + scale) + shift).to(x.dtype)


def _gated(x: Tensor, made: Tensor, gate: Tensor) -> Tensor:
    return (x.float() + made.float() * gate).to(x.dtype)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return (F.rms_norm(x.float(), x.shape[-1:], eps=eps) * weight).to(x.dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return turned.flatten(-2).to(x.dtype)


_PLAIN: dict[str, Callable[..., Tensor]] = {
    "modulated": _modulated, "gated": _gated, "normed": _normed, "rotated": _rotated
}  # fmt: skip
_USED = dict(_PLAIN)


def _compiled(name: str) -> Callable[..., Tensor]:
    return _USED[name]


def compile_pointwise() -> None:
    """Let torch fuse the pointwise parts; each takes seconds, once for every shape."""
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    # What does not compile runs as it is.
    dynamo.suppress_errors = True
    dynamo.recompile_limit = 64
    # The analysis fails on such graphs in torch 2.11.
    if hasattr(inductor.triton, "coalesce_tiling_analysis"):
        inductor.triton.coalesce_tiling_analysis = False
    for name, plain in _PLAIN.items():
        _USED[name] = torch.compile(plain, dynamic=False)


@contextmanager
def pointwise_as_it_is() -> Iterator[None]:
    """For small batches of many shapes, none of which is worth compiling."""
    used = dict(_USED)
    _USED.update(_PLAIN)
    try:
        yield
    finally:
        _USED.update(used)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every query sees every key; [n, tokens, heads, head_dim]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def run_block(
    block: Block, x: Tensor, share: Tensor, context: KeyValue,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """One layer; ``attend`` gets normed queries and keys that are not rotated."""
    parts = (block.modulation + share).chunk(6, dim=1)
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = parts
    net = block.self_attn
    q, k, v = _projected(net, modulated(x, shift, scale, block.eps))
    attended = attend(q, k, v).flatten(-2)
    x = gated(x, linear(attended, net.o.weight, net.o.bias), gate)
    x = x + _crossed(block, x, context)
    first, last = block.ffn[0], block.ffn[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    hidden = linear(modulated(x, ffn_shift, ffn_scale, block.eps), first.weight, first.bias)
    fed = linear(F.gelu(hidden, approximate="tanh"), last.weight, last.bias)
    return gated(x, fed, ffn_gate)


def _projected(net: AttentionProjections, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    weight = torch.cat([net.q.weight, net.k.weight, net.v.weight])
    bias = torch.cat([net.q.bias, net.k.bias, net.v.bias])
    q, k, v = linear(x, weight, bias).chunk(3, dim=-1)
    eps = net.norm_q.eps
    q, k = normed(q, net.norm_q.weight, eps), normed(k, net.norm_k.weight, eps)
    return split_heads(q, net.heads), split_heads(k, net.heads), split_heads(v, net.heads)


def _crossed(block: Block, x: Tensor, context: KeyValue) -> Tensor:
    net, norm = block.cross_attn, block.norm3
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
    asked = F.layer_norm(x, x.shape[-1:], weight, bias, norm.eps)
    q = normed(linear(asked, net.q.weight, net.q.bias), net.norm_q.weight, net.norm_q.eps)
    q = split_heads(q, net.heads)
    # Clips are the fastest index of x, so their context repeats for every block and stream.
    times = len(q) // len(context[0])
    k, v = (c.expand(times, *c.shape).flatten(0, 1) for c in context)
    crossed = attention(q, k, v).flatten(-2)
    return linear(crossed, net.o.weight, net.o.bias)


@torch.no_grad()
def initialize(model: Generator) -> None:
    """Blocks begin as identities: gates and cross-attention's output are zero."""
    net = model.transformer
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    _begin_as_identity(net)
    for index in (0, 2):
        layer = net.time_embedding[index]
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.weight, std=0.02)
    zero = [net.time_projection[1]]
    zero += [block.cross_attn.o for block in net.blocks if isinstance(block, Block)]
    for layer in zero:
        assert isinstance(layer, nn.Linear)
        nn.init.zeros_(layer.weight)
    for layer in model.text.modules():
        if isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=1.0)
    text = model.text.config
    # The encoder's logits are unscaled.
    std = (text.attention_dim * text.dim // text.heads) ** -0.5
    for name, weight in model.text.named_parameters():
        if name.endswith("attn.q.weight"):
            nn.init.normal_(weight, std=std)
        if "pos_embedding" in name:
            nn.init.zeros_(weight)


def _begin_as_identity(net: Transformer) -> None:
    """The head undoes the patches' embedding, as far as that has room for them.

    At full noise the flow is nearly the input itself, and no layer holds more than its width of it.
    """
    embedding = net.patch_embedding.weight.view(net.config.dim, -1)
    nn.init.orthogonal_(embedding)
    # Patches come as (channel, row, column) and leave as (row, column, channel).
    back = net.patch_embedding.weight[:, :, 0].permute(2, 3, 1, 0).flatten(0, 2)
    net.head.head.weight.copy_(0.8 * back)
