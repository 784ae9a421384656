"""ModelOpt: its quantizers watch real rollouts, and its algorithms make ranges of what they saw.

First every input channel of every layer is watched, video by video, so that a calibration can be
interrupted. Then the recipe's own algorithm runs on one row per layer that has just these ranges.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longlive_trt.calibration.mixed_keys import MIXED_KEYS, MixedKeys
from longlive_trt.calibration.quantization import exact_in_half_precision
from longlive_trt.calibration.recipes import FP8, Recipe
from longlive_trt.calibration.values import ValueWatcher
from longlive_trt.configs import ModelConfig
from longlive_trt.errors import CheckpointError

logger = logging.getLogger(__name__)

HEAD_PARTS = ("q", "k", "v")
_WATCHED_PARTS = (*HEAD_PARTS, MIXED_KEYS)


@dataclass(frozen=True)
class LayerRanges:
    input_amax: Tensor
    """[] after any smoothing."""
    weight_amax: Tensor
    """[out] after any smoothing."""
    pre_quant_scale: Tensor | None
    """[in] What inputs are multiplied by, and weights divided by."""


class RangeWatcher:
    """ModelOpt's quantizers in a model, set to watch and to change nothing."""

    def __init__(self, model: nn.Module, layers: Sequence[str], config: ModelConfig) -> None:
        self._model, self._layers = model, layers
        self._attention = [f"blocks.{i}.self_attn" for i in range(config.transformer.layers)]
        self._mixed_keys = {name: MixedKeys(config) for name in self._attention}
        self._where: dict[str, str] = {"video": ""}
        self._values: dict[str, ValueWatcher] = {}
        with quiet():
            from modelopt.torch.quantization import quantize

            quantize(model, _watching(layers), forward_loop=None)
            self._add_head_quantizers()
        for name in layers:
            model.get_submodule(name).register_forward_pre_hook(self._finite_check(name))

    def watch(self, run: Callable[[], object], what: str) -> dict[str, Tensor]:
        """The largest magnitude in every channel of every input while ``run`` runs."""
        self._where["video"] = what
        self._values = {name: ValueWatcher() for name in self._attention}
        for keys in self._mixed_keys.values():
            keys.begin()
        quantizers = dict(self._quantizers())
        for quantizer in quantizers.values():
            quantizer.reset_amax()
        with quiet():
            from modelopt.torch.quantization import calibrate

            calibrate(self._model, "max", forward_loop=lambda _model: run())
        seen = {name: q.amax.detach().float().flatten().cpu() for name, q in quantizers.items()}
        for name, values in self._values.items():
            seen |= {f"{name}.{part}": tensor for part, tensor in values.seen().items()}
        return seen

    def observe_heads(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        name = self._attention[layer]
        seen = (_longest_pairs(q), _longest_pairs(k), v, self._mixed_keys[name].of(k))
        for part, tensor in zip(_WATCHED_PARTS, seen, strict=True):
            getattr(self._layer(name), f"{part}_bmm_quantizer")(tensor)
        self._values[name].observe(v)

    def _layer(self, name: str) -> Any:
        """A linear layer as ModelOpt made it, with attributes that no stub knows."""
        return self._model.get_submodule(name)

    def ranges(self, channels: Mapping[str, Tensor], recipe: Recipe) -> dict[str, LayerRanges]:
        """The recipe's ranges from those of single channels. The model's weights may change."""
        rows = {name: channels[name] for name in self._layers}
        with quiet():
            from modelopt.torch.quantization import calibrate, set_quantizer_by_cfg

            set_quantizer_by_cfg(self._model, _recipe_entries(self._layers, recipe))
            for name in self._layers:
                self._layer(name).input_quantizer.reset_amax()
            calibrate(self._model, recipe.algorithm, lambda _model: self._feed(rows))
        return {name: self._read(name, recipe) for name in self._layers}

    def _quantizers(self) -> Iterator[tuple[str, Any]]:
        for name in self._layers:
            yield name, self._layer(name).input_quantizer
        for name in self._attention:
            for part in _WATCHED_PARTS:
                quantizer = getattr(self._layer(name), f"{part}_bmm_quantizer")
                yield f"{name}.{part}_heads", quantizer

    def _add_head_quantizers(self) -> None:
        from modelopt.torch.quantization.config import QuantizerAttributeConfig
        from modelopt.torch.quantization.nn import TensorQuantizer

        per_head = QuantizerAttributeConfig(num_bits=FP8.modelopt_bits, axis=-2)
        for name in self._attention:
            for part in _WATCHED_PARTS:
                module = self._model.get_submodule(name)
                setattr(module, f"{part}_bmm_quantizer", TensorQuantizer(per_head))

    def _finite_check(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def check(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # A sum is as telling as every element, and far quicker.
            if not torch.isfinite(inputs[0].sum(dtype=torch.float32)):
                raise CheckpointError(
                    f"NaN or infinity reached layer {name} during {self._where['video']}: "
                    f"the weights are broken, or too large for the calibration's compute type; "
                    f"try --compute fp32, and check the checkpoint"
                )

        return check

    @torch.no_grad()
    def _feed(self, rows: Mapping[str, Tensor]) -> None:
        for name, row in rows.items():
            layer = self._layer(name)
            layer(row.to(layer.weight.device, layer.weight.dtype)[None, None])

    def _read(self, name: str, recipe: Recipe) -> LayerRanges:
        layer = self._layer(name)
        inputs, weights = layer.input_quantizer, layer.weight_quantizer
        input_amax, weight_amax = (_plain(q.amax) for q in (inputs, weights))
        if recipe.smoothing is None:
            return LayerRanges(input_amax.amax(), weight_amax, None)
        smoothing = _plain(inputs.pre_quant_scale)
        stored = exact_in_half_precision(smoothing)
        # Inputs grow with what rounding adds to the factor; weights only shrink.
        growth = (stored / smoothing).amax()
        return LayerRanges(input_amax.amax() * growth, weight_amax, stored)


def _longest_pairs(x: Tensor) -> Tensor:
    """The lengths of the pairs that rotary embeddings turn.

    They bound every element at every position: also at those that no calibration comes to, and
    whether or not keys are kept rotated.
    """
    lengths: Tensor = x.float().unflatten(-1, (-1, 2)).norm(dim=-1)
    return lengths


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().float().flatten().cpu()


def _watching(layers: Sequence[str]) -> dict[str, Any]:
    entries = [{"quantizer_name": "*", "enable": False}]
    per_channel = {"num_bits": FP8.modelopt_bits, "axis": -1}
    entries += [
        {"quantizer_name": f"{name}.input_quantizer", "cfg": per_channel} for name in layers
    ]
    return {"quant_cfg": entries, "algorithm": None}


def _recipe_entries(layers: Sequence[str], recipe: Recipe) -> list[dict[str, Any]]:
    bits = recipe.format.modelopt_bits
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for name in layers:
        entries += [
            {"quantizer_name": f"{name}.weight_quantizer", "cfg": {"num_bits": bits, "axis": 0}},
            {"quantizer_name": f"{name}.input_quantizer", "cfg": {"num_bits": bits, "axis": None}},
        ]
    return entries


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """ModelOpt prints what it does, and warns about GPU kernels that it does not need here."""
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said):
            warnings.simplefilter("ignore")
            yield
    finally:
        if text := said.getvalue().strip():
            logger.debug("ModelOpt: %s", text.replace("\n", "; "))
