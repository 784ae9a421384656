"""How long a calibration will take, said before it begins."""

import time

import torch

from longlive_trt.calibration.calibrator import CalibrationRequest
from longlive_trt.calibration.videos import plan_videos
from longlive_trt.configs import ModelConfig
from longlive_trt.console.wording import counted, roughly
from longlive_trt.export.torch_types import TORCH_TYPES
from longlive_trt.runtime.bench.flops import pass_flops, vae_flops

_SIDE = 1024
_ROUNDS = 3
_SHARE_OF_PRODUCTS = 0.4
"""How fast rollouts are, compared with large products alone."""


def describe_calibration(
    config: ModelConfig, request: CalibrationRequest, *, with_vae: bool = False
) -> str:
    """``32 rollouts of 7 blocks on cpu, about 3 hours``."""
    videos = plan_videos(len(request.prompts), config, request.blocks)
    blocks = sum(video.blocks for video in videos)
    total = blocks * _block_flops(config, videos[0].blocks, with_vae)
    seconds = total / (_SHARE_OF_PRODUCTS * _measured_rate(request.device, request.compute))
    return (
        f"{counted(len(videos), 'rollout')} of {counted(videos[0].blocks, 'block')} on "
        f"{request.device}, {roughly(seconds)}"
    )


def _block_flops(config: ModelConfig, blocks: int, with_vae: bool) -> int:
    rollout = config.rollout
    frames = rollout.frames_per_block
    attended = blocks * frames if rollout.is_global else rollout.window_frames
    passes = len(rollout.steps) + 1
    decoding = vae_flops(config, frames) if with_vae else 0
    return passes * pass_flops(config, frames, attended) + decoding


def _measured_rate(device: str, compute: str) -> float:
    """Operations a second of a product of matrices, here and now."""
    matrix = torch.ones((_SIDE, _SIDE), device=device, dtype=TORCH_TYPES[compute])
    _product_s(matrix)
    return 2 * _SIDE**3 / min(_product_s(matrix) for _ in range(_ROUNDS))


def _product_s(matrix: torch.Tensor) -> float:
    begun = time.perf_counter()
    product = matrix @ matrix
    # Reading a value waits for a GPU.
    float(product[0, 0])
    return time.perf_counter() - begun
