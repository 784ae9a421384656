"""Decoders with seeded weights, their ranges, and as much of their exports as builders read."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from longlive_trt.calibration.layers import dequantized
from longlive_trt.calibration.modelopt import LayerRanges
from longlive_trt.calibration.recipes import INT8, Format
from longlive_trt.calibration.vae.decoder import QuantizedVaeWeights, convolutions
from longlive_trt.calibration.vae.layers import QuantizedCausalConv
from longlive_trt.calibration.vae.ranges import VaeRanges
from longlive_trt.configs import VaeConfig
from longlive_trt.engines.graphs.vae_convolutions import steps_of_silu
from longlive_trt.export.checkpoints.weights import Weights
from longlive_trt.export.models.vae import VaeDecoder
from longlive_trt.export.models.vae_layers import Histories

_TYPES = {torch.float8_e4m3fn: ir.DataType.FLOAT8E4M3FN, torch.int8: ir.DataType.INT8}


def seeded_decoder(vae: VaeConfig) -> VaeDecoder:
    """Weights that keep values near 1, and biases and gains that matter."""
    torch.manual_seed(5)
    model = VaeDecoder(vae).eval().requires_grad_(False)
    for name, value in model.state_dict().items():
        if name.endswith("gamma"):
            value.copy_(1 + 0.2 * torch.randn(value.shape))
        elif name.endswith("bias"):
            value.copy_(0.2 * torch.randn(value.shape))
        else:
            value.copy_(torch.randn(value.shape) / value[0].numel() ** 0.5)
    # Rounded before, so that only the arithmetic differs.
    for value in model.state_dict().values():
        value.copy_(value.half())
    return model


class StateWeights(Weights):
    """A model's own."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._state = model.state_dict()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._state)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._state[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._state[name].dtype

    def load(self, name: str) -> Tensor:
        return self._state[name].clone()

    def digest(self) -> str:
        return "seeded"


def seen_ranges(model: VaeDecoder, latents: Tensor) -> VaeRanges:
    """What every convolution reads while a whole video is decoded."""
    assert model.config is not None
    largest: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            amax = inputs[0].float().abs().amax().cpu()
            largest[name] = torch.maximum(largest.get(name, amax), amax)

        return hook

    names = convolutions(model.config)
    hooks = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    model.decode(latents)
    for hook in hooks:
        hook.remove()
    layers = {
        name: LayerRanges(
            largest[name],
            model.get_submodule(name).weight.detach().float().cpu().flatten(1).abs().amax(1),  # type: ignore[union-attr, operator]
            None,
        )
        for name in names
    }
    return VaeRanges("seeded", layers)


def take_steps_of_silu(decoder: VaeDecoder) -> VaeDecoder:
    """Let its convolutions of int8 round what they read as those of a graph for a GPU."""
    for module in decoder.modules():
        if isinstance(module, QuantizedCausalConv) and module.format is INT8:
            module.forward = partial(_forward_in_steps, module)  # type: ignore[method-assign]
    return decoder


def _forward_in_steps(conv: QuantizedCausalConv, frames: Tensor, histories: Histories) -> Tensor:
    steps = steps_of_silu(float(conv.input_scale))
    numbers = (frames / steps.size).round() + steps.zero
    rounded = (numbers.clamp(-127, 127) - steps.zero) * steps.size
    weight = dequantized(conv.weight, conv.weight_scale, 0)
    return F.conv3d(histories.prepend(rounded), weight, conv.bias, padding=(0, 1, 1))


def stored(weights: Weights, folder: Path) -> Path:
    """An export folder as far as the builder looks into it."""
    folder.mkdir()
    graph = ir.Graph([], [], nodes=[], name="vae_next", opset_imports={"": 22})
    for name in weights.names:
        tensor = _stored_tensor(f"vae.{name}", weights.load(name).cpu().contiguous())
        graph.initializers[f"vae.{name}"] = ir.Value(
            name=f"vae.{name}",
            shape=tensor.shape,
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
    ir.save(ir.Model(graph, ir_version=10), folder / "vae_next.onnx", external_data="vae.weights")
    return folder


def _stored_tensor(name: str, values: Tensor) -> ir.TensorProtocol:
    if values.dtype == torch.float8_e4m3fn:
        dtype = _TYPES[values.dtype]
        return ir.tensor(values.view(torch.uint8).numpy().view(dtype.numpy()), dtype, name=name)
    return ir.tensor(values.numpy(), name=name)


def quantized_weights(
    model: VaeDecoder, ranges: VaeRanges, format_: Format, chosen: Sequence[str]
) -> Weights:
    return QuantizedVaeWeights(StateWeights(model), ranges, chosen, format_)
