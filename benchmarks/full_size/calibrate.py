"""ModelOpt calibration of the 1.3B geometry on one GPU: time and memory.

    python -m benchmarks.full_size.calibrate --out docs/results/calibrate_full_size.json

Random weights from a seed, bfloat16, one rollout with a prompt switch. Synthetic text states: the
5.7B text encoder is no part of what is measured. Needs the `quantize` extra and about 24 GB of GPU
memory.
"""

import argparse
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.harness import command, parser, write_report
from longlive_trt.calibration.calibration_file import save_calibration
from longlive_trt.calibration.calibrator import CalibrationRequest, calibrate
from longlive_trt.calibration.prompts import shipped_prompts
from longlive_trt.calibration.quantized import load_quantized
from longlive_trt.calibration.recipes import RECIPES
from longlive_trt.calibration.texts import SyntheticTexts
from longlive_trt.calibration.videos import plan_videos, run_video
from longlive_trt.configs import ModelConfig, load_config
from longlive_trt.export.checkpoints.opening import Weights, random_weights
from longlive_trt.export.components import expected_shapes
from longlive_trt.export.models.transformer import Transformer

MEMORY_LIMIT_GB = 24


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--config", default="longlive-1.3b")
    options.add_argument("--blocks", type=int, default=4)
    options.add_argument("--prompts", type=int, default=2, help="two make one rollout")
    options.add_argument("--recipe", choices=list(RECIPES), default="fp8")
    options.add_argument("--device", default="cuda")
    options.add_argument("--compute", default="bf16")
    arguments = options.parse_args()
    config = load_config(arguments.config)
    weights = random_weights(expected_shapes(lambda: Transformer(config.transformer)), 0)
    result = measure(config, weights, arguments)
    print(result)
    write_report(result, arguments.out)


def measure(
    config: ModelConfig, weights: Weights, arguments: argparse.Namespace
) -> dict[str, object]:
    request = CalibrationRequest(
        RECIPES[arguments.recipe],
        tuple(shipped_prompts()[: arguments.prompts]),
        blocks=arguments.blocks,
        compute=arguments.compute,
        device=arguments.device,
    )
    texts = SyntheticTexts(config)
    on_gpu = arguments.device.startswith("cuda")
    started = time.monotonic()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        calibration = calibrate(config, weights, request, texts, folder / "progress", _say)
        duration_s = time.monotonic() - started
        save_calibration(calibration, folder / "calibration")
        file_bytes = (folder / "calibration").stat().st_size
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
    _say("running the quantized model", 0, 1)
    narrow = load_quantized(config, weights, calibration, arguments.compute, arguments.device)
    (video, *_) = plan_videos(len(request.prompts), config, 1)
    started = time.monotonic()
    frames = run_video(narrow, config, video, texts.of(request.prompts), seed=1)
    return {
        "command": command(),
        "config": config.name,
        "recipe": calibration.recipe,
        "layers": len(calibration.layers),
        "rollouts": calibration.origin.videos,
        "blocks": calibration.origin.blocks,
        "compute": arguments.compute,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "calibration_s": round(duration_s, 1),
        "peak_gpu_memory_gb": peak_gb,
        "within_24_gb": None if peak_gb is None else peak_gb <= MEMORY_LIMIT_GB,
        "peak_host_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "calibration_file_bytes": file_bytes,
        "quantized_block_is_finite": bool(torch.isfinite(torch.cat(frames)).all()),
        "simulated_block_s": round(time.monotonic() - started, 1),
        "versions": dict(calibration.versions),
    }


def _say(what: str, done: int, total: int) -> None:
    print(f"{what}: {done} of {total}", flush=True)


if __name__ == "__main__":
    main()
