"""The demo's rollout in torch, with places where an idea may change what a pass computes.

Without an idea it computes what the product's engines do, to rounding; a test holds it to that.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from longlive_trt.calibration.calibrator import load_model
from longlive_trt.configs import ModelConfig
from longlive_trt.demo.geometry import WEIGHTS, model_config
from longlive_trt.export.checkpoints.opening import open_transformer
from longlive_trt.export.models.rollout import Placement, ReferenceRollout
from longlive_trt.export.models.transformer import (
    Transformer,
    full_attention,
    rope_angles,
    sinusoid,
    split_rope_channels,
)
from longlive_trt.quality.cases import Case
from longlive_trt.quality.metrics.similarity import Pixels
from longlive_trt.runtime.decoding.choice import decoder_named
from longlive_trt.runtime.decoding.host import VaeStream
from longlive_trt.runtime.noise import SeededNoise
from longlive_trt.runtime.pipeline import Pipeline


@dataclass(frozen=True)
class Places:
    """Of tokens: latent frame (a slot of the window), row, column; [tokens, 3] in float64."""

    at: Tensor

    @classmethod
    def of(cls, frames: Tensor, grid: tuple[int, int]) -> "Places":
        axes = (frames, torch.arange(grid[0]), torch.arange(grid[1]))
        mesh = torch.meshgrid(*(axis.to(torch.float64) for axis in axes), indexing="ij")
        return cls(torch.stack([axis.flatten() for axis in mesh], dim=1))

    def __getitem__(self, which: slice | Tensor) -> "Places":
        return Places(self.at[which])


def turned(x: Tensor, places: Places) -> Tensor:
    """Queries or keys [B, tokens, heads, head_dim] at places that need not be whole numbers."""
    widths = split_rope_channels(x.shape[-1])
    angles = torch.cat(
        [rope_angles(places.at[:, axis], width) for axis, width in enumerate(widths)], dim=1
    )
    cos, sin = angles.cos().float()[:, None], angles.sin().float()[:, None]
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


@dataclass(frozen=True)
class Seen:
    """What a pass's attention in one layer is made of, before anything is turned."""

    layer: int
    q: Tensor
    q_places: Places
    keys: Tensor
    """Those of the cache that are seen, then the pass's own; [B, tokens, heads, head_dim]."""
    values: Tensor
    places: Places
    sink: int
    """Tokens of the sink, the first ones."""
    own: int
    """Tokens of the pass itself, the last ones."""
    is_recache: bool


@dataclass(frozen=True)
class Way:
    """How a pass is computed: as the model was trained. Ideas change one thing each."""

    def attend(self, seen: Seen) -> Tensor:
        q, keys = turned(seen.q, seen.q_places), turned(seen.keys, seen.places)
        return full_attention(q, keys, seen.values)

    def layers(self, step: int | None, count: int) -> int:
        """How many of the layers a pass runs; ``step`` is None for passes that fill the cache."""
        return count

    def kept(self, layer: int, part: str, x: Tensor) -> Tensor:
        """Keys or values as the cache keeps them."""
        return x


