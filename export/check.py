"""Does a graph compute what torch computes? ONNX Runtime against the reference modules."""

import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from longlive_trt import contract
from longlive_trt.ahead import ahead
from longlive_trt.configs import ModelConfig, VaeConfig
from longlive_trt.contract import numbered
from longlive_trt.errors import ExportError
from longlive_trt.export.check_runs import Tensors, as_numbers, run_graph
from longlive_trt.export.checkpoints.opening import Weights
from longlive_trt.export.models.decoders import decoder_of, presented
from longlive_trt.export.models.text_encoder import TextEncoder
from longlive_trt.export.models.transformer import Transformer, rope_table, rotate, sinusoid
from longlive_trt.export.models.vae import VaeDecoder
from longlive_trt.export.models.vae_encoder import VaeEncoder
from longlive_trt.export.torch_types import QUANTIZED_TYPES, TORCH_TYPES
from longlive_trt.export.tracing import (
    GraphInput,
    GraphSpec,
    concrete_shape,
    flat_inputs,
    in_compute_type,
)
from longlive_trt.precision import Precision

TOLERANCES = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 1e-5}
"""Relative L2. bfloat16 graphs run in float32 arithmetic with the rounded weights: no CPU engine
has bfloat16 arithmetic, and what is checked is the graph."""

_CPU = torch.device("cpu")
_LAST_BITS, _TIMES_ITS_OWN = 1e-6, 3
"""What the reference itself makes of inputs that differ by so little, its graph may differ by, in
so many times that: where values are rounded to eight bits."""

_SIZES = {
    contract.BATCH: 1,
    contract.STEP_FRAMES: 1,
    contract.CACHE_FRAMES: 3,
    contract.LATENT_FRAMES: 1,
    **contract.latent_sizes(4, 6),
    **contract.tile_sizes(9, 7),
    contract.FEATURE_FRAMES: 2,
}
"""Few frames, so that the check of a full-size model stays short."""

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class CheckResult:
    graph: str
    error: float | None
    """The largest relative L2 error of any output."""
    note: str = ""


def check_graph(
    spec: GraphSpec,
    folder: Path,
    weights: Weights,
    config: ModelConfig,
    precision: Precision,
    device: str = "cpu",
) -> CheckResult:
    """Run graph and reference on random inputs; an error beyond the tolerance is an ExportError.

    Both run on the device, if there is room. What differs there is compared on the CPU again.
    """
    needed = _needed_bytes(spec, weights)
    free = psutil.virtual_memory().available
    if needed > free:
        note = f"not checked: needs {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free"
        return CheckResult(spec.name, None, note)
    inputs, error, tolerance = _random_inputs(spec, config), math.inf, 0.0
    for place in dict.fromkeys((_roomy(device, needed), _CPU)):
        reference = _Reference(spec, config, weights, precision, place)
        error, tolerance = _compared(reference, folder, inputs)
        if error <= tolerance:
            return CheckResult(spec.name, error)
    raise ExportError(
        f"graph {spec.name} differs from torch by {error:.2e} (relative L2, allowed "
        f"{tolerance:.0e}); nothing was written. This is a defect: report it"
    )


def _compared(reference: "_Reference", folder: Path, inputs: Tensors) -> tuple[float, float]:
    """The graph's error, and how large it may be."""
    spec, precision = reference.spec, reference.precision
    # The VAE's histories alone are gigabytes: what is expected waits on disk.
    with TemporaryDirectory(dir=folder) as aside, torch.no_grad():
        paths = _put_aside(Path(aside), reference.outputs(inputs))
        found = run_graph(spec, folder, precision, inputs, reference.device)
        if found is None:
            found = run_graph(spec, folder, precision, inputs, _CPU)
        assert found is not None
        error = _largest_error(found, paths)
        tolerance = spec.rounding_tolerance or TOLERANCES[precision.name]
        if error > tolerance and spec.rounding_tolerance is not None:
            # Trained weights let what falls on another side of a step in one layer grow in others.
            own = {n: as_numbers(tensor) for n, tensor in reference.outputs(_moved(inputs)).items()}
            tolerance = max(tolerance, _TIMES_ITS_OWN * _largest_error(own, paths))
    return error, tolerance


def _roomy(device: str, needed: int) -> torch.device:
    """The device, if graph and reference fit there beside what else it holds."""
    wanted = torch.device(device)
    if wanted.type != "cuda":
        return wanted
    _release()
    free, _ = torch.cuda.mem_get_info(wanted)
    return wanted if free >= needed else _CPU


def _release() -> None:
    """What torch keeps of a GPU's memory for itself."""
    gc.collect()
    torch.cuda.empty_cache()


def _largest_error(found: Tensors, expected: Mapping[str, Path]) -> float:
    errors = [
        relative_error(found[name], torch.from_numpy(np.load(path)))
        for name, path in expected.items()
    ]
    # Of numbers that are none, Python's own might leave one out.
    return float(np.max(errors))


