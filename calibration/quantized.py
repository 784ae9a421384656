"""The rewrite: a component whose layers and weights are quantized as a calibration says."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from longlive_trt import hadamard
from longlive_trt.calibration.cache import cache_scales
from longlive_trt.calibration.calibration_file import (
    Calibration,
    require_mixed_ranges,
    require_query_ranges,
)
from longlive_trt.calibration.layers import (
    IntegerAttention,
    QuantizedAttention,
    QuantizedCache,
    QuantizedLinear,
)
from longlive_trt.calibration.mixed_keys import MIXED_KEYS
from longlive_trt.calibration.modelopt import HEAD_PARTS, LayerRanges
from longlive_trt.calibration.quantization import (
    dequantize,
    exact_in_half_precision,
    quantize,
    scale_of,
    weight_scale_of,
)
from longlive_trt.calibration.recipes import INT8, Extras, Format, recipe_named
from longlive_trt.calibration.values import ValueRanges
from longlive_trt.configs import ModelConfig
from longlive_trt.contract import (
    CACHE_OF,
    HADAMARD_SIGNS,
    INPUT_SCALE,
    SMOOTHING_SCALE,
    SOFTMAX_SCALE,
    WEIGHT_SCALE,
    attention_scale,
    cache_scale,
    stem_of,
)
from longlive_trt.export.checkpoints.weights import Weights
from longlive_trt.export.components import Component
from longlive_trt.export.models.transformer import Transformer
from longlive_trt.export.torch_types import TORCH_TYPES
from longlive_trt.export.tracing import GraphInput, GraphSpec, in_compute_type

logger = logging.getLogger(__name__)

# A value that lies between two numbers of the format may go either way: two programs that all but
# agree elsewhere differ by the format's whole step there.
_TOLERANCE = 5e-3


_NOTHING = Extras()


def quantized_component(
    component: Component, calibration: Calibration, extras: Extras = _NOTHING
) -> Component:
    if extras.attention is not None:
        _tell_of_older(calibration, extras.attention)
    return replace(
        component,
        weights=QuantizedWeights(component.weights, calibration, extras),
        graphs=quantized_specs(component.graphs, LayerSwapper.of(calibration, extras)),
    )


def quantized_specs(graphs: Sequence[GraphSpec], adapt: "LayerSwapper") -> tuple[GraphSpec, ...]:
    return tuple(
        replace(
            graph,
            adapt=adapt,
            rounding_tolerance=_TOLERANCE,
            inputs=[_cache_input(item, adapt.extras.kept) for item in graph.inputs],
        )
        for graph in graphs
    )


def _tell_of_older(calibration: Calibration, attention: Format) -> None:
    """What a calibration of an earlier version lacks, and attention does without."""
    if calibration.values(0) is None:
        logger.warning(
            "the calibration was made before the means of values were kept: attention in %s rounds "
            "them with the values; calibrate again for less error",
            attention.name,
        )
    elif not calibration.has_ranges(MIXED_KEYS):
        logger.warning(
            "the calibration was made before attention in int8: attention in %s takes its scales "
            "as before; calibrate again to choose --attention int8",
            attention.name,
        )


def _cache_input(
    inputs: GraphInput | Sequence[GraphInput], kept: Mapping[str, Format]
) -> GraphInput | Sequence[GraphInput]:
    if isinstance(inputs, GraphInput):
        return inputs
    dtypes = {CACHE_OF[part]: format_.dtype for part, format_ in kept.items()}
    return [replace(i, dtype=dtypes.get(stem_of(i.name), i.dtype)) for i in inputs]


@dataclass(frozen=True)
class LayerSwapper:
    """Puts quantized layers into a transformer, for their weights to be loaded."""

    format: Format
    layers: tuple[str, ...]
    smoothed: frozenset[str]
    """Of the layers, those whose inputs are multiplied."""
    extras: Extras = _NOTHING

    @classmethod
    def of(cls, calibration: Calibration, extras: Extras = _NOTHING) -> "LayerSwapper":
        layers = calibration.layers
        smoothed = (n for n, ranges in layers.items() if ranges.pre_quant_scale is not None)
        format_ = recipe_named(calibration.recipe).format
        return cls(format_, tuple(layers), frozenset(smoothed), extras)

    def __call__(self, model: nn.Module) -> None:
        for name in self.layers:
            parent, _, leaf = name.rpartition(".")
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            quantized = QuantizedLinear(layer, self.format, smoothed=name in self.smoothed)
            setattr(model.get_submodule(parent), leaf, quantized)
        assert isinstance(model, Transformer)
        _swap_formats(model, self.extras)


def _swap_formats(model: Transformer, extras: Extras) -> None:
    """Of what is kept, and of attention."""
    shape = model.config
    if extras.scaled:
        plain = extras.scaled.keys() - extras.kept.keys()
        model.cache_format = kept = QuantizedCache(shape.layers, shape.heads, extras.scaled, plain)
    if extras.attention == INT8:
        model.attention_format = IntegerAttention(shape.head_dim, kept)
    elif extras.attention is not None:
        model.attention_format = QuantizedAttention(shape.layers, extras.attention)


def load_quantized(
    config: ModelConfig,
    weights: Weights,
    calibration: Calibration,
    compute: str,
    device: str,
    extras: Extras = _NOTHING,
) -> Transformer:
    """The transformer with its quantized layers, in torch."""
    dtype, extras = TORCH_TYPES[compute], extras.of(config.rollout)
    stored = QuantizedWeights(weights, calibration, extras)
    with torch.device("meta"):
        model = Transformer(config.transformer)
        LayerSwapper.of(calibration, extras)(model)
    model.to_empty(device=device).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.data = in_compute_type(stored.load(name), dtype).to(device)
    return model.eval()


class QuantizedWeights(Weights):
    """A checkpoint's weights, in which quantized layers have scales beside their values."""

    def __init__(self, base: Weights, calibration: Calibration, extras: Extras = _NOTHING) -> None:
        self._base, self._calibration = base, calibration
        self._centers = {} if extras.attention is None else _centers(base, calibration)
        self._scales = {
            **_cache_scales(calibration, extras),
            **_attention_constants(base, calibration, extras),
        }
        self._format = recipe_named(calibration.recipe).format
        self._names = [name for plain in base.names for name in self._with_scales(plain)]
        self._names += self._scales

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self._scales:
            return tuple(self._scales[name].shape)
        layer, _, kind = name.rpartition(".")
        ranges = self._calibration.layers.get(layer)
        if ranges is None or kind == "bias":
            return self._base.shape(name)
        features_out, features_in = self._base.shape(f"{layer}.weight")
        return {
            "weight": (features_in, features_out),
            WEIGHT_SCALE: (features_out,),
            INPUT_SCALE: (),
            SMOOTHING_SCALE: (features_in,),
        }[kind]

    def dtype(self, name: str) -> torch.dtype:
        if name in self._scales:
            return torch.float32
        layer, _, kind = name.rpartition(".")
        if layer not in self._calibration.layers or kind == "bias":
            return self._base.dtype(name)
        return self._format.dtype if kind == "weight" else torch.float32

    def load(self, name: str) -> Tensor:
        if name in self._scales:
            return self._scales[name]
        layer, _, kind = name.rpartition(".")
        ranges = self._calibration.layers.get(layer)
        if kind == "bias" and self._center(layer) is not None:
            return self._centered_bias(layer)
        if ranges is None or kind == "bias":
            return self._base.load(name)
        if kind == "weight":
            return quantized_weight(self._base.load(name), ranges, self._format)
        if kind == SMOOTHING_SCALE:
            assert ranges.pre_quant_scale is not None
            return ranges.pre_quant_scale
        if kind == WEIGHT_SCALE:
            return weight_scale_of(ranges.weight_amax, self._format)
        return scale_of(self._input_amax(layer, ranges), self._format)

    def _center(self, layer: str) -> "_Center | None":
        """What values leave out, for the layers on both sides of attention."""
        attention, _, leaf = layer.rpartition(".")
        return self._centers.get(attention) if leaf in ("v", "o") else None

    def _centered_bias(self, layer: str) -> Tensor:
        bias, center = self._base.load(f"{layer}.bias"), self._center(layer)
        assert center is not None
        if layer.endswith(".v"):
            return center.bias.to(bias.dtype)
        return (bias.float() + self._multiplied(layer, center.taken)).to(bias.dtype)

    def _multiplied(self, layer: str, values: Tensor) -> Tensor:
        """By the weight that the layer has in the end."""
        weight, ranges = self._base.load(f"{layer}.weight"), self._calibration.layers.get(layer)
        if ranges is None:
            return weight.float() @ values
        if ranges.pre_quant_scale is not None:
            values = values * ranges.pre_quant_scale
        scale = weight_scale_of(ranges.weight_amax, self._format)
        return values @ dequantize(quantized_weight(weight, ranges, self._format), scale)

    def _input_amax(self, layer: str, ranges: LayerRanges) -> Tensor:
        """Attention gives means of values: no more than those, nor than it gave, without theirs."""
        attention, _, leaf = layer.rpartition(".")
        if leaf != "o" or attention not in self._centers:
            return ranges.input_amax
        values = ValueRanges.of(self._calibration.channels, attention)
        assert values is not None
        given = self._calibration.channels[layer] + values.mean.abs()
        amax = torch.minimum(given, values.amax)
        return (amax if ranges.pre_quant_scale is None else amax * ranges.pre_quant_scale).amax()

    def digest(self) -> str:
        """Still that of the checkpoint: the record names the calibration beside it."""
        return self._base.digest()

    def _with_scales(self, name: str) -> list[str]:
        layer, _, kind = name.rpartition(".")
        ranges = self._calibration.layers.get(layer)
        if ranges is None or kind != "weight":
            return [name]
        extra = [WEIGHT_SCALE, INPUT_SCALE]
        if ranges.pre_quant_scale is not None:
            extra.append(SMOOTHING_SCALE)
        return [name, *(f"{layer}.{kind}" for kind in extra)]


