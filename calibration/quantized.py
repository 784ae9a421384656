"""The rewrite: a component whose layers and weights are quantized as a calibration says."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..configs import ModelConfig
from ..export.checkpoint_weights import Weights
from ..export.components import Component
from ..export.tracing import GraphInput, in_compute_type
from ..export.transformer import Transformer
from ..export.weights_file import TORCH_TYPES
from .calibration_file import Calibration
from .layers import NarrowCache, QuantizedLinear
from .modelopt import CACHE_PARTS, LayerRanges
from .quantization import quantize, scale_of
from .recipes import Format, recipe_named

# A value that lies between two numbers of the format may go either way: two programs that all but
# agree elsewhere differ by the format's whole step there.
_TOLERANCES = {"fp32": 5e-3, "fp16": 1e-1, "bf16": 5e-3}


def quantized_component(
    component: Component, calibration: Calibration, cache: Format | None = None
) -> Component:
    adapt = layer_swapper(calibration, cache)
    return replace(
        component,
        weights=QuantizedWeights(component.weights, calibration, cache),
        graphs=tuple(
            replace(
                graph,
                adapt=adapt,
                tolerances=_TOLERANCES,
                inputs=[_cache_input(item, cache) for item in graph.inputs],
            )
            for graph in component.graphs
        ),
    )


def _cache_input(
    given: GraphInput | Sequence[GraphInput], cache: Format | None
) -> GraphInput | Sequence[GraphInput]:
    if cache is None or isinstance(given, GraphInput):
        return given
    kept = ("k_cache", "v_cache")
    return [replace(i, dtype=cache.dtype) if i.name.startswith(kept) else i for i in given]


def layer_swapper(
    calibration: Calibration, cache: Format | None = None
) -> Callable[[nn.Module], None]:
    """Puts quantized layers into a transformer, for their weights to be loaded."""
    format_ = recipe_named(calibration.recipe).format

    def swap(model: nn.Module) -> None:
        for name, ranges in calibration.layers.items():
            parent, _, leaf = name.rpartition(".")
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            smoothed = ranges.pre_quant_scale is not None
            quantized = QuantizedLinear(layer, format_, smoothed=smoothed)
            setattr(model.get_submodule(parent), leaf, quantized)
        if cache is not None:
            assert isinstance(model, Transformer)
            shape = model.config
            model.cache_format = NarrowCache(shape.layers, shape.heads, cache)

    return swap


def load_quantized(
    config: ModelConfig, weights: Weights, calibration: Calibration, compute: str, device: str
) -> Transformer:
    """The transformer with its quantized layers, in torch."""
    dtype = TORCH_TYPES[compute]
    stored = QuantizedWeights(weights, calibration)
    with torch.device("meta"):
        model = Transformer(config.transformer)
        layer_swapper(calibration)(model)
    model.to_empty(device=device).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.data = in_compute_type(stored.load(name), dtype).to(device)
    return model.eval()


class QuantizedWeights(Weights):
    """A checkpoint's weights, in which quantized layers have scales beside their values."""

    def __init__(
        self, base: Weights, calibration: Calibration, cache: Format | None = None
    ) -> None:
        self._base, self._calibration = base, calibration
        self._cache = _cache_scales(calibration, cache) if cache is not None else {}
        self._format = recipe_named(calibration.recipe).format
        self._names = [name for given in base.names for name in self._with_scales(given)]
        self._names += self._cache

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self._cache:
            return tuple(self._cache[name].shape)
        layer, _, kind = name.rpartition(".")
        ranges = self._calibration.layers.get(layer)
        if ranges is None or kind == "bias":
            return self._base.shape(name)
        features_out, features_in = self._base.shape(f"{layer}.weight")
        return {
            "weight": (features_in, features_out),
            "weight_scale": (features_out,),
            "input_scale": (),
            "pre_quant_scale": (features_in,),
        }[kind]

    def dtype(self, name: str) -> torch.dtype:
        if name in self._cache:
            return torch.float32
        layer, _, kind = name.rpartition(".")
        if layer not in self._calibration.layers or kind == "bias":
            return self._base.dtype(name)
        return self._format.dtype if kind == "weight" else torch.float32

    def load(self, name: str) -> Tensor:
        if name in self._cache:
            return self._cache[name]
        layer, _, kind = name.rpartition(".")
        ranges = self._calibration.layers.get(layer)
        if ranges is None or kind == "bias":
            return self._base.load(name)
        if kind == "weight":
            return quantized_weight(self._base.load(name), ranges, self._format)
        if kind == "pre_quant_scale":
            assert ranges.pre_quant_scale is not None
            return ranges.pre_quant_scale
        amax = ranges.weight_amax if kind == "weight_scale" else ranges.input_amax
        return scale_of(amax, self._format)

    def digest(self) -> str:
        """Still that of the checkpoint: the record names the calibration beside it."""
        return self._base.digest()

    def _with_scales(self, name: str) -> list[str]:
        layer, _, kind = name.rpartition(".")
        ranges = self._calibration.layers.get(layer)
        if ranges is None or kind != "weight":
            return [name]
        extra = ["weight_scale", "input_scale"]
        if ranges.pre_quant_scale is not None:
            extra.append("pre_quant_scale")
        return [name, *(f"{layer}.{kind}" for kind in extra)]


def _cache_scales(calibration: Calibration, cache: Format) -> dict[str, Tensor]:
    return {
        f"cache_format.scales.{part}{block}": scale_of(calibration.head_amax(block, part), cache)
        for part in CACHE_PARTS
        for block in range(calibration.blocks)
    }


def quantized_weight(weight: Tensor, ranges: LayerRanges, format_: Format) -> Tensor:
    """[out, in] float32 into [in, out] of the format."""
    if ranges.pre_quant_scale is not None:
        weight = weight / ranges.pre_quant_scale
    scale = scale_of(ranges.weight_amax, format_)
    return quantize(weight, scale[:, None], format_).t().contiguous()