def _moved(inputs: Tensors) -> Tensors:
    """The random ones, as another order of sums would have moved them."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: value * (1 + _LAST_BITS * torch.randn(value.shape, generator=generator))
        if value.dtype == torch.float32 and value.ndim > 1
        else value
        for name, value in inputs.items()
    }


def _needed_bytes(spec: GraphSpec, weights: Weights) -> int:
    """From full-size runs: the transformer's weights decide, and the VAE's histories."""
    weight_numbers = sum(math.prod(weights.shape(name)) for name in weights.names)
    items = flat_inputs(spec.inputs)
    input_numbers = sum(math.prod(concrete_shape(item, _SIZES)) for item in items)
    return 6 * weight_numbers + 18 * input_numbers


def _put_aside(folder: Path, tensors: Tensors) -> dict[str, Path]:
    paths = {}
    while tensors:
        name, tensor = tensors.popitem()
        paths[name] = folder / f"{name}.npy"
        np.save(paths[name], as_numbers(tensor).numpy())
    return paths


def relative_error(found: Tensor, expected: Tensor) -> float:
    difference, size = (found.double() - expected.double()).norm(), expected.double().norm()
    return float(difference / size) if size else float(difference)


@dataclass(frozen=True)
class _Reference:
    spec: GraphSpec
    config: ModelConfig
    weights: Weights
    precision: Precision
    device: torch.device

    def outputs(self, inputs: Tensors) -> Tensors:
        """On the host. Products are of float32 wherever they are made."""
        given = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        exactly = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with torch.device(self.device), exactly:
            made = _REFERENCES[self.spec.name](self, given)
        found = {name: tensor.cpu() for name, tensor in made.items()}
        if self.device.type == "cuda":
            del given, made
            _release()
        return found

    def load(self, make: Callable[[], Model]) -> Model:
        """The module in float32 with weights rounded as the graph has them."""
        with torch.device("meta"):
            module = make()
            self.spec.adapt(module)
        module.to_empty(device=self.device)
        parameters = dict(module.named_parameters())
        for parameter, values in zip(
            parameters.values(), ahead(self._rounded, parameters), strict=True
        ):
            parameter.copy_(values)
        return module.eval()

    def _rounded(self, name: str) -> Tensor:
        return in_compute_type(self.weights.load(name), TORCH_TYPES[self.precision.name])


def _random_inputs(spec: GraphSpec, config: ModelConfig) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for item in flat_inputs(spec.inputs):
        values = torch.randn(concrete_shape(item, _SIZES), generator=generator)
        # Quantized numbers use most of their range.
        inputs[item.name] = (values * 30).to(item.dtype) if _is_quantized(item) else values
    return inputs | _meaningful_inputs(spec, config)


def _is_quantized(item: GraphInput) -> bool:
    return item.dtype in QUANTIZED_TYPES


def _meaningful_inputs(spec: GraphSpec, config: ModelConfig) -> Tensors:
    if spec.name == contract.STEP:
        return {
            contract.TIMESTEP: torch.tensor([833.3333]),
            contract.SIGMA: torch.tensor([0.8333]),
            contract.SIGMA_NEXT: torch.tensor([0.625]),
            contract.FRAME_INDEX: torch.arange(_SIZES[contract.STEP_FRAMES]) + 7,
            contract.CACHE_INDEX: torch.arange(_SIZES[contract.CACHE_FRAMES]) + 2,
            contract.SINK_FRAMES: torch.tensor([1]),
            contract.WINDOW_FRAMES: torch.tensor([1]),
        }
    if spec.name in contract.ENCODER_GRAPHS:
        pixels = next(item for item in flat_inputs(spec.inputs) if item.name == contract.PIXELS)
        generator = torch.Generator().manual_seed(1)
        shape = concrete_shape(pixels, _SIZES)
        drawn = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        return {contract.PIXELS: drawn}
    if spec.name == contract.TEXT:
        assert config.text_encoder is not None
        tokens = config.transformer.text_len
        ids = torch.arange(tokens)[None] % config.text_encoder.vocab
        mask = (torch.arange(tokens) < (tokens + 1) // 2).long()[None]
        return {contract.IDS: ids, contract.MASK: mask}
    return {}


def _reference_step(reference: _Reference, inputs: Tensors) -> Tensors:
    config, x = reference.config, inputs[contract.LATENTS]
    model = reference.load(lambda: Transformer(config.transformer))
    kept, attention = model.cache_format, model.attention_format
    relative = config.rollout.rope == "relative"
    layers, new = range(config.transformer.layers), []
    valid_frames = int(inputs[contract.SINK_FRAMES] + inputs[contract.WINDOW_FRAMES])
    valid = valid_frames * config.tokens_per_frame

    def angles(name: str) -> Tensor:
        return rope_table(inputs[name], config.token_grid, config.transformer.head_dim)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cached_k, cached_v = (
            kept.unpack(layer, part, inputs[numbered(name, layer)])
            for part, name in contract.CACHE_OF.items()
        )
        query, turned = (attention.mixed(rotate(x, angles(contract.FRAME_INDEX))) for x in (q, k))
        packed = kept.pack(layer, "k", k if relative else turned), kept.pack(layer, "v", v)
        new.append(packed)
        own_k, own_v = turned, v
        if attention.sees_kept:
            own_k, own_v = (kept.unpack(layer, *own) for own in zip("kv", packed, strict=True))
        if relative:
            turned_cache = attention.mixed(rotate(cached_k, angles(contract.CACHE_INDEX)))
            own_k, cached_k = (attention.key(layer, x) for x in (turned, turned_cache))
        keys = torch.cat([own_k, cached_k[:, :valid]], dim=1)
        values = torch.cat([own_v, cached_v[:, :valid]], dim=1)
        return attention.attend_given(layer, attention.query(query), keys, values)

    features = sinusoid(float(inputs[contract.TIMESTEP]), config.transformer.freq_dim).float()
    context = [
        (inputs[numbered(contract.CONTEXT_K, i)], inputs[numbered(contract.CONTEXT_V, i)])
        for i in layers
    ]
    flow = model(x, features, attend, context)
    x0 = x - inputs[contract.SIGMA] * flow
    sigma_next = inputs[contract.SIGMA_NEXT]
    following = (1 - sigma_next) * x0 + sigma_next * inputs[contract.NOISE]
    outputs = {contract.LATENTS_NEXT: following}
    for layer, (key, value) in enumerate(new):
        outputs |= {numbered(contract.K_NEW, layer): key, numbered(contract.V_NEW, layer): value}
    return outputs


def _reference_prompt(reference: _Reference, inputs: Tensors) -> Tensors:
    model = reference.load(lambda: Transformer(reference.config.transformer))
    outputs: Tensors = {}
    for layer, (key, value) in enumerate(model.prompt(inputs[contract.TEXT_STATES])):
        outputs[numbered(contract.CONTEXT_K, layer)] = key
        outputs[numbered(contract.CONTEXT_V, layer)] = value
    return outputs


def _reference_vae(reference: _Reference, inputs: Tensors) -> Tensors:
    config = reference.config.decoder(reference.spec.component)
    assert config is not None
    vae = reference.load(lambda: decoder_of(config))
    caches = [inputs[numbered(contract.HISTORY, i)] for i in range(len(inputs) - 1)]
    latents = inputs[contract.LATENTS]
    frames, renewed = vae.decode_next(latents, caches) if caches else vae.decode_first(latents)
    outputs = {numbered(contract.HISTORY_NEXT, i): cache for i, cache in enumerate(renewed)}
    return outputs | {contract.FRAMES: presented(frames, config)[0]}


def _reference_part(reference: _Reference, inputs: Tensors) -> Tensors:
    """Of a decoder in two parts."""
    config = reference.config.decoder(reference.spec.component)
    assert isinstance(config, VaeConfig)
    vae = reference.load(lambda: VaeDecoder(config))
    caches = [inputs[numbered(contract.HISTORY, i)] for i in range(len(inputs) - 1)] or None
    if contract.LATENTS in inputs:
        made, renewed = vae.base(inputs[contract.LATENTS], caches)
        outputs = {contract.FEATURES: made}
    else:
        made, renewed = vae.rest(inputs[contract.FEATURES], caches)
        outputs = {contract.FRAMES: presented(made, config)[0]}
    return outputs | {numbered(contract.HISTORY_NEXT, i): cache for i, cache in enumerate(renewed)}


def _reference_encoder(reference: _Reference, inputs: Tensors) -> Tensors:
    vae = reference.config.vae
    assert isinstance(vae, VaeConfig)
    encoder = reference.load(lambda: VaeEncoder(vae))
    caches = [inputs[numbered(contract.HISTORY, i)] for i in range(len(inputs) - 1)]
    frames = inputs[contract.PIXELS].permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    made = encoder.encode_next(frames, caches) if caches else encoder.encode_first(frames)
    outputs = {numbered(contract.HISTORY_NEXT, i): cache for i, cache in enumerate(made[1])}
    return outputs | {contract.LATENTS: made[0]}


def _reference_text(reference: _Reference, inputs: Tensors) -> Tensors:
    config = reference.config.text_encoder
    assert config is not None
    model = reference.load(lambda: TextEncoder(config))
    return {contract.TEXT_STATES: model(inputs[contract.IDS], inputs[contract.MASK])}


_REFERENCES: Mapping[str, Callable[[_Reference, Tensors], Tensors]] = {
    contract.STEP: _reference_step,
    contract.PROMPT: _reference_prompt,
    **{graph: _reference_vae for pair in contract.DECODER_GRAPHS.values() for graph in pair},
    **dict.fromkeys(contract.PART_GRAPHS, _reference_part),
    contract.ENCODE_FIRST: _reference_encoder,
    contract.ENCODE_NEXT: _reference_encoder,
    contract.TEXT: _reference_text,
}
