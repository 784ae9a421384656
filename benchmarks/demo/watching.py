"""What one video of the demo model shows: made by the product, judged by its own measurements."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longlive_trt.basics import Array
from longlive_trt.demo.adherence.judge import judged
from longlive_trt.demo.geometry import WEIGHTS, video_frames
from longlive_trt.demo.training.clips import load_autoencoder, psnr, random_clips, to_unit
from longlive_trt.demo.training.look import Stated, held_out_prompts
from longlive_trt.demo.world.clips import SIZE
from longlive_trt.runtime.decoding.choice import decoder_named
from longlive_trt.runtime.decoding.host import VaeStream
from longlive_trt.runtime.pipeline import Pipeline

SINGLE_BLOCKS = 9
"""Made under the first prompt: 6.6 s."""
TURNING_BLOCKS = 2
"""After a switch, within which everything may still turn."""
SETTLED_BLOCKS = 2
"""Judged after those."""
LONG_S = 120.0
END_S = 10.0
"""Of a long video, at its beginning and at its end."""
CLIP_LATENTS = 9
_CLIPS_SEED = 616_161
_MOST = 1000
"""Prompts that are drawn; any smaller number takes the first of them."""

Line = dict[str, Any]
Options = Mapping[str, Any]


@cache
def prompts() -> list[tuple[Stated, Stated]]:
    return held_out_prompts(_MOST)


def switched(pipeline: Pipeline, number: int, *, switch: str, overrides: Sequence[str]) -> Line:
    """A video under one prompt, and what follows it under the next."""
    texts, asked = turning(pipeline, number)
    return seen(
        pipeline, number, _frames(pipeline, texts, switch=switch, overrides=overrides, **asked)
    )


def turning(pipeline: Pipeline, number: int) -> tuple[Mapping[int, str], Options]:
    """The prompts of such a video by their latent frames, and its length and seed."""
    (first, _), (second, _) = prompts()[number]
    block = pipeline.config.rollout.frames_per_block
    blocks = SINGLE_BLOCKS + TURNING_BLOCKS + SETTLED_BLOCKS
    asked = {"frames": blocks * block, "seed": number}
    return {0: first, SINGLE_BLOCKS * block: second}, asked


def seen(pipeline: Pipeline, number: int, shown: Tensor) -> Line:
    """What its pictures show under the first prompt, and once they have turned to the second."""
    (first, stated), (second, stated_next) = prompts()[number]
    block = pipeline.config.rollout.frames_per_block
    begins, settled = (
        video_frames(n * block) for n in (SINGLE_BLOCKS, SINGLE_BLOCKS + TURNING_BLOCKS)
    )
    return {
        "prompts": [first, second],
        "stated": [stated, stated_next],
        "shown": [judged(shown[:begins]), judged(shown[settled:])],
    }


def drift(pipeline: Pipeline, number: int, *, switch: str, overrides: Sequence[str]) -> Line:
    """A long video: what its first and its last seconds show, and how sharp they are."""
    text, stated = prompts()[number][0]
    shown = _frames(
        pipeline, {0: text}, seconds=LONG_S, seed=number, switch=switch, overrides=overrides
    )
    count = round(END_S * pipeline.config.fps)
    ends = shown[:count], shown[-count:]
    return {
        "prompts": [text],
        "stated": stated,
        "shown": [judged(part) for part in ends],
        "sharpness": [round(_sharpness(part), 4) for part in ends],
    }


def reconstruction(
    pipeline: Pipeline, number: int, *, switch: str, overrides: Sequence[str]
) -> Line:
    """The decoder, streamed by the product's engines, on a clip that was not trained on."""
    clips, latents = held_out_clip(pipeline, number)
    return {"psnr_db": decibels(decoded(pipeline, None, latents), clips)}


def held_out_clip(pipeline: Pipeline, number: int) -> tuple[Tensor, Array]:
    """A clip that was not trained on, and its latents."""
    clips = random_clips(1, video_frames(CLIP_LATENTS), _CLIPS_SEED + number, _CPU, SIZE)
    vae = pipeline.config.vae
    assert vae is not None
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (vae.mean, vae.std))
    codec = load_autoencoder(WEIGHTS / "vae.safetensors", _CPU, pipeline.config)
    return clips, ((codec.encode(to_unit(clips))[0] - mean) / std).numpy()


def decoded(pipeline: Pipeline, decoder: str | None, latents: Array) -> Tensor:
    """Pictures [1, n, H, W, 3] of latents, by the decoder of this name or the bundle's first."""
    graphs = decoder_named(pipeline.bundle, decoder).graphs
    first, following = (pipeline.engines.get(graph, "measuring") for graph in graphs)
    return torch.from_numpy(VaeStream(first, following, 1).decode(latents))


def decibels(pictures: Tensor, originals: Tensor) -> float:
    return round(float(psnr(pictures, originals)), 2)


_CPU = torch.device("cpu")


def _frames(pipeline: Pipeline, texts: Mapping[int, str], **options: Any) -> Tensor:
    """All pictures of a video, [n, H, W, 3]."""

    def unheard(_text: str) -> None:
        """A video of 120 s ends with a whole block."""

    with pipeline.video(dict(texts), notify=unheard, **options) as video:
        return torch.from_numpy(np.concatenate([block.frames for block in video.ahead()]))


def _sharpness(frames: Tensor) -> float:
    """How much neighboring pixels differ."""
    gray = frames.float().mean(3)
    return float(gray.diff(dim=1).abs().mean() + gray.diff(dim=2).abs().mean())
