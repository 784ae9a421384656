"""What each precision costs in quality: rollouts in torch against float32.

    python -m benchmarks.quality.precisions    # docs/results/quality_golden_a.json, docs/quality.md

Everything is measured on the small golden model (random weights): how far a rollout of 20 blocks
with one prompt switch is from the same rollout in float32, in latents and in decoded frames.
"""

import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks.harness import RESULTS, ROOT, command, parser, replace_table, write_report
from longlive_trt.calibration.cache import QuantizedCacheRollout, cache_bytes
from longlive_trt.calibration.calibration_file import Calibration
from longlive_trt.calibration.calibrator import CalibrationRequest, calibrate, load_model
from longlive_trt.calibration.prompts import shipped_prompts
from longlive_trt.calibration.quantized import load_quantized
from longlive_trt.calibration.recipes import FORMATS, RECIPES, VAE_EXCLUDED, Extras
from longlive_trt.calibration.targets import EXCLUDED, Selection
from longlive_trt.calibration.texts import SyntheticTexts
from longlive_trt.calibration.vae.decoder import (
    convolutions,
    load_quantized_vae,
    load_vae,
    select_convolutions,
)
from longlive_trt.calibration.vae.ranges import VaeRanges
from longlive_trt.configs import LatentConfig, ModelConfig, TransformerConfig, VaeConfig
from longlive_trt.export.checkpoints.opening import open_transformer, open_vae
from longlive_trt.export.checkpoints.weights import Weights
from longlive_trt.export.components import expected_shapes
from longlive_trt.export.models.rollout import ReferenceRollout
from longlive_trt.export.models.transformer import Transformer
from longlive_trt.export.models.vae import VaeDecoder, to_pixels

PAGE = ROOT / "docs" / "quality.md"
DATA = ROOT / "tests" / "data"
BLOCKS, SWITCH_BLOCK = 20, 10
CONFIG = ModelConfig(
    name="golden-a",
    transformer=TransformerConfig(
        dim=256, heads=2, layers=2, ffn_dim=512, text_len=16, text_dim=64
    ),
    latent=LatentConfig(height=8, width=12),
    vae=VaeConfig(dim=16),
)


@dataclass(frozen=True)
class Variant:
    name: str
    compute: str = "fp32"
    recipe: str | None = None
    cache: str | None = None
    exclude: tuple[str, ...] = EXCLUDED
    attention: str | None = None

    @property
    def calibration_key(self) -> tuple[str, tuple[str, ...]] | None:
        return (self.recipe, self.exclude) if self.recipe else None

    @property
    def extras(self) -> Extras:
        return Extras(attention=FORMATS[self.attention] if self.attention else None)


@dataclass(frozen=True)
class VaeVariant:
    """How the same latents are decoded."""

    name: str
    format: str
    exclude: tuple[str, ...] = VAE_EXCLUDED


VARIANTS = (
    Variant("fp16", compute="fp16"),
    Variant("bf16", compute="bf16"),
    Variant("FP8", recipe="fp8"),
    Variant("INT8", recipe="int8"),
    Variant("INT8-SmoothQuant", recipe="int8-smoothquant"),
    Variant("FP8 + KV8 (FP8 cache)", recipe="fp8", cache="fp8"),
    Variant("FP8 + KV8 (INT8 cache)", recipe="fp8", cache="int8"),
    Variant("FP8 + attention in FP8", recipe="fp8", attention="fp8"),
    Variant("FP8 + KV8 (FP8 cache) + attention in FP8", recipe="fp8", cache="fp8", attention="fp8"),
    Variant("FP8, the rest in bf16", compute="bf16", recipe="fp8"),
    Variant("FP8, every linear of the blocks", recipe="fp8", exclude=()),
    Variant("FP8, and cross-attention left out", recipe="fp8", exclude=("*.cross_attn.*",)),
    Variant("FP8, and FFN left out", recipe="fp8", exclude=(*EXCLUDED, "*.ffn.*")),
    Variant("FP8, and first block left out", recipe="fp8", exclude=(*EXCLUDED, "blocks.0.*")),
    Variant("FP8, and last block left out", recipe="fp8", exclude=(*EXCLUDED, "blocks.1.*")),
)
_ENDS = VAE_EXCLUDED[:3]
VAE_VARIANTS = (
    VaeVariant("FP8", "fp8"),
    VaeVariant("INT8", "int8"),
    VaeVariant("FP8, every convolution", "fp8", ()),
    VaeVariant("FP8, every convolution but the first two and the last", "fp8", _ENDS),
    VaeVariant("INT8, every convolution", "int8", ()),
    VaeVariant("INT8, every convolution but the first two and the last", "int8", _ENDS),
)


