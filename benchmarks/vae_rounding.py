"""What the decoder's eight bits cost: its frames against those of float32, in torch on a CPU.

    python -m benchmarks.vae_rounding --out docs/results/vae_rounding.json

Two decoders: the demo's, and one of the full width with random weights and a small picture. Each
with the convolutions that are quantized by default, as the export rounds them, and as our kernel
for Hopper rounds int8 (``engines/graphs/vae_convolutions.py``). Latents are random; ranges come
from others. The seed decides all of it.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.harness import ROOT, command, parser, replace_table, write_report
from longlive_trt.calibration.layers import dequantized
from longlive_trt.calibration.recipes import FORMATS, INT8, VAE_EXCLUDED
from longlive_trt.calibration.vae.decoder import VaeWatcher, load_quantized_vae
from longlive_trt.calibration.vae.layers import QuantizedCausalConv, QuantizedStillConv
from longlive_trt.configs import ModelConfig, load_config
from longlive_trt.engines.graphs.vae_convolutions import steps_of_silu
from longlive_trt.export.checkpoints.weights import Weights
from longlive_trt.export.models.vae import VaeDecoder
from longlive_trt.export.models.vae_layers import Histories

PAGE = ROOT / "docs" / "quantization.md"
DEMO = ROOT / "demo"
SMALL = (4, 8)
"""Latent pixels of the decoder of the full width, in place of 60x104."""


class ModelWeights(Weights):
    """A model's own."""

    def __init__(self, model: nn.Module) -> None:
        self._state = model.state_dict()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._state)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._state[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        dtype: torch.dtype = self._state[name].dtype
        return dtype

    def load(self, name: str) -> Tensor:
        tensor: Tensor = self._state[name].clone()
        return tensor

    def digest(self) -> str:
        return ""


def demo_decoder() -> tuple[ModelConfig, VaeDecoder]:
    config = load_config(DEMO / "model.yaml")
    stored = load_file(DEMO / "weights" / "vae.safetensors")
    model = VaeDecoder(require_vae(config)).eval().requires_grad_(False)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    named = {name.removeprefix("vae."): value.float() for name, value in stored.items()}
    model.load_state_dict({name: named[name].reshape(shape) for name, shape in shapes.items()})
    return config, model


def random_decoder() -> tuple[ModelConfig, VaeDecoder]:
    """Weights that keep values near 1, and biases and gains that matter."""
    config = load_config("longlive-1.3b")
    small = replace(config.latent, height=SMALL[0], width=SMALL[1])
    model = VaeDecoder(require_vae(config)).eval().requires_grad_(False)
    for name, value in model.state_dict().items():
        noise = torch.randn(value.shape)
        if name.endswith(("gamma", "bias")):
            value.copy_(0.2 * noise + name.endswith("gamma"))
        else:
            value.copy_(noise / value[0].numel() ** 0.5)
    return replace(config, latent=small), model


def require_vae(config: ModelConfig) -> Any:
    assert config.vae is not None
    return config.vae


def round_as_on_hopper(model: nn.Module) -> None:
    for conv in model.modules():
        if isinstance(conv, (QuantizedCausalConv, QuantizedStillConv)) and conv.format == INT8:
            conv.forward = partial(convolve, conv)  # type: ignore[method-assign]


def convolve(conv: Any, frames: Tensor, histories: Histories) -> Tensor:
    steps = steps_of_silu(float(conv.input_scale))
    numbers = (frames / steps.size).round() + steps.zero
    rounded = (numbers.clamp(-127, 127) - steps.zero) * steps.size
    is_causal = isinstance(conv, QuantizedCausalConv)
    inputs = histories.prepend(rounded) if is_causal else rounded
    weight = dequantized(conv.weight, conv.weight_scale, 0)
    return F.conv3d(inputs, weight, conv.bias, padding=(0, 1, 1))


def psnr_db(frames: Tensor, exact: Tensor) -> float:
    """Of frames between -1 and 1."""
    error = (frames.clamp(-1, 1) - exact.clamp(-1, 1)).double().pow(2).mean()
    return float(10 * torch.log10(4 / error))


@torch.no_grad()
def measure(decoder: str, config: ModelConfig, model: VaeDecoder) -> Iterator[dict[str, Any]]:
    vae, weights = require_vae(config), ModelWeights(model)
    latents, others = torch.randn(2, 1, 6, *config.latent_shape)
    watcher = VaeWatcher(vae, weights, "fp32", "cpu")
    ranges = watcher.ranges(watcher.watch(others, "random latents"))
    exact = model.decode(latents)
    for label, name, on_hopper in (
        ("FP8", "fp8", False),
        ("INT8, as exported", "int8", False),
        ("INT8, on Hopper", "int8", True),
    ):
        quantized = load_quantized_vae(vae, weights, ranges, FORMATS[name], VAE_EXCLUDED)
        if on_hopper:
            round_as_on_hopper(quantized)
        value = psnr_db(quantized.decode(latents), exact)
        print(f"{decoder:24s} {label:20s} {value:.1f} dB", flush=True)
        yield {"decoder": decoder, "format": label, "psnr_db": value}


def write_table(rows: list[dict[str, Any]], page: Path) -> None:
    decoders = list(dict.fromkeys(row["decoder"] for row in rows))
    lines = [f"| PSNR to float32 | {' | '.join(decoders)} |", f"|---{'|---' * len(decoders)}|"]
    for label in dict.fromkeys(row["format"] for row in rows):
        values = [f"{row['psnr_db']:.1f} dB" for row in rows if row["format"] == label]
        lines.append(f"| {label} | {' | '.join(values)} |")
    replace_table(page, "vae rounding", lines)


def main() -> None:
    chosen = parser(__doc__).parse_args()
    torch.manual_seed(5)
    rows = [*measure("the demo's decoder", *demo_decoder())]
    rows += measure("full width, random", *random_decoder())
    write_report({"command": command(), "rows": rows}, chosen.out)
    if chosen.out is not None:
        write_table(rows, PAGE)


if __name__ == "__main__":
    main()
