"""A leg of training the autoencoder; alone or one process a GPU, under ``torchrun``."""

import logging
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longlive_trt.demo.autoencoder import AutoEncoder
from longlive_trt.demo.geometry import raw, vae_config
from longlive_trt.demo.sheets import save_rows
from longlive_trt.demo.training.clips import psnr, to_bytes, to_unit
from longlive_trt.demo.training.curves import draw_curves
from longlive_trt.demo.training.legs import Clock, Worker, run_leg
from longlive_trt.demo.training.pictures import PictureLeg, PictureSettings, picture_parser
from longlive_trt.demo.training.stepper import Stepper
from longlive_trt.export.models.vae_layers import Downsample, FrameConv, ResBlock, Upsample

log = logging.getLogger(__name__)

_EDGES, _COARSE = 0.5, 0.25


@dataclass(frozen=True)
class Settings(PictureSettings):
    kl: float = 3e-4


@torch.no_grad()
def initialize(model: nn.Module) -> None:
    """Begin as a pyramid: residual blocks add nothing, the other layers pass channels through."""
    for module in model.modules():
        if isinstance(module, ResBlock):
            for weight in module.residual["6"].parameters():
                weight.zero_()
            if not isinstance(module.shortcut, nn.Identity):
                _pass_through(module.shortcut.weight, 1.0)
        elif isinstance(module, Downsample):
            conv = module.resample["1"]
            assert isinstance(conv, FrameConv)
            _pass_through(conv.weight[:, :, :2, :2], 0.25)
            if module.time_conv is not None:
                _pass_through(module.time_conv.weight[:, :, 1:], 0.5)
        elif isinstance(module, Upsample):
            conv = module.resample["1"]
            assert isinstance(conv, FrameConv)
            _pass_through(conv.weight[:, :, 1:2, 1:2], 1.0)
            if module.time_conv is not None:
                for half in module.time_conv.weight.chunk(2):
                    _pass_through(half[:, :, 2:], 1.0)


def _pass_through(weight: Tensor, share: float) -> None:
    weight.mul_(0.2)
    same = torch.eye(*weight.shape[:2], device=weight.device)
    weight.add_(share * same.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2)))


def takes_muon(name: str, p: Tensor) -> bool:
    """Convolutions, but those that meet pixels or latents."""
    ends = ("encoder.conv1.", "decoder.head.2.", "encoder.head.2.", "conv1.", "conv2.")
    return p.dim() >= 4 and min(p.shape[:2]) > 1 and not name.startswith(ends)


def objective(model: AutoEncoder, clips: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
    """The loss of clips in [-1, 1], and its parts: pixels, edges, coarse pixels, information."""
    mean, log_variance = model.encode(clips)
    latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
    made = model.decode(latents)
    error = made - clips
    pixels = error.square().mean()
    edges = error.diff(dim=-1).square().mean() + error.diff(dim=-2).square().mean()
    # Latents at half the resolution shall show the clip at half the resolution: such latents have
    # little that is rough, which is what a diffusion model learns last.
    coarse = model.decode(_halved(latents)) - _halved(clips)
    coarse_pixels = coarse.square().mean()
    information = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    loss = pixels + _EDGES * edges + _COARSE * coarse_pixels + kl_weight * information
    return loss, torch.stack([pixels, edges, coarse_pixels, information]).detach()


def _halved(clips: Tensor) -> Tensor:
    halved: Tensor = F.avg_pool2d(clips.flatten(0, 1), 2).unflatten(0, clips.shape[:2])
    return halved


class Leg(PictureLeg):
    """A stretch of the autoencoder's training."""

    name = shipped_name = "vae"
    model: AutoEncoder
    settings: Settings

    def __init__(self, settings: Settings, worker: Worker) -> None:
        self.settings, self.worker = settings, worker
        self.model = self._begin(lambda: AutoEncoder(raw(vae_config())), initialize, takes_muon)
        begun = time.monotonic()
        self.pool, self.held_out = self._clips()
        if worker.device.type == "cuda":
            torch.cuda.synchronize()
        frames = settings.pool * settings.frames + settings.held_out * settings.held_out_frames
        taken = time.monotonic() - begun
        self.journal.report(
            rendered=frames, seconds=round(taken, 1), frames_per_s=round(frames / taken)
        )
        self.batch = self.pool[: settings.batch].clone()
        self.parts = torch.zeros(4, device=worker.device)
        self.stepper = Stepper(worker, self.optimizer, self._backward)

    def _backward(self) -> None:
        loss, parts = objective(self.model, to_unit(self.batch), self.settings.kl)
        loss.backward()
        self.parts.lerp_(parts, 0.05)

    def train_step(self) -> None:
        picked = torch.randint(len(self.pool), (self.settings.batch,), device=self.pool.device)
        batch = self.pool[picked]
        # A mirrored world is as good for pictures as any.
        self.batch.copy_(batch.flip(3) if self.step % 2 else batch)
        self.stepper.step()
        self.step += 1

    def _report(self, clock: Clock, step_s: float, _steps: int) -> None:
        if not self.worker.leads:
            return
        self.optimizer.swap_average()
        held = self._quality(self.held_out)
        seen = self._quality(self.pool[: len(self.held_out)])
        self._keep(held, clock)
        pixels, edges, coarse, information = self.parts.tolist()
        self.journal.report(
            s=round(clock.done_s, 1), step=self.step, psnr=round(held, 2), seen=round(seen, 2),
            pixels=round(pixels, 5), edges=round(edges, 5), coarse=round(coarse, 5),
            nats=round(information, 3), ms=round(step_s * 1000, 2),
        )  # fmt: skip

    @torch.no_grad()
    def _quality(self, clips: Tensor) -> float:
        values = [psnr(self.made_of(part), part) for part in clips.split(8)]
        return float(torch.cat(values).mean())

    @torch.no_grad()
    def made_of(self, clips: Tensor) -> Tensor:
        means, _ = self.model.encode(to_unit(clips))
        return to_bytes(self.model.decode(means))

    @torch.no_grad()
    def _draw(self) -> None:
        out = self.settings.out
        self.optimizer.swap_average()
        means = [self.model.encode(to_unit(part))[0] for part in self.pool[:512].split(16)]
        latents = torch.cat(means)
        mean, std = latents.mean((0, 1, 3, 4)), latents.std((0, 1, 3, 4))
        self.journal.report(
            mean=[round(v, 4) for v in mean.tolist()], std=[round(v, 4) for v in std.tolist()]
        )
        shown = self.held_out[:10]
        made = self.made_of(shown)
        pairs = torch.stack([shown, made], 1).flatten(0, 1)
        save_rows(out / "vae.png", pairs, range(0, shown.shape[1], 8))
        by_frame = [
            psnr(a, b).mean().item()
            for a, b in zip(made.split(1, 1), shown.split(1, 1), strict=True)
        ]
        self.journal.report(psnr_by_frame=[round(v, 1) for v in by_frame])
        lines = [line for line in self.journal.lines() if "psnr" in line]
        draw_curves(
            out / "vae-psnr.png", "PSNR in dB, of held-out clips and of training clips",
            {name: [(line["s"], line[name]) for line in lines] for name in ("psnr", "seen")},
            "seconds of training",
        )  # fmt: skip


def main() -> None:
    parser = picture_parser(__doc__, Settings)
    parser.add_argument("--kl", type=float, default=Settings.kl)
    run_leg(parser, Settings, Leg)


if __name__ == "__main__":
    main()