def main() -> None:
    options = parser(__doc__, out=False)
    options.add_argument("--prompts", type=int, default=16, help="of the shipped ones")
    options.add_argument("--no-table", action="store_true", help="leave docs/quality.md as it is")
    arguments = options.parse_args()
    started = time.monotonic()
    weights = open_transformer(
        DATA / "transformer" / "transformer.safetensors",
        expected_shapes(lambda: Transformer(CONFIG.transformer)),
    )
    stored_vae = _stored_vae()
    calibrations = _calibrations(weights, stored_vae, shipped_prompts()[: arguments.prompts])
    vae = load_vae(_vae_config(), stored_vae, "fp32", "cpu")
    baseline = _rollout(weights, Variant("fp32"), None)
    frames = _decode(vae, baseline)
    rows = []
    for variant in VARIANTS:
        key = variant.calibration_key
        latents = _rollout(weights, variant, calibrations[key] if key else None)
        rows.append(_row(variant.name, latents, baseline, _decode(vae, latents), frames))
        print(rows[-1]["name"], f"{rows[-1]['latents_relative_l2']:.2e}")
    (ranges,) = {id(c.vae): c.vae for c in calibrations.values() if c.recipe == "int8"}.values()
    assert ranges is not None
    vae_rows = [_vae_row(v, stored_vae, ranges, baseline, frames) for v in VAE_VARIANTS]
    result = {
        "command": command(),
        "model": "golden model A (random weights)",
        "blocks": BLOCKS,
        "switch_block": SWITCH_BLOCK,
        "calibration_prompts": arguments.prompts,
        "text_states": "synthetic",
        "cache_bytes": {
            "longlive-1.3b, bf16": cache_bytes(ModelConfig(), 2),
            "longlive-1.3b, KV8": cache_bytes(ModelConfig(), 1),
        },
        "rows": rows,
        "vae_rows": vae_rows,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, CPU",
        "duration_s": round(time.monotonic() - started, 1),
    }
    write_report(result, RESULTS / "quality_golden_a.json")
    if not arguments.no_table:
        _write_table(result)


def _calibrations(
    weights: Weights, vae: Weights, prompts: list[str]
) -> dict[tuple[str, tuple[str, ...]], Calibration]:
    keys = {key for variant in VARIANTS if (key := variant.calibration_key)}
    with TemporaryDirectory() as scratch:
        # One set of rollouts serves all: a calibration that finds them done goes on from there.
        progress = Path(scratch) / "progress"
        return {
            (recipe, exclude): calibrate(
                CONFIG,
                weights,
                CalibrationRequest(RECIPES[recipe], tuple(prompts), Selection(exclude=exclude)),
                SyntheticTexts(CONFIG),
                progress,
                lambda what, done, total: print(f"{what}: {done} of {total}"),
                vae=vae,
            )
            for recipe, exclude in sorted(keys)
        }


