"""LPIPS (learned perceptual image patch similarity) with the user's own weights.

The file holds what ``lpips.LPIPS(...)`` or torchmetrics' network has as its state dict: a backbone
(``net.slice1.0.weight``, ...) and one linear layer for each of its five taps
(``lin0.model.1.weight``, ...). Whether the backbone is AlexNet's or VGG16's is told by the numbers
of its layers; how wide they are, by their shapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longlive_trt.errors import CheckpointError
from longlive_trt.quality.metrics.similarity import Numbers, Pixels
from longlive_trt.quality.metrics.weights import load_tensors

if TYPE_CHECKING:
    from torch import Tensor

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPS = 1e-10


@dataclass(frozen=True)
class Backbone:
    """Layers by their numbers: (stride, padding) of convolutions, and where sizes are halved."""

    name: str
    convolutions: Mapping[int, tuple[int, int]]
    pools: Mapping[int, int]
    """The side of the window; it moves by two pixels."""
    taps: tuple[int, ...]
    """Convolutions whose results, with negative ones set to zero, are compared."""


ALEXNET = Backbone(
    "AlexNet",
    {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)},
    {2: 3, 5: 3},
    (0, 3, 6, 8, 10),
)
VGG16 = Backbone(
    "VGG16",
    dict.fromkeys((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (1, 1)),
    {4: 2, 9: 2, 16: 2, 23: 2},
    (2, 7, 14, 21, 28),
)


class Lpips:
    def __init__(self, path: Path) -> None:
        tensors = load_tensors(path, "--lpips")
        self.backbone, self._layers = _layers(tensors, path)
        self._linear = [_linear(tensors, number, path) for number in range(5)]
        self._require_fit(path)

    def __call__(self, a: Pixels, b: Pixels) -> Numbers:
        """One distance for each pair of pictures [n, height, width, 3]."""
        import torch

        with torch.inference_mode():
            pairs = zip(self._taps(a), self._taps(b), self._linear, strict=True)
            parts = [
                ((first - second).square() * weight).sum(1).mean((1, 2))
                for first, second, weight in pairs
            ]
            return np.asarray(torch.stack(parts).sum(0).numpy(), np.float64)

    def _taps(self, pictures: Pixels) -> "list[Tensor]":
        import torch
        import torch.nn.functional as F

        shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (_SHIFT, _SCALE))
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        x, taps = (x - shift) / scale, []
        for number in range(max(self._layers) + 1):
            if number in self.backbone.pools:
                x = F.max_pool2d(x, self.backbone.pools[number], 2)
            if number in self._layers:
                stride, padding = self.backbone.convolutions[number]
                x = F.conv2d(x, *self._layers[number], stride=stride, padding=padding).relu()
            if number in self.backbone.taps:
                taps.append(x / (x.square().sum(1, keepdim=True).sqrt() + _EPS))
        return taps

    def _require_fit(self, path: Path) -> None:
        import torch

        for tap, weight in zip(self.backbone.taps, self._linear, strict=True):
            width = self._layers[tap][0].shape[0]
            if weight.shape[1] != width:
                raise CheckpointError(
                    f"--lpips {path}: a linear layer of {weight.shape[1]} channels for a tap of "
                    f"{width}; give backbone and linear layers of one network"
                )
        try:
            self(*(np.zeros((1, 64, 64, 3), np.uint8) for _ in range(2)))
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            raise CheckpointError(
                f"--lpips {path}: its layers do not follow each other ({str(error)[:100]}); give "
                f"the weights of an LPIPS network"
            ) from None


def _layers(
    tensors: "Mapping[str, Tensor]", path: Path
) -> "tuple[Backbone, dict[int, tuple[Tensor, Tensor]]]":
    numbers = {
        int(parts[2]): ".".join(parts[:3])
        for parts in (name.split(".") for name in tensors)
        if len(parts) == 4 and parts[0] == "net" and parts[1][:5] == "slice" and parts[2].isdigit()
    }
    backbone = next((b for b in (ALEXNET, VGG16) if set(b.convolutions) == set(numbers)), None)
    if backbone is None:
        raise CheckpointError(
            f"--lpips {path}: no backbone of LPIPS in it (net.slice1.0.weight, ...), neither "
            f"{ALEXNET.name}'s nor {VGG16.name}'s layers; give the state dict of an LPIPS network"
        )
    layers = {}
    for number, name in sorted(numbers.items()):
        weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
        if weight is None or bias is None or weight.ndim != 4 or bias.shape != weight.shape[:1]:
            raise CheckpointError(f"--lpips {path}: {name} is no convolution with a bias")
        layers[number] = (weight, bias)
    return backbone, layers


def _linear(tensors: "Mapping[str, Tensor]", number: int, path: Path) -> "Tensor":
    names = [f"lin{number}.model.{n}.weight" for n in (1, 0)]
    weight = next((tensors[name] for name in names if name in tensors), None)
    if weight is None or weight.ndim != 4 or weight.shape[0] != 1 or weight.shape[2:] != (1, 1):
        raise CheckpointError(
            f"--lpips {path}: {names[0]} is missing, or no weights of channels; give backbone and "
            f"linear layers in one file"
        )
    return weight