@dataclass(frozen=True)
class _Center:
    """Of one attention's values."""

    bias: Tensor
    """v's, once the means are taken: the same number in every type."""
    taken: Tensor
    """The means, as near as that bias comes to them."""


def _centers(base: Weights, calibration: Calibration) -> dict[str, _Center]:
    """By attention."""
    centers = {}
    for block in range(calibration.blocks):
        attention, values = f"blocks.{block}.self_attn", calibration.values(block)
        if values is not None:
            bias = base.load(f"{attention}.v.bias").float()
            left = bias - values.mean
            left = left.sign() * exact_in_half_precision(left.abs())
            centers[attention] = _Center(left, bias - left)
    return centers


def _cache_scales(calibration: Calibration, extras: Extras) -> dict[str, Tensor]:
    if not extras.scaled:
        return {}
    if extras.attention == INT8:
        require_mixed_ranges(calibration)
    return {
        cache_scale(part, block): scale
        for block in range(calibration.blocks)
        for part, scale in cache_scales(calibration, block, extras).items()
    }


def _attention_constants(
    base: Weights, calibration: Calibration, extras: Extras
) -> dict[str, Tensor]:
    if extras.attention is None:
        return {}
    if extras.attention == INT8:
        heads = len(calibration.head_amax(0, "k"))
        width, *_ = base.shape("blocks.0.self_attn.q.weight")
        return {HADAMARD_SIGNS: torch.from_numpy(hadamard.signs(width // heads))}
    require_query_ranges(calibration)
    scales = {
        attention_scale(part, block): scale_of(
            _attention_amax(calibration, block, part).amax(), extras.attention
        )
        for part in HEAD_PARTS
        for block in range(calibration.blocks)
    }
    # No weight of a softmax is more than one.
    return {**scales, SOFTMAX_SCALE: scale_of(torch.ones(()), extras.attention)}


def _attention_amax(calibration: Calibration, block: int, part: str) -> Tensor:
    return calibration.value_amax(block) if part == "v" else calibration.head_amax(block, part)


def quantized_weight(weight: Tensor, ranges: LayerRanges, format_: Format) -> Tensor:
    """[out, in] float32 into [in, out] of the format."""
    if ranges.pre_quant_scale is not None:
        weight = weight / ranges.pre_quant_scale
    scale = weight_scale_of(ranges.weight_amax, format_)
    return quantize(weight, scale[:, None], format_).t().contiguous()
