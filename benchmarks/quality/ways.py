"""Ideas that the product does not have, computed in torch on the demo model.

Each is exact without its change (``tests/quality/test_rolling.py``). None is a speed-up here: what
one would save is counted (``benchmarks/quality/work.py``).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import RESULTS
from benchmarks.quality.lab import weights
from benchmarks.quality.rolling import (
    Places,
    Rollout,
    Seen,
    Way,
    decoded,
    latents,
    turned,
)
from longlive_trt.calibration.quantization import rounded, scale_of
from longlive_trt.calibration.recipes import FORMATS
from longlive_trt.configs import ModelConfig
from longlive_trt.demo.geometry import model_config
from longlive_trt.export.models.transformer import full_attention
from longlive_trt.quality.cases import Case
from longlive_trt.quality.metrics.similarity import Pixels
from longlive_trt.runtime.pipeline import Pipeline

MASS = RESULTS / "attention_mass.json"
"""Written by ``python -m benchmarks.quality.heads``."""


def biased_attention(q: Tensor, k: Tensor, v: Tensor, counts: Tensor) -> Tensor:
    """Every key counts as often as ``counts`` says."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = counts.log().to(q.dtype)[None, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


@dataclass(frozen=True)
class Pooled(Way):
    """Frames between the sink and the block are kept as means of so many tokens each."""

    frames: int = 1
    rows: int = 1
    columns: int = 1

    def attend(self, seen: Seen) -> Tensor:
        past = slice(seen.sink, seen.keys.shape[1] - seen.own)
        count = past.stop - past.start
        if seen.is_recache or count <= 0 or count % (self._frame_tokens * self.frames):
            return super().attend(seen)
        grid = model_config().token_grid
        keys, values = (self._pooled(x, past, grid) for x in (seen.keys, seen.values))
        places = self._pooled(seen.places.at[None, :, None], past, grid)[0, :, 0]
        counts = torch.ones(keys.shape[1])
        pooled = keys.shape[1] - seen.sink - seen.own
        counts[seen.sink : seen.sink + pooled] = self.frames * self.rows * self.columns
        q = turned(seen.q, seen.q_places)
        return biased_attention(q, turned(keys, Places(places)), values, counts)

    def _pooled(self, x: Tensor, past: slice, grid: tuple[int, int]) -> Tensor:
        """[B, tokens, ...] with means in the place of the past's own."""
        rows, columns = grid
        split = x[:, past].unflatten(1, (-1, self.frames, rows // self.rows, self.rows,
                                         columns // self.columns, self.columns))  # fmt: skip
        means = split.mean((2, 4, 6)).flatten(1, 3)
        return torch.cat([x[:, : past.start], means, x[:, past.stop :]], dim=1)

    @property
    def _frame_tokens(self) -> int:
        return model_config().tokens_per_frame


@dataclass(frozen=True)
class NearSighted(Way):
    """Some heads see the current block alone, of whom it has most of the attention anyway."""

    share: float
    with_sink: bool = False

    def attend(self, seen: Seen) -> Tensor:
        whole = super().attend(seen)
        heads = [h for layer, h in chosen_heads(self.share) if layer == seen.layer]
        if seen.is_recache or not heads:
            return whole
        own = slice(seen.keys.shape[1] - seen.own, None)
        keys, values, at = (self._near(x, seen.sink, own) for x in
                            (seen.keys[0], seen.values[0], seen.places.at))  # fmt: skip
        q = turned(seen.q[:, :, heads], seen.q_places)
        near = full_attention(q, turned(keys[None, :, heads], Places(at)), values[None, :, heads])
        whole = whole.clone()
        whole[:, :, heads] = near
        return whole

    def _near(self, x: Tensor, sink: int, own: slice) -> Tensor:
        return torch.cat([x[:sink], x[own]]) if self.with_sink else x[own]


@lru_cache
def attention_mass() -> dict[str, Any]:
    """What ``heads`` has measured of these weights."""
    report: dict[str, Any] = json.loads(MASS.read_text()) if MASS.is_file() else {}
    if report.get("weights", {}).get("transformer") != weights()["transformer"]:
        raise SystemExit(f"{MASS}: not of these weights; run python -m benchmarks.quality.heads")
    return report


@lru_cache
def chosen_heads(share: float) -> tuple[tuple[int, int], ...]:
    """(layer, head) of those whose attention is on the current block most."""
    own = attention_mass()["own"]
    mass = {(layer, h): m for layer, row in enumerate(own) for h, m in enumerate(row)}
    most = sorted(mass, key=lambda head: -mass[head])
    return tuple(most[: round(share * len(most))])


@dataclass(frozen=True)
class MergedQueries(Way):
    """The most similar tokens of the block attend as one; the past's keys stay as they are."""

    share: float
    """Of the block's tokens, that are merged into others."""

    def attend(self, seen: Seen) -> Tensor:
        if seen.is_recache:
            return super().attend(seen)
        sources, targets = _matched(seen.q[0].flatten(1), round(self.share * seen.q.shape[1]))
        q, counts = seen.q.clone(), torch.ones(seen.q.shape[1])
        q.index_add_(1, targets, seen.q[:, sources])
        counts.index_add_(0, targets, torch.ones(len(sources)))
        q = q / counts[:, None, None]
        keys = turned(seen.keys, seen.places)
        attended = full_attention(turned(q, seen.q_places), keys, seen.values).clone()
        attended[:, sources] = attended[:, targets]
        return attended


def _matched(tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of every second token the ``count`` that are most like one of the others, and which."""
    unit = F.normalize(tokens, dim=1)
    likeness, nearest = (unit[1::2] @ unit[::2].T).max(1)
    best = likeness.argsort(descending=True)[: min(count, len(likeness))]
    return 2 * best + 1, 2 * nearest[best]


@dataclass(frozen=True)
class EarlyExit(Way):
    """The head reads what a layer before the last made, in a block's first so many steps."""

    skipped: int
    steps: int

    def layers(self, step: int | None, count: int) -> int:
        return count - self.skipped if step is not None and step < self.steps else count


@dataclass(frozen=True)
class RoundedCache(Way):
    """Keys and values are kept in eight bits, with a scale for each head of each layer."""

    format: str

    def kept(self, layer: int, part: str, x: Tensor) -> Tensor:
        largest = torch.tensor(_largest()[layer][part])
        return rounded(x, scale_of(largest, FORMATS[self.format])[:, None], FORMATS[self.format])


def _largest() -> list[dict[str, list[float]]]:
    largest: list[dict[str, list[float]]] = attention_mass()["largest"]
    return largest


class CoarseFirst(Rollout):
    """The first step of a block at half the height and width: a quarter of the tokens."""

    def denoised(self, x: Tensor, start: int, step: int, timestep: float, sigma: float) -> Tensor:
        if step:
            return super().denoised(x, start, step, timestep, sigma)
        # Twice the mean of four: noise stays as strong as it was.
        small = 2 * F.avg_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])
        return enlarged(super().denoised(small, start, step, timestep, sigma))


class Preview(Rollout):
    """The whole video at half the height and width, with positions as they are."""

    @staticmethod
    def configured(config: ModelConfig) -> ModelConfig:
        height, width = (side // 2 for side in config.latent.size)
        return replace(config, latent=replace(config.latent, height=height, width=width))


class SpreadPreview(Preview):
    """The same, with positions twice as far apart: those of the whole picture."""

    def _places(self, first: int, end: int, *, coarse: bool = False) -> Places:
        places = super()._places(first, end)
        places.at[:, 1:] = 2 * places.at[:, 1:] + 0.5
        return places


def enlarged(x: Tensor) -> Tensor:
    """[..., h, w] to twice the height and width."""
    flat = F.interpolate(x.flatten(0, 1), scale_factor=2, mode="bilinear")
    larger: Tensor = flat.unflatten(0, x.shape[:2])
    return larger


@dataclass(frozen=True)
class InTorch:
    """An idea, as the lab takes it."""

    name: str
    way: Way
    rollout: type[Rollout] = Rollout
    version: int = 1

    @property
    def key(self) -> str:
        return f"{self.name} {self.version} {self.way!r} {self.rollout.__name__}"

    def video(self, pipeline: Pipeline, case: Case) -> Iterator[Pixels]:
        with torch.inference_mode():
            blocks = latents(pipeline, case, self.way, self.rollout)
            if blocks[0].shape[-2:] != model_config().latent.size:
                # Small latents, enlarged: the product's decoder is made for one size.
                blocks = [enlarged(block) for block in blocks]
            yield from decoded(pipeline, blocks)


Named = Sequence[tuple[str, str, Any]]
IDEAS: Named = (
    ("pooled-2", "older frames pooled 2x (pairs of columns)", Pooled(columns=2)),
    ("pooled-2-time", "older frames pooled 2x (pairs of frames)", Pooled(frames=2)),
    ("pooled-4", "older frames pooled 4x (2 x 2 tokens)", Pooled(rows=2, columns=2)),
    ("near-heads", "a quarter of the heads sees the block alone", NearSighted(0.25)),
    ("near-heads-sink", "a quarter of the heads sees block and sink", NearSighted(0.25, True)),
    ("near-heads-half", "half of the heads sees the block alone", NearSighted(0.5)),
    ("merged-25", "a quarter of the queries merged", MergedQueries(0.25)),
    ("merged-50", "half of the queries merged", MergedQueries(0.5)),
    ("exit-1-first", "the first step without the last layer", EarlyExit(1, 1)),
    ("exit-2-first", "the first step without the last two", EarlyExit(2, 1)),
    ("exit-1-three", "three of four steps without the last layer", EarlyExit(1, 3)),
    ("cache-fp8", "the cache in FP8", RoundedCache("fp8")),
    ("cache-int8", "the cache in INT8", RoundedCache("int8")),
    ("coarse-first", "the first step at half the size", CoarseFirst),
    ("preview", "a video at half the size, enlarged", Preview),
    ("preview-spread", "the same, positions twice as far apart", SpreadPreview),
)


def in_torch(name: str, way: Any) -> InTorch:
    return InTorch(name, Way(), way) if isinstance(way, type) else InTorch(name, way)
