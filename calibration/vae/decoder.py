"""The VAE's decoder in FP8 or INT8: what its convolutions meet, and what becomes of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from longlive_trt.calibration.modelopt import LayerRanges, quiet
from longlive_trt.calibration.quantization import quantize, scale_of, weight_scale_of
from longlive_trt.calibration.recipes import VAE_EXCLUDED, WIDER_THAN, Format
from longlive_trt.calibration.vae.layers import is_convolution, quantized_conv, scales_by_channel
from longlive_trt.calibration.vae.ranges import VaeRanges
from longlive_trt.configs import VaeConfig
from longlive_trt.contract import INPUT_SCALE, WEIGHT_SCALE
from longlive_trt.errors import CheckpointError, UsageError
from longlive_trt.export.checkpoints.weights import Weights
from longlive_trt.export.components import Component
from longlive_trt.export.models.vae import VaeDecoder
from longlive_trt.export.torch_types import TORCH_TYPES
from longlive_trt.export.tracing import GraphSpec, in_compute_type

_WATCHED_FRAMES = 6
"""Latent frames of each rollout that are decoded: the first ones, and some after them."""

_TOLERANCE = 1e-1
"""Rounding that goes another way in one convolution moves all after it."""


def convolutions(config: VaeConfig) -> tuple[str, ...]:
    return tuple(_widths(config))


def _widths(config: VaeConfig) -> dict[str, int]:
    """The channels of every convolution, in or out, whatever are more.

    Where a decoder takes frame by frame, doublings use a layer's weights and not the layer: what
    that reads is not seen, and it stays as it is.
    """
    unseen = "*.resample.1" if config.temporal_taps == 1 else ""
    with FakeTensorMode():
        modules = VaeDecoder(config).named_modules()
        return {
            name: max(module.in_channels, module.out_channels)
            for name, module in modules
            if isinstance(module, (nn.Conv3d, nn.Conv2d))
            and is_convolution(module)
            and not fnmatchcase(name, unseen)
        }


def select_convolutions(config: VaeConfig, exclude: Sequence[str]) -> tuple[str, ...]:
    widths = _widths(config)
    names = tuple(widths)
    # Not every decoder has all that is left out by default.
    for pattern in set(exclude) - set(VAE_EXCLUDED):
        if not any(_is_meant(name, pattern, width) for name, width in widths.items()):
            raise UsageError(
                f"the VAE has no convolution called {pattern}; they are named like "
                f"{names[1]} or {names[2]}, and {WIDER_THAN}192 are those of more channels"
            )
    chosen = tuple(
        name
        for name, width in widths.items()
        if not any(_is_meant(name, pattern, width) for pattern in exclude)
    )
    if not chosen:
        raise UsageError("every convolution of the VAE is left out; exclude fewer")
    return chosen


def _is_meant(name: str, pattern: str, width: int) -> bool:
    channels = pattern.removeprefix(WIDER_THAN)
    if channels != pattern and channels.isdecimal():
        return width > int(channels)
    return fnmatchcase(name, pattern)


class VaeWatcher:
    """The decoder, with ModelOpt's quantizers before its convolutions, which change nothing."""

    def __init__(self, config: VaeConfig, weights: Weights, compute: str, device: str) -> None:
        self._weights = weights
        self._names, self._what = convolutions(config), ""
        self._vae = load_vae(config, weights, compute, device)
        self._quantizers: dict[str, Any] = {name: _quantizer() for name in self._names}
        # A module of their own, for ModelOpt to find them in.
        self._found = nn.ModuleList(self._quantizers.values())
        for name in self._names:
            self._vae.get_submodule(name).register_forward_pre_hook(self._watch(name))

    @torch.no_grad()
    def watch(self, latents: Tensor, what: str) -> dict[str, Tensor]:
        """The largest magnitude that any convolution reads while the first frames are decoded."""
        self._what = what
        for quantizer in self._quantizers.values():
            quantizer.reset_amax()
        with quiet():
            from modelopt.torch.quantization import calibrate

            calibrate(self._found, "max", forward_loop=lambda _module: self._decode(latents))
        return {
            f"vae.{name}": quantizer.amax.detach().float().reshape(()).cpu()
            for name, quantizer in self._quantizers.items()
            if quantizer.amax is not None
        }

    def ranges(self, channels: Mapping[str, Tensor]) -> VaeRanges:
        unseen = [name for name in self._names if f"vae.{name}" not in channels]
        if unseen:
            raise UsageError(
                f"the rollouts are too short for the VAE's {unseen[0]} to run; raise --blocks"
            )
        layers = {
            name: LayerRanges(
                channels[f"vae.{name}"].clone(),
                self._weights.load(f"{name}.weight").float().flatten(1).abs().amax(1),
                None,
            )
            for name in self._names
        }
        return VaeRanges(self._weights.digest(), layers)

    def _decode(self, latents: Tensor) -> None:
        """One latent frame at a time, as the graphs do, and with the memory that they take."""
        first, *others = latents[:, :_WATCHED_FRAMES].split(1, dim=1)
        _, caches = self._vae.decode_first(first)
        for latent in others:
            _, caches = self._vae.decode_next(latent, caches)

    def _watch(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def watch(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # Histories are frames that were inputs before.
            self._require_finite(name, inputs[0])
            self._quantizers[name](inputs[0])

        return watch

    def _require_finite(self, name: str, frames: Tensor) -> None:
        if not torch.isfinite(frames.sum(dtype=torch.float32)):
            raise CheckpointError(
                f"NaN or infinity reached the VAE's {name} while {self._what} was decoded: the "
                f"weights are broken, or too large for the calibration's compute type; try "
                f"--compute fp32, and check the checkpoint"
            )


def _quantizer() -> nn.Module:
    with quiet():
        from modelopt.torch.quantization.nn import TensorQuantizer

        quantizer: nn.Module = TensorQuantizer()
    return quantizer


def load_vae(config: VaeConfig, weights: Weights, compute: str, device: str) -> VaeDecoder:
    with torch.device("meta"):
        vae = VaeDecoder(config)
    return _loaded(vae, weights, compute, device)


def load_quantized_vae(
    config: VaeConfig,
    weights: Weights,
    ranges: VaeRanges,
    format_: Format,
    exclude: Sequence[str],
    compute: str = "fp32",
    device: str = "cpu",
) -> VaeDecoder:
    """The decoder with its quantized convolutions, in torch."""
    chosen = select_convolutions(config, exclude)
    with torch.device("meta"):
        vae = VaeDecoder(config)
        ConvSwapper(tuple(chosen), format_)(vae)
    return _loaded(vae, QuantizedVaeWeights(weights, ranges, chosen, format_), compute, device)


def _loaded(vae: VaeDecoder, weights: Weights, compute: str, device: str) -> VaeDecoder:
    vae.to_empty(device=device).requires_grad_(False)
    for name, parameter in vae.named_parameters():
        parameter.data = in_compute_type(weights.load(name), TORCH_TYPES[compute]).to(device)
    return vae.eval()


def quantized_vae_component(
    component: Component,
    ranges: VaeRanges,
    config: VaeConfig,
    format_: Format,
    exclude: Sequence[str],
) -> Component:
    chosen = select_convolutions(config, exclude)
    weights = QuantizedVaeWeights(component.weights, ranges, chosen, format_)
    graphs = quantized_vae_specs(component.graphs, chosen, format_)
    return replace(component, weights=weights, graphs=graphs)


def quantized_vae_specs(
    graphs: Sequence[GraphSpec], chosen: Sequence[str], format_: Format
) -> tuple[GraphSpec, ...]:
    adapt = ConvSwapper(tuple(chosen), format_)
    return tuple(replace(graph, adapt=adapt, rounding_tolerance=_TOLERANCE) for graph in graphs)


@dataclass(frozen=True)
class ConvSwapper:
    """Puts quantized convolutions into a decoder, for their weights to be loaded."""

    chosen: tuple[str, ...]
    format: Format

    def __call__(self, model: nn.Module) -> None:
        for name in self.chosen:
            parent, _, leaf = name.rpartition(".")
            conv = quantized_conv(model.get_submodule(name), self.format)
            setattr(model.get_submodule(parent), leaf, conv)


class QuantizedVaeWeights(Weights):
    """A VAE's weights, in which chosen convolutions have scales beside their values."""

    def __init__(
        self, base: Weights, ranges: VaeRanges, chosen: Sequence[str], format_: Format
    ) -> None:
        self._base, self._ranges, self._format = base, ranges, format_
        self._chosen = frozenset(chosen)
        scales = [f"{name}.{kind}" for name in chosen for kind in (WEIGHT_SCALE, INPUT_SCALE)]
        self._names = (*base.names, *scales)

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        layer, _, kind = name.rpartition(".")
        if not self._is_made(name):
            return self._base.shape(name)
        if kind == "weight":
            features_out, features_in, *kernel = self._base.shape(name)
            return (features_out, features_in, *([1] * (3 - len(kernel))), *kernel)
        return tuple(self._scale(layer, kind).shape)

    def dtype(self, name: str) -> torch.dtype:
        if not self._is_made(name):
            return self._base.dtype(name)
        return self._format.dtype if name.endswith(".weight") else torch.float32

    def load(self, name: str) -> Tensor:
        layer, _, kind = name.rpartition(".")
        if not self._is_made(name):
            return self._base.load(name)
        if kind != "weight":
            return self._scale(layer, kind)
        values = self._base.load(name).reshape(self.shape(name))
        scale = self._scale(layer, WEIGHT_SCALE)
        return quantize(values, scale.reshape(-1, 1, 1, 1, 1), self._format)

    def digest(self) -> str:
        """Still that of the checkpoint: the record names the calibration beside it."""
        return self._base.digest()

    def _is_made(self, name: str) -> bool:
        layer, _, kind = name.rpartition(".")
        return layer in self._chosen and kind != "bias"

    def _scale(self, layer: str, kind: str) -> Tensor:
        ranges = self._ranges.layers[layer]
        if kind == INPUT_SCALE:
            return scale_of(ranges.input_amax, self._format)
        by_channel = scales_by_channel(self._format)
        amax = ranges.weight_amax if by_channel else ranges.weight_amax.amax()
        return weight_scale_of(amax, self._format)
