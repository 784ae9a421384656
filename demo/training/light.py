"""A leg of training the light decoder, by clips and by the full decoder's pictures of them."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from longlive_trt.configs import ModelConfig
from longlive_trt.demo.autoencoder import AutoEncoder, Decoder
from longlive_trt.demo.geometry import light_vae_config, model_config, raw
from longlive_trt.demo.sheets import save_rows
from longlive_trt.demo.shipped import weights_path
from longlive_trt.demo.training.clips import load_autoencoder, psnr, to_bytes, to_unit
from longlive_trt.demo.training.curves import draw_curves
from longlive_trt.demo.training.legs import Clock, Worker, run_leg
from longlive_trt.demo.training.pictures import PictureLeg, PictureSettings, picture_parser
from longlive_trt.demo.training.stepper import Stepper
from longlive_trt.demo.training.vae import initialize, takes_muon

_EDGES, _TAUGHT = 0.5, 0.5
_CODED = 16
"""Clips at once."""


@dataclass(frozen=True)
class Settings(PictureSettings):
    batch: int = 16
    seed: int = 2


@dataclass(frozen=True)
class Lessons:
    """Clips, the moments of their latents, and what the full decoder makes of the means."""

    clips: Tensor
    means: Tensor
    deviations: Tensor
    taught: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, clips: Tensor, codec: AutoEncoder) -> "Lessons":
        parts = [_coded(part, codec) for part in clips.split(_CODED)]
        means, deviations, taught = (torch.cat(kind) for kind in zip(*parts, strict=True))
        return cls(clips, means, deviations, taught)

    def __len__(self) -> int:
        return len(self.clips)

    def picked(self, which: Tensor) -> "Lessons":
        tensors = (self.clips, self.means, self.deviations, self.taught)
        return Lessons(*(tensor[which] for tensor in tensors))

    def copy_(self, other: "Lessons") -> None:
        for name in ("clips", "means", "deviations", "taught"):
            getattr(self, name).copy_(getattr(other, name))


def _coded(clips: Tensor, codec: AutoEncoder) -> tuple[Tensor, Tensor, Tensor]:
    means, log_variance = codec.encode(to_unit(clips))
    deviations = (0.5 * log_variance).exp()
    kept = torch.float16 if clips.is_cuda else means.dtype
    return means.to(kept), deviations.to(kept), to_bytes(codec.decode(means))


def objective(model: Decoder, lessons: Lessons) -> tuple[Tensor, Tensor]:
    """The loss, and its parts: pixels, edges, the difference to the full decoder's pictures."""
    means = lessons.means.float()
    # The full decoder learned from latents that are this uncertain; a transformer's are, too.
    made = model.decode(means + torch.randn_like(means) * lessons.deviations.float())
    error = made - to_unit(lessons.clips)
    pixels = error.square().mean()
    edges = error.diff(dim=-1).square().mean() + error.diff(dim=-2).square().mean()
    taught = (made - to_unit(lessons.taught)).square().mean()
    loss = pixels + _EDGES * edges + _TAUGHT * taught
    return loss, torch.stack([pixels, edges, taught]).detach()


class Leg(PictureLeg):
    """A stretch of the light decoder's training."""

    name, shipped_name = "light", "light_vae"
    model: Decoder

    def __init__(
        self,
        settings: Settings,
        worker: Worker,
        config: ModelConfig | None = None,
        weights: Path | None = None,
    ) -> None:
        self.settings, self.worker = settings, worker
        self.model = self._begin(lambda: Decoder(raw(light_vae_config())), initialize, takes_muon)
        begun, device = time.monotonic(), worker.device
        codec = load_autoencoder(weights or weights_path("vae"), device, config or model_config())
        self.pool, self.held_out = (Lessons.of(clips, codec) for clips in self._clips())
        full = psnr(self.held_out.taught, self.held_out.clips).mean().item()
        self.journal.report(
            clips=settings.pool, seconds=round(time.monotonic() - begun, 1), full=round(full, 2)
        )
        self.batch = self.pool.picked(self._any())
        self.parts = torch.zeros(3, device=device)
        self.stepper = Stepper(worker, self.optimizer, self._backward)

    def _any(self) -> Tensor:
        return torch.randint(len(self.pool), (self.settings.batch,), device=self.worker.device)

    def _backward(self) -> None:
        loss, parts = objective(self.model, self.batch)
        loss.backward()
        self.parts.lerp_(parts, 0.05)

    def train_step(self) -> None:
        self.batch.copy_(self.pool.picked(self._any()))
        self.stepper.step()
        self.step += 1

    def _report(self, clock: Clock, step_s: float, _steps: int) -> None:
        if not self.worker.leads:
            return
        self.optimizer.swap_average()
        made = self._made_of(self.held_out.means)
        held = float(psnr(made, self.held_out.clips).mean())
        to_full = float(psnr(made, self.held_out.taught).mean())
        shown = slice(len(self.held_out))
        seen = float(psnr(self._made_of(self.pool.means[shown]), self.pool.clips[shown]).mean())
        self._keep(held, clock)
        pixels, edges, taught = self.parts.tolist()
        self.journal.report(
            s=round(clock.done_s, 1), step=self.step, psnr=round(held, 2), seen=round(seen, 2),
            to_full=round(to_full, 2), pixels=round(pixels, 5), edges=round(edges, 5),
            taught=round(taught, 5), ms=round(step_s * 1000, 2),
        )  # fmt: skip

    @torch.no_grad()
    def _made_of(self, means: Tensor) -> Tensor:
        return torch.cat([to_bytes(self.model.decode(part.float())) for part in means.split(8)])

    def _draw(self) -> None:
        out = self.settings.out
        self.optimizer.swap_average()
        made = self._made_of(self.held_out.means[:8])
        rows = torch.stack([self.held_out.clips[:8], self.held_out.taught[:8], made], 1)
        save_rows(out / "light.png", rows.flatten(0, 1), range(0, rows.shape[2], 8))
        lines = [line for line in self.journal.lines() if "psnr" in line]
        draw_curves(
            out / "light-psnr.png",
            "PSNR in dB, of held-out clips, of training clips, and to the full decoder",
            {n: [(line["s"], line[n]) for line in lines] for n in ("psnr", "seen", "to_full")},
            "seconds of training",
        )


def main() -> None:
    parser = picture_parser(__doc__, Settings)
    run_leg(parser, Settings, Leg)


if __name__ == "__main__":
    main()