class Rollout(ReferenceRollout):
    """One video; the bookkeeping is the reference's."""

    def __init__(
        self, model: Transformer, config: ModelConfig, total_frames: int, way: Way
    ) -> None:
        super().__init__(model, config, 1, total_frames)
        if config.rollout.rope != "relative":
            raise ValueError("ideas are tried with positions relative to the window")
        self.way = way

    @staticmethod
    def configured(config: ModelConfig) -> ModelConfig:
        """What a video is rolled out as, of the model's own configuration."""
        return config

    def passes(self, noise: Tensor, renoise: Sequence[Tensor]) -> Iterator[Tensor]:
        """What each denoising pass takes the clean block for; the last one is the block."""
        x, start = noise, self.next_frame
        levels = (self.schedule if self.frames else self.opening).passes
        for step, level in enumerate(levels):
            x0 = self.denoised(x, start, step, level.timestep, level.sigma)
            yield x0
            if step + 1 < len(levels):
                x = (1 - level.sigma_next) * x0 + level.sigma_next * renoise[step]

    def denoised(self, x: Tensor, start: int, step: int, timestep: float, sigma: float) -> Tensor:
        return x - sigma * self.run(x, start, timestep, step)

    def run_block(self, noise: Tensor, renoise: Sequence[Tensor]) -> Tensor:
        *_, x = self.passes(noise, renoise)
        self.commit(x)
        return x

    def commit(self, x: Tensor) -> None:
        """The clean pass: what later blocks see of this one."""
        self.run(x, self.next_frame, float(self.schedule.clean.timestep), None)
        self.frames.append(x)

    def forward(
        self, latents: Tensor, start: int, timestep: float, *, rewrite_sink: bool = False
    ) -> Tensor:
        """A re-cache."""
        return self.run(latents, start, timestep, None, rewrite_sink=rewrite_sink)

    def run(
        self,
        latents: Tensor,
        start: int,
        timestep: float,
        step: int | None,
        *,
        rewrite_sink: bool = False,
    ) -> Tensor:
        place = self._place(start, latents.shape[1], rewrite_sink)
        model, config = self.model, self.config.transformer
        time = model.time_embedding(sinusoid(timestep, config.freq_dim).float())
        block_time = model.time_projection(time).unflatten(-1, (6, -1))
        x, end = model.patchify(latents), self.way.layers(step, config.layers)
        for layer in range(config.layers):
            self._roll(layer, place)
            if layer < end:
                attention = partial(self._see, layer, place)
                x = model.blocks[layer](x, block_time, attention, self._cross(layer))
        if not place.recompute:
            self.cache.frames_ever = start + latents.shape[1]
            self.cache.frames_held = place.end_slot
        flow: Tensor = model.unpatchify(model.head(x, time), latents)
        return flow

    def _cross(self, layer: int) -> Callable[[Tensor], Tensor]:
        key, value = self.context[layer]
        return lambda q: full_attention(q, key, value)

    def _roll(self, layer: int, place: Placement) -> None:
        """Of layers that a pass leaves out too: every layer's slots are the same frames."""
        self._evict(self.cache.keys[layer], place)
        self._evict(self.cache.values[layer], place)

    def _see(self, layer: int, place: Placement, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens, own = self.config.tokens_per_frame, q.shape[1]
        first = max(place.first_slot, place.first_written) * tokens
        skipped = first - place.first_slot * tokens
        frames = place.end_slot - place.first_slot
        is_whole = own == frames * tokens
        pairs = ((self.cache.keys[layer], "k", k), (self.cache.values[layer], "v", v))
        # A pass sees its own keys as they are, and the past as the cache keeps it.
        keys, values = (torch.cat([kept[:, :first], x[:, skipped:]], dim=1) for kept, _, x in pairs)
        if is_whole:
            for kept, part, x in pairs:
                self._write(kept, self.way.kept(layer, part, x), place)
        own_places = self._places(place.first_slot, place.end_slot, coarse=not is_whole)
        places = Places(
            torch.cat([self._places(0, place.end_slot).at[:first], own_places.at[skipped:]])
        )
        sink = min(self.rollout.sink_frames * tokens, first)
        is_recache = frames > self.rollout.frames_per_block
        seen = Seen(layer, q, own_places, keys, values, places, sink, own - skipped, is_recache)
        return self.way.attend(seen)

    def _places(self, first: int, end: int, *, coarse: bool = False) -> Places:
        places = Places.of(torch.arange(first, end), self._grid(coarse))
        if coarse:
            # A large token lies in the middle of the four that it stands for.
            places.at[:, 1:] = 2 * places.at[:, 1:] + 0.5
        return places

    def _grid(self, coarse: bool) -> tuple[int, int]:
        rows, columns = self.config.token_grid
        return (rows // 2, columns // 2) if coarse else (rows, columns)


@lru_cache(1)
def transformer() -> Transformer:
    config = model_config()
    with torch.device("meta"):
        empty = Transformer(config.transformer)
    shapes = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    weights = open_transformer(WEIGHTS / "transformer.safetensors", shapes)
    return load_model(config, weights, "fp32", "cpu")


@torch.inference_mode()
def latents(
    pipeline: Pipeline, case: Case, way: Way, rollout: type[Rollout] = Rollout
) -> list[Tensor]:
    """Every block of a case's video, from the noise that the product draws."""
    video = open_video(pipeline, case, way, rollout)
    return [video.next_block() for _ in range(case.blocks)]


@dataclass
class TorchVideo:
    """Blocks one after the other, under the prompts of a case."""

    rollout: Rollout
    noise: SeededNoise
    states: dict[int, Tensor]
    """Of prompts, by the latent frame from which each is wanted."""

    def next_block(self) -> Tensor:
        noise = self.begin_block()
        return self.rollout.run_block(noise[0], noise[1:])

    def begin_block(self) -> list[Tensor]:
        """The block's noise; a prompt that is due is taken."""
        frame = self.rollout.next_frame
        if frame in self.states:
            self.rollout.switch_prompt(self.states[frame])
        index = frame // self.rollout.rollout.frames_per_block
        return [torch.from_numpy(draw) for draw in self.noise.block(index).draws]


def open_video(
    pipeline: Pipeline, case: Case, way: Way, rollout: type[Rollout] = Rollout
) -> TorchVideo:
    config = rollout.configured(model_config())
    block = config.rollout.frames_per_block
    noise = SeededNoise(case.seed, (1, block, *config.latent_shape), config.rollout.noises)
    encoder = pipeline.engines.prompt_encoder(1)
    try:
        states = {n: torch.from_numpy(encoder.states_of(t)) for n, t in case.texts.items()}
    finally:
        encoder.close()
    return TorchVideo(rollout(transformer(), config, case.blocks * block, way), noise, states)


def decoder_stream(pipeline: Pipeline, decoder: str) -> VaeStream:
    first, following = (
        pipeline.engines.get(graph, "measuring")
        for graph in decoder_named(pipeline.bundle, decoder).graphs
    )
    return VaeStream(first, following, 1)


def decoded(
    pipeline: Pipeline, blocks: Iterable[Tensor], decoder: str = "full"
) -> Iterator[Pixels]:
    """Pictures by the product's decoder."""
    stream = decoder_stream(pipeline, decoder)
    for block in blocks:
        yield stream.decode(block.numpy())[0]
