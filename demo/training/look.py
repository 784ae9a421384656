"""Pictures of what a checkpoint has learned: a contact sheet of prompts with a switch halfway."""

import argparse
import logging
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from longlive_trt.configs import ModelConfig
from longlive_trt.demo.adherence.judge import Tally, judged
from longlive_trt.demo.captions import stated_caption
from longlive_trt.demo.generator import Generator
from longlive_trt.demo.geometry import WEIGHTS, model_config
from longlive_trt.demo.rollout import BatchRollout
from longlive_trt.demo.scenes import SceneSource
from longlive_trt.demo.sheets import save_rows
from longlive_trt.demo.training.clips import load_autoencoder, to_bytes
from longlive_trt.demo.training.flow import warped
from longlive_trt.demo.training.state import load_generator
from longlive_trt.demo.words import encode, word_ids

log = logging.getLogger(__name__)

Stated = tuple[str, dict[str, int]]
"""A prompt and the attributes that it states."""

_HELD_OUT_SEED = 909_091
_COLUMNS = 12
_SETTLED = 12
"""Video frames after a switch within which everything may still turn."""


def held_out_prompts(count: int, seed: int = _HELD_OUT_SEED) -> list[tuple[Stated, Stated]]:
    """Pairs of prompts, the second for what the first turns into; every attribute is stated."""
    source, rng = SceneSource(seed), random.Random(seed)  # noqa: S311
    first = source.scenes(count)
    second = source.changed(first)
    return [
        (stated_caption(a, rng, drop=0), stated_caption(b, rng, drop=0))
        for a, b in zip(first.rows(), second.rows(), strict=True)
    ]


@torch.no_grad()
def videos(
    model: Generator, prompts: Sequence[Sequence[str]], blocks: int, euler_steps: int, seed: int
) -> Tensor:
    """Latents of videos whose prompts follow each other after equal times; 0: the few steps."""
    device, config = model.transformer.head.head.weight.device, model.config
    ids, length = word_ids(), config.transformer.text_len
    generator = torch.Generator(device).manual_seed(seed)
    shape = (len(prompts), config.rollout.frames_per_block, *config.latent_shape)

    def noise() -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    levels = warped(torch.linspace(1, 0, euler_steps + 1), config.rollout.timestep_shift).tolist()
    rollout, parts = BatchRollout(model, len(prompts)), len(prompts[0])
    for block in range(blocks):
        begun = time.monotonic()
        part, rest = divmod(block * parts, blocks)
        if rest < parts:
            texts = [given[part] for given in prompts]
            rollout.prompt(torch.tensor([encode(t, ids, length) for t in texts], device=device))
        if euler_steps:
            rollout.block_by_euler(noise, levels)
        else:
            rollout.block(noise)
        log.info("block %d of %d: %.1f s", block + 1, blocks, time.monotonic() - begun)
    return torch.cat(rollout.blocks, dim=1)


@torch.no_grad()
def pictures(latents: Tensor, weights: Path, config: ModelConfig) -> Tensor:
    """Normalized latents [B, T, C, h, w] as clips [B, frames, H, W, 3] uint8."""
    codec, vae = load_autoencoder(weights, latents.device, config), config.vae
    assert vae is not None
    mean, std = (
        torch.tensor(v, device=latents.device).reshape(-1, 1, 1) for v in (vae.mean, vae.std)
    )
    return torch.cat([to_bytes(codec.decode(part * std + mean)) for part in latents.split(1)])


def tallies(clips: Tensor, prompts: Sequence[tuple[Stated, Stated]]) -> tuple[Tally, Tally]:
    """What was shown before the switch halfway, and after it."""
    before, after, middle = Tally(), Tally(), (clips.shape[1] + 3) // 2
    for clip, (first, second) in zip(clips, prompts, strict=True):
        before.add(first[1], judged(clip[1:middle]))
        after.add(second[1], judged(clip[middle + _SETTLED :]))
    return before, after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state", type=Path, help="flow-state.pt or distill-state.pt")
    parser.add_argument("--out", type=Path, required=True, help="a PNG")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--euler", type=int, default=0, help="steps; 0: the rollout's few steps")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--vae", type=Path, default=WEIGHTS / "vae.safetensors")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = load_generator(given.state, torch.device(given.device), model_config())
    prompts = held_out_prompts(given.prompts)
    texts = [(first[0], second[0]) for first, second in prompts]
    latents = videos(model, texts, given.blocks, given.euler, given.seed)
    clips = pictures(latents, given.vae, model.config).cpu()
    shown = torch.linspace(0, clips.shape[1] - 1, _COLUMNS).long().tolist()
    save_rows(given.out, clips[:16], shown)
    for text in texts[:16]:
        log.info("%s | %s", *text)
    for name, tally in zip(("before the switch", "after it"), tallies(clips, prompts), strict=True):
        log.info("%s: %.3f %s", name, tally.share, tally.by_attribute())


if __name__ == "__main__":
    main()
