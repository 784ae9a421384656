"""Which layers a quantization hurts, and whether its error grows along a video."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from longlive_trt.basics import Report
from longlive_trt.calibration.calibration_file import Calibration
from longlive_trt.calibration.calibrator import CalibrationRequest, load_model
from longlive_trt.calibration.layers import QuantizedLinear
from longlive_trt.calibration.quantized import QuantizedWeights, load_quantized
from longlive_trt.calibration.recipes import Extras, recipe_named
from longlive_trt.calibration.texts import TextStates
from longlive_trt.calibration.videos import Video, run_video
from longlive_trt.configs import ModelConfig
from longlive_trt.export.checkpoints.weights import Weights
from longlive_trt.export.models.transformer import Transformer

_NOTHING = Extras()
_LAYER_BLOCKS = 2
_GROWTH_BLOCKS = 20
_EDGE_BLOCKS = 5
_DRIFT_FROM = 2.0


@dataclass(frozen=True)
class LayerSensitivity:
    layer: str
    sqnr_db: float
    """Of the layer's own output, for the inputs of an unquantized rollout."""
    latents_error: float
    """Relative L2 of a short rollout in which this layer alone is quantized."""


@dataclass(frozen=True)
class PassError:
    block: int
    denoising_pass: int
    """0, 1, ...; the last one is the clean pass."""
    flow_error: float


@dataclass(frozen=True)
class SensitivityReport:
    recipe: str
    layers: tuple[LayerSensitivity, ...]
    growth: tuple[PassError, ...]
    """All layers quantized, against the unquantized rollout."""
    latents_error: float
    """Of all blocks of that rollout."""
    drift: float
    """Error of the last blocks over that of the first."""
    error_budget: float
    suggested_exclude: tuple[str, ...]
    """Layers to leave out so that the short rollout stays within the budget."""

    @property
    def drifts(self) -> bool:
        return self.drift >= _DRIFT_FROM

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "drifts": self.drifts}, indent=1) + "\n"


def measure(
    config: ModelConfig,
    weights: Weights,
    calibration: Calibration,
    request: CalibrationRequest,
    texts: TextStates,
    error_budget: float,
    growth_blocks: int = _GROWTH_BLOCKS,
    report: Report = lambda _what, _done, _total: None,
    extras: Extras = _NOTHING,
) -> SensitivityReport:
    """The error of the whole is that with ``extras``; single layers are measured without."""
    states = texts.of(request.prompts[:2])
    # A number of its own, so that its noise is none that was calibrated on.
    video = Video(-1, tuple(range(len(states))), growth_blocks // 2, growth_blocks)
    model = load_model(config, weights, request.compute, request.device)
    layers = tuple(
        _measure_layers(config, model, weights, calibration, states, request.seed, video, report)
    )
    report("measuring the error's growth", 0, 1)
    flows, latents = _run(model, config, video, states, request.seed)
    del model
    quantized = load_quantized(
        config, weights, calibration, request.compute, request.device, extras
    )
    quantized_flows, quantized_latents = _run(quantized, config, video, states, request.seed)
    growth = tuple(
        PassError(*where, relative_l2(quantized_flows[where], flow))
        for where, flow in flows.items()
    )
    return SensitivityReport(
        recipe=calibration.recipe,
        layers=layers,
        growth=growth,
        latents_error=relative_l2(quantized_latents, latents),
        drift=_drift(growth, growth_blocks),
        error_budget=error_budget,
        suggested_exclude=suggest_exclude(layers, error_budget),
    )


def suggest_exclude(layers: Sequence[LayerSensitivity], budget: float) -> tuple[str, ...]:
    """The worst layers, until the others' errors, which add up as squares, fit the budget."""
    worst = sorted(layers, key=lambda layer: -layer.latents_error)
    left = sum(layer.latents_error**2 for layer in layers)
    excluded = []
    for layer in worst:
        if math.sqrt(max(left, 0.0)) <= budget:
            break
        excluded.append(layer.layer)
        left -= layer.latents_error**2
    return tuple(sorted(excluded))


def relative_l2(values: Tensor, expected: Tensor) -> float:
    return float((values.double() - expected.double()).norm() / expected.double().norm())


def _measure_layers(
    config: ModelConfig,
    model: Transformer,
    weights: Weights,
    calibration: Calibration,
    states: Sequence[Tensor],
    seed: int,
    video: Video,
    report: Report,
) -> Iterator[LayerSensitivity]:
    short = replace(video, blocks=min(_LAYER_BLOCKS, video.blocks))
    _, expected = _run(model, config, short, states, seed)
    stored = QuantizedWeights(weights, calibration)
    for done, name in enumerate(calibration.layers):
        report("measuring single layers", done, len(calibration.layers))
        with _one_quantized(model, name, stored, calibration) as energies:
            _, latents = _run(model, config, short, states, seed)
        signal, noise = energies
        sqnr = 10 * math.log10(signal / noise) if noise else math.inf
        yield LayerSensitivity(name, sqnr, relative_l2(latents, expected))


@contextmanager
def _one_quantized(
    model: Transformer, name: str, stored: QuantizedWeights, calibration: Calibration
) -> Iterator[list[float]]:
    """Quantize one layer; yields the energies of what it should give and of its error."""
    parent, _, leaf = name.rpartition(".")
    original = model.get_submodule(name)
    assert isinstance(original, nn.Linear)
    layer = _quantized_layer(name, original, stored, calibration)
    energies = [0.0, 0.0]

    def compare(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        exact = original(inputs[0]).float()
        energies[0] += float(exact.square().sum())
        energies[1] += float((output.float() - exact).square().sum())

    layer.register_forward_hook(compare)
    setattr(model.get_submodule(parent), leaf, layer)
    try:
        yield energies
    finally:
        setattr(model.get_submodule(parent), leaf, original)


def _quantized_layer(
    name: str, original: nn.Linear, stored: QuantizedWeights, calibration: Calibration
) -> QuantizedLinear:
    smoothed = calibration.layers[name].pre_quant_scale is not None
    layer = QuantizedLinear(original, recipe_named(calibration.recipe).format, smoothed=smoothed)
    weight = original.weight
    for key, parameter in layer.named_parameters():
        value = stored.load(f"{name}.{key}")
        is_quantized = value.dtype == layer.format.dtype
        parameter.data = value.to(weight.device, value.dtype if is_quantized else weight.dtype)
    return layer


def _run(
    model: Transformer, config: ModelConfig, video: Video, states: Sequence[Tensor], seed: int
) -> tuple[dict[tuple[int, int], Tensor], Tensor]:
    """The flow of every pass, and the latents."""
    flows: dict[tuple[int, int], Tensor] = {}

    def watch(name: str, value: Tensor) -> None:
        kind, _, where = name.partition(".")
        if kind == "flow" and where.startswith("block"):
            block, number = where.split(".")
            flows[int(block.removeprefix("block")), int(number.removeprefix("pass"))] = value.cpu()

    frames = run_video(model, config, video, states, seed, watch=watch)
    return flows, torch.cat(frames, dim=1).cpu()


def _drift(growth: Sequence[PassError], blocks: int) -> float:
    edge = min(_EDGE_BLOCKS, blocks)
    first = [item.flow_error for item in growth if item.block < edge]
    last = [item.flow_error for item in growth if item.block >= blocks - edge]
    return (sum(last) / len(last)) / (sum(first) / len(first))
