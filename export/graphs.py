"""The modules that become ONNX graphs: the models with their memory as inputs and outputs.

Parameters keep their checkpoint names, so one weights file serves every graph of a component.
Buffers are tables computed here in float64; the exporter stores them inside the graph.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from longlive_trt.configs import DecoderConfig, ModelConfig, TextEncoderConfig, VaeConfig
from longlive_trt.configs.schedule import TRAINING_STEPS
from longlive_trt.configs.schema import ROPE_TABLE_FRAMES
from longlive_trt.contract import (
    ATTENTION_OP,
    FRAME_COS,
    FRAME_SIN,
    GRID_COS,
    GRID_SIN,
    LEVEL_COS,
    LEVEL_RATES,
    LEVEL_SIN,
    LOCAL_DOMAIN,
)
from longlive_trt.export.models.decoders import decoder_of, presented
from longlive_trt.export.models.text_encoder import TextEncoder
from longlive_trt.export.models.transformer import (
    KeyValue,
    Transformer,
    rope_angles,
    sinusoid,
    split_heads,
    split_rope_channels,
)
from longlive_trt.export.models.vae import VaeDecoder
from longlive_trt.export.models.vae_encoder import VaeEncoder


def graph_tables(config: ModelConfig) -> dict[str, Tensor]:
    """Every constant table of the step graph, by buffer name.

    What depends on the place in a frame has an axis of frames, so that the graph keeps the name.
    """
    rows, columns = config.token_grid
    by_time, by_row, by_column = split_rope_channels(config.transformer.head_dim)
    frames = rope_angles(torch.arange(ROPE_TABLE_FRAMES), by_time)
    row_angles = rope_angles(torch.arange(rows), by_row)[:, None].expand(-1, columns, -1)
    column_angles = rope_angles(torch.arange(columns), by_column)[None].expand(rows, -1, -1)
    grid = torch.cat([row_angles, column_angles], dim=-1).flatten(0, 1)
    levels = [sinusoid(t, config.transformer.freq_dim)[0] for t in range(TRAINING_STEPS + 1)]
    half = config.transformer.freq_dim // 2
    rates = rope_angles(torch.ones(1), config.transformer.freq_dim)[0]
    tables = {
        FRAME_COS: frames.cos(),
        FRAME_SIN: frames.sin(),
        GRID_COS: grid.cos()[None],
        GRID_SIN: grid.sin()[None],
        LEVEL_COS: torch.stack(levels)[:, :half],
        LEVEL_SIN: torch.stack(levels)[:, half:],
        LEVEL_RATES: rates,
    }
    return {name: table.float().contiguous() for name, table in tables.items()}


class StepGraph(nn.Module):
    """One transformer pass over F frames against a cache of C frames (see docs/architecture.md)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config.transformer)
        for name, table in graph_tables(config).items():
            self.register_buffer(name, torch.empty_like(table))

    def forward(
        self,
        latents: Tensor,
        noise: Tensor,
        timestep: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        frame_index: Tensor,
        cache_index: Tensor,
        sink_frames: Tensor,
        window_frames: Tensor,
        k_cache: Sequence[Tensor],
        v_cache: Sequence[Tensor],
        context_k: Sequence[Tensor],
        context_v: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        relative = self.config.rollout.rope == "relative"
        new: list[KeyValue] = []
        turn = self._rope(frame_index, latents.shape[0])
        turn_cached = self._rope(cache_index, latents.shape[0]) if relative else None
        cached_tokens = (sink_frames + window_frames) * self.config.tokens_per_frame

        kept, attention = self.transformer.cache_format, self.transformer.attention_format

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            turned = attention.mixed(_rotate(k, turn))
            cached = kept.unpack(layer, "k", k_cache[layer])
            # The relative variant keeps keys as they are before rotation, and turns them anew.
            new_key = k if relative else turned
            packed = kept.pack(layer, "k", new_key), kept.pack(layer, "v", v)
            new.append(packed)
            own = (turned, v)
            if attention.sees_kept:
                own = kept.unpack(layer, "k", packed[0]), kept.unpack(layer, "v", packed[1])
            if turn_cached is not None:
                own = attention.key(layer, turned), own[1]
                cached = attention.key(layer, attention.mixed(_rotate(cached, turn_cached)))
            cached_v = kept.unpack(layer, "v", v_cache[layer])
            query = attention.query(attention.mixed(_rotate(q, turn)))
            seen = (query, *own, cached, cached_v, cached_tokens)
            return _sink_window_attention(attention.operator, seen, attention.scales(layer))

        flow = self.transformer(
            latents,
            self._time_features(timestep).to(latents.dtype),
            attend,
            list(zip(context_k, context_v, strict=True)),
            _cross_attention,
        )
        x0 = (latents.float() - sigma * flow.float()).to(latents.dtype)
        latents_next = (1 - sigma_next) * x0.float() + sigma_next * noise.float()
        keys, values = zip(*new, strict=True)
        return latents_next.to(latents.dtype), list(keys), list(values)

    def _time_features(self, timestep: Tensor) -> Tensor:
        """The sinusoid without float64: a table for whole steps, turned by the fraction."""
        whole = timestep.floor()
        angle = (timestep - whole) * self.get_buffer(LEVEL_RATES)
        index = whole.to(torch.int64)
        cos = self.get_buffer(LEVEL_COS).index_select(0, index)
        sin = self.get_buffer(LEVEL_SIN).index_select(0, index)
        return torch.cat(
            [cos * angle.cos() - sin * angle.sin(), sin * angle.cos() + cos * angle.sin()], dim=-1
        )

    def _rope(self, frame_index: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, F*P, head_dim / 2] of the given temporal positions."""

        def table(by_frame: str, by_place: str) -> Tensor:
            frames = self.get_buffer(by_frame).index_select(0, frame_index)
            grid = self.get_buffer(by_place)
            count, tokens = frames.shape[0], grid.shape[1]
            joined = torch.cat(
                [
                    frames[:, None].expand(count, tokens, -1),
                    grid.expand(count, tokens, -1),
                ],
                dim=-1,
            )
            return joined.flatten(0, 1)[None].expand(batch, -1, -1)

        return table(FRAME_COS, GRID_COS), table(FRAME_SIN, GRID_SIN)


class PromptGraph(nn.Module):
    """Text states to every layer's cross-attention keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.transformer = Transformer(config.transformer)

    def forward(self, text_states: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        keys, values = zip(*self.transformer.prompt(text_states), strict=True)
        return list(keys), list(values)


def _rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = table
    flat = x.flatten(-2).float()
    turned = torch.onnx.ops.rotary_embedding(
        flat, cos, sin, interleaved=True, num_heads=x.shape[-2]
    )
    return split_heads(turned.to(x.dtype), x.shape[-2])


def _sink_window_attention(
    operator: str, seen: tuple[Tensor, ...], scales: tuple[Tensor, ...]
) -> Tensor:
    """Queries see this pass's own keys and as many tokens of the cache as the last input says."""
    q = seen[0]
    factor = float(q.shape[-1]) ** -0.5
    heads = {"heads": q.shape[-2]} if operator == ATTENTION_OP else {}
    attended: Tensor = torch.onnx.ops.symbolic(
        f"{LOCAL_DOMAIN}::{operator}",
        (*seen, *scales),
        {"scale": factor, **heads},
        dtype=q.dtype,
        shape=q.shape,
        version=1,
    )
    return attended


def _cross_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads, scale = q.shape[-2], float(q.shape[-1]) ** -0.5
    attended: Tensor = torch.onnx.ops.symbolic(
        "Attention",
        (q.flatten(-2), k.flatten(-2), v.flatten(-2)),
        {"scale": scale, "q_num_heads": heads, "kv_num_heads": heads},
        dtype=q.dtype,
        shape=(*q.shape[:2], heads * q.shape[-1]),
        version=24,
    )
    return split_heads(attended, heads)


class VaeFirstGraph(nn.Module):
    """The first latent frame of a video; the stream's histories begin here."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.vae = decoder_of(config)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        frames, caches = self.vae.decode_first(latents)
        return *presented(frames, self.vae.config), caches


class VaeNextGraph(nn.Module):
    """Any number of further latent frames."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.vae = decoder_of(config)

    def forward(
        self, latents: Tensor, caches: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        frames, caches_next = self.vae.decode_next(latents, caches)
        return *presented(frames, self.vae.config), caches_next


class EncodeFirstGraph(nn.Module):
    """A video's first picture."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.vae_encoder = VaeEncoder(config)

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.vae_encoder.encode_first(_frames_of(pixels, self.vae_encoder))


class EncodeNextGraph(nn.Module):
    """The pictures of one further latent frame."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.vae_encoder = VaeEncoder(config)

    def forward(self, pixels: Tensor, caches: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return self.vae_encoder.encode_next(_frames_of(pixels, self.vae_encoder), caches)


def _frames_of(pixels: Tensor, encoder: VaeEncoder) -> Tensor:
    """8-bit pictures [B, n, H, W, 3] as numbers from -1 to 1, in the compute type."""
    frames = pixels.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    return frames.to(encoder.conv1.weight.dtype)


class VaeBaseGraph(nn.Module):
    """Wan's decoder up to the part that tiles may do."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.vae = VaeDecoder(config)

    def forward(
        self, latents: Tensor, caches: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        return self.vae.base(latents, caches)


class VaeTileGraph(nn.Module):
    """From there on, for a part of a frame."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.vae = VaeDecoder(config)

    def forward(
        self, features: Tensor, caches: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        frames, renewed = self.vae.rest(features, caches)
        return *presented(frames, self.vae.config), renewed


class TextGraph(nn.Module):
    """Token ids and mask to text states whose padded rows are zero."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.text_encoder = TextEncoder(config)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states: Tensor = self.text_encoder(ids, mask)
        return states
