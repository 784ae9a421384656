"""A leg of distillation to the rollout's few steps; one process a GPU, under ``torchrun``.

The student makes videos as the product does, block by block with its own history, and learns where
many small steps of its teacher would have led from where it stood. Halfway through its videos many
prompts change. Nothing is compared with real clips but the student's first history, so what it
learns is what it meets.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from longlive_trt.configs import ModelConfig
from longlive_trt.configs.schedule import Schedule
from longlive_trt.demo.generator import KeyValue, compile_pointwise, pointwise_as_it_is
from longlive_trt.demo.geometry import WEIGHTS, model_config
from longlive_trt.demo.rollout import BatchRollout
from longlive_trt.demo.training.clips import LatentPool, load_autoencoder
from longlive_trt.demo.training.curves import draw_curves
from longlive_trt.demo.training.flow import takes_muon, warped, weighed, wide
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
from longlive_trt.demo.training.state import load_generator
from longlive_trt.demo.training.stepper import Stepper
from longlive_trt.demo.words import word_ids

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    out: Path
    teacher: Path
    leg_s: float
    total_s: float
    resume: Path | None
    config: ModelConfig = field(default_factory=model_config)
    vae: Path = WEIGHTS / "vae.safetensors"
    batch: int = 24
    blocks: int = 6
    pool: int = 1024
    teacher_steps: int = 6
    guidance: float = 1.5
    """How much further the teacher is led by a caption's words than it would go."""
    muon_rate: float = 0.004
    adam_rate: float = 4e-4
    real_until: float = 0.5
    """Until this share of the training, ever fewer of the histories are real ones."""
    reports: int = 12
    compile: bool = True
    seed: int = 3


