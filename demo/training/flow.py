"""A leg of training the generator by flow matching; one process a GPU, under ``torchrun``."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from longlive_trt.configs import ModelConfig
from longlive_trt.demo.generator import Generator, KeyValue, compile_pointwise, initialize
from longlive_trt.demo.geometry import WEIGHTS, model_config
from longlive_trt.demo.training.clips import LatentPool, load_autoencoder
from longlive_trt.demo.training.curves import draw_curves
from longlive_trt.demo.training.legs import (
    Clock,
    Journal,
    TimedLeg,
    Worker,
    leg_parser,
    rate,
    run_leg,
    save_checkpoint,
)
from longlive_trt.demo.training.optimizer import MuonAdam
from longlive_trt.demo.training.stepper import Stepper
from longlive_trt.demo.words import word_ids

log = logging.getLogger(__name__)

_DIRT = 0.12
_GROUND, _GROUND_WEIGHT = 1 / 8, 4.0
"""The lowest rows, and how much more they count than others."""
_REMADE_FROM = 0.4
"""The least share of the noise levels from which a history is made again."""


@dataclass(frozen=True)
class Settings:
    out: Path
    leg_s: float
    total_s: float
    resume: Path | None
    config: ModelConfig = field(default_factory=model_config)
    vae: Path = WEIGHTS / "vae.safetensors"
    batch: int = 24
    noised: int = 2
    """Noised copies of every clip, which share its clean history."""
    blocks: int = 6
    own_history: float = 0.6
    """The share of clips whose history is what the model itself makes of it."""
    pool: int = 2048
    muon_rate: float = 0.015
    adam_rate: float = 1.5e-3
    reports: int = 12
    compile: bool = True
    seed: int = 2


def warped(u: Tensor, shift: float) -> Tensor:
    """Noise levels of evenly spread numbers, as the rollout's schedule warps its steps."""
    return shift * u / (1 + (shift - 1) * u)


def takes_muon(name: str, p: Tensor) -> bool:
    """The matrices of both nets' layers."""
    return p.dim() == 2 and "blocks." in name and "embedding" not in name


def wide(x: Tensor) -> Tensor:
    return x[..., None, None, None, None]


def weighed(errors: Tensor) -> Tensor:
    """Errors [..., frames, C, rows, columns], those of the ground by more, averaged over a block.

    How fast the ground beside the road goes by is how fast a video is, and few pixels show it.
    What is best does not depend on such weights, and what is learned first does.
    """
    weights = errors.new_ones(errors.shape[-2])
    weights[-max(1, round(_GROUND * len(weights))) :] = _GROUND_WEIGHT
    return (errors * (weights / weights.mean())[:, None]).flatten(-4).mean(-1)


