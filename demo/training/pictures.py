"""What legs share that learn to show clips: their settings, beginning, rates and best weights."""

from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from longlive_trt.demo.training.clips import random_clips
from longlive_trt.demo.training.legs import (
    Clock,
    Journal,
    TimedLeg,
    leg_parser,
    rate,
    save_checkpoint,
)
from longlive_trt.demo.training.optimizer import MuonAdam
from longlive_trt.demo.training.stepper import Stepper
from longlive_trt.demo.world.clips import SIZE

_HELD_OUT_SEED = 999_983

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class PictureSettings:
    out: Path
    leg_s: float
    total_s: float
    resume: Path | None
    batch: int = 8
    frames: int = 17
    pool: int = 4096
    held_out: int = 48
    held_out_frames: int = 33
    size: tuple[int, int] = SIZE
    muon_rate: float = 0.02
    adam_rate: float = 2e-3
    reports: int = 12
    seed: int = 1


class PictureLeg(TimedLeg):
    name: str
    """Of its files."""
    shipped_name: str
    """Of its weights, in ``demo/weights/``."""
    settings: PictureSettings
    model: nn.Module
    journal: Journal
    stepper: Stepper
    best = 0.0
    """PSNR of held-out clips with the best weights so far."""

    def _begin(
        self,
        make: Callable[[], M],
        initialize: Callable[[nn.Module], None],
        takes_muon: Callable[[str, Tensor], bool],
    ) -> M:
        """The model, with an optimizer, as an earlier leg left both."""
        settings, device = self.settings, self.worker.device
        # Every worker begins with the same weights.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(settings.seed)
            model = make()
            initialize(model)
        self.model = model.to(device)
        self.optimizer = MuonAdam(
            model, takes_muon, settings.muon_rate, settings.adam_rate, average=0.998
        )
        if settings.resume is not None:
            self.best = float(self._resume(settings.resume)["best"])
        self.journal = Journal(settings.out / f"{self.name}.jsonl", self.worker)
        return model

    def _clips(self) -> tuple[Tensor, Tensor]:
        """To learn from, and held out: the latter the same in every leg."""
        settings, device = self.settings, self.worker.device
        seed = settings.seed * 100_003 + self.step * 17 + self.worker.rank
        return (
            random_clips(settings.pool, settings.frames, seed, device, settings.size),
            random_clips(
                settings.held_out, settings.held_out_frames, _HELD_OUT_SEED, device, settings.size
            ),
        )

    def run(self) -> None:
        settings = self.settings
        self.stepper.capture()
        self.worker.told(0.0)
        self._train(settings.leg_s, settings.total_s, settings.reports, self.train_step)

    def train_step(self) -> None:
        raise NotImplementedError

    def _pace(self, share: float, steps: int) -> None:
        """Rates rise once, in the first leg."""
        del steps
        self.optimizer.factor.fill_(rate(share, self.step, warm_steps=100))

    def _keep(self, held: float, clock: Clock) -> None:
        """The running average's weights, if they are the best, and where to go on from.

        The average is the model's at this moment, and its own weights after it.
        """
        if held > self.best:
            self.best = held
            weights = {k: v.half().contiguous().cpu() for k, v in self.model.state_dict().items()}
            save_file(weights, self.settings.out / f"{self.shipped_name}.safetensors")
        self.optimizer.swap_average()
        state = self.settings.out / f"{self.name}-state.pt"
        save_checkpoint(state, self.optimizer.state(), clock, self.step, self.best)


def picture_parser(doc: str | None, settings: type[PictureSettings]) -> ArgumentParser:
    parser = leg_parser(doc, settings)
    parser.add_argument("--frames", type=int, default=settings.frames)
    parser.add_argument("--held-out", type=int, default=settings.held_out)
    parser.add_argument("--size", type=_size, default=SIZE, metavar="HEIGHTxWIDTH")
    return parser


def _size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)