class Leg(TimedLeg):
    """A stretch of distillation, whose steps are long."""

    check_every = 5

    def __init__(self, settings: Settings, worker: Worker) -> None:
        self.settings, self.worker = settings, worker
        device, config = worker.device, settings.config
        self.teacher = load_generator(settings.teacher, device, config)
        self.student = load_generator(settings.teacher, device, config).requires_grad_(True)
        self.optimizer = MuonAdam(
            self.student, takes_muon, settings.muon_rate, settings.adam_rate, average=0.99
        )
        self.schedule = Schedule.of(config.rollout)
        self.shift = config.rollout.timestep_shift
        if settings.resume is not None:
            self._resume(settings.resume)
        self.journal = Journal(settings.out / "distill.jsonl", worker)
        shape = (settings.blocks, settings.batch)
        rollout, text_len = config.rollout, config.transformer.text_len
        self.latents = torch.zeros(
            *shape, rollout.frames_per_block, *config.latent_shape, device=device
        )
        self.ids = torch.ones(settings.batch, text_len, dtype=torch.long, device=device)
        self.silent_ids, self.earlier_ids = self.ids.clone(), self.ids.clone()
        self.counts = torch.ones(shape, device=device)
        self.own_counts = self.counts.clone()
        self.real = torch.ones((), device=device)
        levels = self.schedule.passes
        self.sigmas = torch.tensor([level.sigma for level in levels], device=device)
        self.times = torch.tensor([level.timestep for level in levels], device=device)
        # The loss, and its parts by step.
        self.losses = torch.zeros(1 + len(levels), device=device)
        self.stepper = Stepper(worker, self.optimizer, self._backward)

    @property
    def _switch_at(self) -> int:
        return self.settings.blocks // 2

    def _backward(self) -> None:
        level = torch.randint(len(self.sigmas), self.counts.shape, device=self.counts.device)
        sigma, times = self.sigmas[level], self.times[level]
        with torch.no_grad():
            history, start, counts = self._situations(level, sigma)
            target = self._led_to(history, start, sigma)
        context = self.student.context(self.ids)
        flow = self.student(history, start[None], times[None], context)[0]
        errors = weighed((flow - (start - target) / wide(sigma)).square())
        loss = (errors * counts).sum() / counts.sum()
        loss.backward()
        with torch.no_grad():
            seen = [loss]
            for k in range(len(self.sigmas)):
                here = counts * (level == k)
                seen.append((errors * here).sum() / here.sum().clamp_min(1))
            self.losses.lerp_(torch.stack(seen), 0.05)

    def _situations(self, level: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Histories, noised blocks after them, and which count: the student's, or of real clips."""
        with pointwise_as_it_is():
            blocks, starts = self._own_video()
        own = torch.stack(starts).gather(0, wide(level)[None].expand(1, *blocks.shape))[0]
        real = torch.lerp(self.latents, torch.randn_like(self.latents), wide(sigma))
        is_real = torch.rand_like(sigma[:1]) < self.real
        counts = torch.where(is_real, self.counts, self.own_counts)
        is_real = wide(is_real)
        return torch.where(is_real, self.latents, blocks), torch.where(is_real, real, own), counts

    def _own_video(self) -> tuple[Tensor, list[Tensor]]:
        """Blocks [K, B, ...] that the student makes, and what it saw at each of its steps."""
        rollout = BatchRollout(self.student, self.settings.batch)
        rollout.prompt(self.earlier_ids)
        seen: list[list[Tensor]] = [[] for _ in self.schedule.passes]
        for block in range(self.settings.blocks):
            if block == self._switch_at:
                rollout.prompt(self.ids)
            x = torch.randn_like(self.latents[0])
            for k, step in enumerate(self.schedule.passes):
                seen[k].append(x)
                x = x - step.sigma * rollout.flow(x, step.timestep)
                if step.sigma_next > 0:
                    x = torch.lerp(x, torch.randn_like(x), step.sigma_next)
            rollout.commit(x)
        return torch.stack(rollout.blocks), [torch.stack(inputs) for inputs in seen]

    def _led_to(self, history: Tensor, start: Tensor, sigma: Tensor) -> Tensor:
        """Where the teacher's flow leads from ``start``.

        A block that is a little slower than its history, under a teacher that believes history
        more than words, makes a video that gets slower and slower: words are made louder.
        """
        context: list[KeyValue] = self.teacher.context(self.ids)
        silent: list[KeyValue] = self.teacher.context(self.silent_ids)
        past = self.teacher.history(history, context)
        # Evenly spread before the warp, as its sampler's steps are.
        u = sigma / (self.shift - (self.shift - 1) * sigma)
        x, steps = start, self.settings.teacher_steps
        for k in range(steps):
            now, after = (warped(u * (1 - i / steps), self.shift) for i in (k, k + 1))
            flow = self.teacher.after(past, x, 1000 * now, context)
            if self.settings.guidance != 1:
                unled = self.teacher.after(past, x, 1000 * now, silent)
                flow = torch.lerp(unled, flow, self.settings.guidance)
            x = x + wide(after - now) * flow
        return x

    def batches(self) -> Iterator[None]:
        """Fill the buffers anew, for as long as anyone asks."""
        settings, worker = self.settings, self.worker
        begun = time.monotonic()
        seed = settings.seed * 100_003 + self.step * 17 + worker.rank
        codec = load_autoencoder(settings.vae, worker.device, settings.config)
        pool = LatentPool(settings.config, settings.blocks, codec, word_ids(), seed)
        pool.add(settings.pool)
        self.journal.report(clips=len(pool), seconds=round(time.monotonic() - begun, 1))
        while True:
            batch = pool.batch(settings.batch)
            self.latents.copy_(batch.latents)
            self.ids.copy_(batch.ids)
            self.silent_ids.copy_(batch.silent_ids)
            self.earlier_ids.copy_(batch.earlier_ids)
            self.counts.copy_(batch.counts)
            follows = torch.arange(settings.blocks)[:, None] >= self._switch_at
            self.own_counts.copy_(follows | ~batch.changes)
            yield

    def run(self) -> None:
        settings = self.settings
        begun = time.monotonic()
        if settings.compile and self.worker.device.type == "cuda":
            compile_pointwise()
        self.stepper.capture()
        self.losses.zero_()
        self.worker.told(0.0)
        self.journal.report(prepared_s=round(time.monotonic() - begun, 1))
        batches = self.batches()
        next(batches)
        left_s = settings.leg_s - (time.monotonic() - begun)
        self._train(left_s, settings.total_s, settings.reports, partial(self.train_step, batches))

    def train_step(self, batches: Iterator[None]) -> None:
        next(batches)
        self.stepper.step()
        self.step += 1

    def _pace(self, share: float, steps: int) -> None:
        self.optimizer.factor.fill_(rate(share, steps, warm_steps=30))
        self.real.fill_(max(0.2, 1 - share / self.settings.real_until))

    def _report(self, clock: Clock, step_s: float, steps: int) -> None:
        if not self.worker.leads:
            return
        state = self.settings.out / "distill-state.pt"
        save_checkpoint(state, self.optimizer.state(), clock, self.step)
        unbiased = 1 - (1 - 0.05) ** max(1, min(steps, 1000))
        loss, *by_step = (round(v / unbiased, 5) for v in self.losses.tolist())
        self.journal.report(
            s=round(clock.done_s, 1), step=self.step, loss=loss, by_step=by_step,
            real=round(self.real.item(), 2), ms=round(step_s * 1000, 1),
        )  # fmt: skip

    def _draw(self) -> None:
        out = self.settings.out
        lines = [line for line in self.journal.lines() if "loss" in line]
        curves = {"all": [(line["s"], line["loss"]) for line in lines]} | {
            f"step {k + 1}": [(line["s"], line["by_step"][k]) for line in lines]
            for k in range(len(self.sigmas))
        }
        title = "Distillation: mean squared difference of the flow from the teacher's"
        draw_curves(
            out / "distill-loss.png", title, curves, "seconds of training", logarithmic=True
        )


def main() -> None:
    parser = leg_parser(__doc__, Settings)
    parser.add_argument("--teacher", type=Path, required=True, help="a flow leg's flow-state.pt")
    parser.add_argument("--vae", type=Path, default=Settings.vae)
    parser.add_argument("--blocks", type=int, default=Settings.blocks)
    parser.add_argument("--teacher-steps", type=int, default=Settings.teacher_steps)
    parser.add_argument("--guidance", type=float, default=Settings.guidance)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    run_leg(parser, Settings, Leg)


if __name__ == "__main__":
    main()