@torch.no_grad()
def _rollout(weights: Weights, variant: Variant, calibration: Calibration | None) -> Tensor:
    total = BLOCKS * CONFIG.rollout.frames_per_block
    if calibration is None:
        model = load_model(CONFIG, weights, variant.compute, "cpu")
    else:
        model = load_quantized(CONFIG, weights, calibration, variant.compute, "cpu", variant.extras)
    rollout = ReferenceRollout(model, CONFIG, 1, total)
    if variant.cache is not None and calibration is not None:
        format_ = FORMATS[variant.cache]
        rollout = QuantizedCacheRollout(model, CONFIG, 1, total, calibration, format_)
    # Prompts that the calibration has not seen.
    states = SyntheticTexts(CONFIG).of(shipped_prompts()[-2:])
    for block, (noise, *renoise) in enumerate(_noises()):
        if block in (0, SWITCH_BLOCK):
            rollout.switch_prompt(states[min(block, 1)])
        rollout.run_block(noise, renoise)
    return torch.cat(rollout.frames, dim=1).float()


def _noises() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(2024)
    shape = (len(CONFIG.rollout.steps), 1, CONFIG.rollout.frames_per_block, *CONFIG.latent_shape)
    for _ in range(BLOCKS):
        yield torch.randn(shape, generator=generator)


def _vae_config() -> VaeConfig:
    assert isinstance(CONFIG.vae, VaeConfig)
    return CONFIG.vae


def _stored_vae() -> Weights:
    shapes = expected_shapes(lambda: VaeDecoder(_vae_config()))
    return open_vae(DATA / "vae" / "vae.safetensors", shapes)


def _vae_row(
    variant: VaeVariant, stored: Weights, ranges: VaeRanges, latents: Tensor, baseline: Tensor
) -> dict[str, object]:
    config, format_ = _vae_config(), FORMATS[variant.format]
    frames = _decode(load_quantized_vae(config, stored, ranges, format_, variant.exclude), latents)
    chosen = select_convolutions(config, variant.exclude)
    row = {
        "name": variant.name,
        "convolutions": len(chosen),
        "frames_psnr_db": _psnr(frames, baseline),
    }
    print(row)
    return row


@torch.no_grad()
def _decode(vae: VaeDecoder, latents: Tensor) -> Tensor:
    return to_pixels(vae.decode(latents)).float()


def _row(
    name: str, latents: Tensor, baseline: Tensor, frames: Tensor, baseline_frames: Tensor
) -> dict[str, object]:
    by_block = zip(
        latents.split(CONFIG.rollout.frames_per_block, dim=1),
        baseline.split(CONFIG.rollout.frames_per_block, dim=1),
        strict=True,
    )
    return {
        "name": name,
        "latents_relative_l2": _relative(latents, baseline),
        "by_block": [_relative(found, expected) for found, expected in by_block],
        "frames_psnr_db": _psnr(frames, baseline_frames),
    }


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _psnr(found: Tensor, expected: Tensor) -> float:
    error = (found - expected).square().mean()
    return float(10 * torch.log10(255**2 / error.clamp_min(1e-12)))


def _write_table(result: dict[str, object]) -> None:
    rows = result["rows"]
    assert isinstance(rows, list)
    lines = [
        "| against float32 | latents, relative L2 | first 5 blocks | last 5 | frames, PSNR |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        first, last = (sum(part) / 5 for part in (row["by_block"][:5], row["by_block"][-5:]))
        lines.append(
            f"| {row['name']} | {row['latents_relative_l2']:.1e} | {first:.1e} | {last:.1e} "
            f"| {row['frames_psnr_db']:.1f} dB |"
        )
    replace_table(PAGE, "golden-a", lines)
    vae_rows = result["vae_rows"]
    assert isinstance(vae_rows, list)
    replace_table(
        PAGE,
        "vae",
        [
            "| decoded with | convolutions quantized | frames, PSNR |",
            "|---|---|---|",
            *(
                f"| {row['name']} | {row['convolutions']} of {len(convolutions(_vae_config()))} "
                f"| {row['frames_psnr_db']:.1f} dB |"
                for row in vae_rows
            ),
        ],
    )


if __name__ == "__main__":
    main()