class Leg(TimedLeg):
    """A stretch of flow matching."""

    def __init__(self, settings: Settings, worker: Worker) -> None:
        self.settings, self.worker = settings, worker
        device, cuda = worker.device, worker.device.type == "cuda"
        config = settings.config
        with torch.random.fork_rng(devices=[device] if cuda else []):
            torch.manual_seed(settings.seed)
            self.model = Generator(config)
            initialize(self.model)
        self.model.to(device)
        self.shift = config.rollout.timestep_shift
        self.optimizer = MuonAdam(
            self.model, takes_muon, settings.muon_rate, settings.adam_rate, average=0.999
        )
        if settings.resume is not None:
            self._resume(settings.resume)
        self.journal = Journal(settings.out / "flow.jsonl", worker)
        shape = (settings.blocks, settings.batch)
        rollout, text_len = config.rollout, config.transformer.text_len
        self.latents = torch.zeros(
            *shape, rollout.frames_per_block, *config.latent_shape, device=device
        )
        self.ids = torch.ones(settings.batch, text_len, dtype=torch.long, device=device)
        self.counts = torch.ones(shape, device=device)
        # The loss, and its parts at little, middling, much and nearly full noise.
        self.losses = torch.zeros(5, device=device)
        self.stepper = Stepper(worker, self.optimizer, self._backward)

    def _backward(self) -> None:
        clean, counts = self.latents, self.counts
        counts = counts[None].expand(self.settings.noised, -1, -1)
        sigma = warped(torch.rand_like(counts), self.shift)
        noise = torch.randn(self.settings.noised, *clean.shape, device=clean.device)
        noised = torch.lerp(clean, noise, wide(sigma))
        context = self.model.context(self.ids)
        flow = self.model(self._history(context), noised, 1000 * sigma, context)
        errors = weighed((flow - (noise - clean)).square())
        loss = (errors * counts).sum() / counts.sum()
        loss.backward()
        with torch.no_grad():
            seen = [loss]
            for low, high in ((0.0, 0.5), (0.5, 0.8), (0.8, 0.95), (0.95, 1.01)):
                inside = counts * (sigma >= low) * (sigma < high)
                seen.append((errors * inside).sum() / inside.sum().clamp_min(1))
            self.losses.lerp_(torch.stack(seen), 0.02)

    @torch.no_grad()
    def _history(self, context: Sequence[KeyValue]) -> Tensor:
        """Clean blocks as a rollout would have them: never quite clean, and often the model's own.

        What it makes of a block from much noise is softer than the block, and lies where it lay.
        Who has seen only sharp histories goes on from soft ones more softly and more slowly.
        """
        clean = self.latents
        dirt = _DIRT * torch.rand_like(self.counts[:1])
        history = clean + wide(dirt) * torch.randn_like(clean)
        u = _REMADE_FROM + (1 - _REMADE_FROM) * torch.rand_like(self.counts)
        sigma = warped(u, self.shift)
        noised = torch.lerp(clean, torch.randn_like(clean), wide(sigma))
        flow = self.model(history, noised[None], 1000 * sigma[None], context)[0]
        own = torch.rand_like(self.counts[:1]) < self.settings.own_history
        return torch.where(wide(own), noised - wide(sigma) * flow, history)

    def fill_pool(self) -> LatentPool:
        settings, worker = self.settings, self.worker
        begun = time.monotonic()
        seed = settings.seed * 100_003 + self.step * 17 + worker.rank
        codec = load_autoencoder(settings.vae, worker.device, settings.config)
        pool = LatentPool(settings.config, settings.blocks, codec, word_ids(), seed)
        pool.add(settings.pool)
        if worker.device.type == "cuda":
            torch.cuda.synchronize()
        self.journal.report(clips=len(pool), seconds=round(time.monotonic() - begun, 1))
        return pool

    def train_step(self, pool: LatentPool) -> None:
        batch = pool.batch(self.settings.batch)
        self.latents.copy_(batch.latents)
        self.ids.copy_(batch.ids)
        self.counts.copy_(batch.counts)
        self.stepper.step()
        self.step += 1

    def run(self) -> None:
        settings = self.settings
        begun = time.monotonic()
        if settings.compile and self.worker.device.type == "cuda":
            compile_pointwise()
        # Before the clips are drawn: what fails here, fails at once.
        self.stepper.capture()
        self.losses.zero_()
        self.worker.told(0.0)
        self.journal.report(prepared_s=round(time.monotonic() - begun, 1))
        pool = self.fill_pool()
        left_s = settings.leg_s - (time.monotonic() - begun)
        self._train(left_s, settings.total_s, settings.reports, partial(self.train_step, pool))

    def _pace(self, share: float, steps: int) -> None:
        self.optimizer.factor.fill_(rate(share, steps, warm_steps=100))

    def _report(self, clock: Clock, step_s: float, steps: int) -> None:
        if not self.worker.leads:
            return
        state = self.settings.out / "flow-state.pt"
        save_checkpoint(state, self.optimizer.state(), clock, self.step)
        unbiased = 1 - (1 - 0.02) ** max(1, min(steps, 1000))
        loss, *by_level = (round(v / unbiased, 4) for v in self.losses.tolist())
        self.journal.report(
            s=round(clock.done_s, 1), step=self.step, loss=loss, by_level=by_level,
            ms=round(step_s * 1000, 2),
        )  # fmt: skip

    def _draw(self) -> None:
        out = self.settings.out
        lines = [line for line in self.journal.lines() if "loss" in line]
        draw_curves(
            out / "flow-loss.png", "Flow matching: mean squared error of the flow",
            {"all": [(line["s"], line["loss"]) for line in lines]}
            | {
                name: [(line["s"], line["by_level"][i]) for line in lines]
                for i, name in enumerate(("noise < .5", ".5 to .8", ".8 to .95", "> .95"))
            },
            "seconds of training", logarithmic=True,
        )  # fmt: skip


def main() -> None:
    parser = leg_parser(__doc__, Settings)
    parser.set_defaults(total_s=1200)
    parser.add_argument("--vae", type=Path, default=Settings.vae)
    parser.add_argument("--noised", type=int, default=Settings.noised)
    parser.add_argument("--own-history", type=float, default=Settings.own_history)
    parser.add_argument("--blocks", type=int, default=Settings.blocks)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    run_leg(parser, Settings, Leg)


if __name__ == "__main__":
    main()
