"""TAEHV written out anew in numpy, one frame after the other: the oracle of the torch model.

Nothing is batched over time: every memory block keeps a list, and every picture passes alone.
"""

from collections.abc import Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Array = np.ndarray
Weights = Mapping[str, Array]
STAGES = ((3, 7, 8), (9, 13, 14), (15, 19, 20))
"""The first memory block, the 1x1 layer that makes frames, and the convolution after it."""


def decode(weights: Weights, latents: Array, strides: tuple[int, int, int]) -> Array:
    """Latents [T, C, h, w] into frames from 0 to 1."""
    raw: list[Array] = []
    past: dict[int, Array] = {}
    for latent in latents.astype(np.float64):
        pictures = [relu(conv(weights, "decoder.1", 3 * np.tanh(latent / 3)))]
        for (block, growth, last), stride in zip(STAGES, strides, strict=True):
            for number in range(block, block + 3):
                pictures = [remembered(weights, number, picture, past) for picture in pictures]
            # As published: enlarged first, then grown.
            pictures = [np.repeat(np.repeat(x, 2, axis=1), 2, axis=2) for x in pictures]
            pictures = [new for x in pictures for new in grown(weights, growth, x, stride)]
            pictures = [conv(weights, f"decoder.{last}", picture) for picture in pictures]
        raw += [conv(weights, "decoder.22", relu(picture)) for picture in pictures]
    surplus = int(np.prod(strides)) - 1
    return np.stack(raw[surplus:]).clip(0, 1)


def remembered(weights: Weights, number: int, x: Array, past: dict[int, Array]) -> Array:
    before, past[number] = past.get(number, np.zeros_like(x)), x
    hidden = relu(conv(weights, f"decoder.{number}.conv.0", np.concatenate([x, before])))
    hidden = relu(conv(weights, f"decoder.{number}.conv.2", hidden))
    return relu(conv(weights, f"decoder.{number}.conv.4", hidden) + x)


def grown(weights: Weights, number: int, x: Array, stride: int) -> list[Array]:
    channels = x.shape[0]
    matrix = weights[f"decoder.{number}.conv.weight"][:, :, 0, 0][-stride * channels :]
    made = np.einsum("oc,chw->ohw", matrix, x)
    return [made[k * channels : (k + 1) * channels] for k in range(stride)]


def conv(weights: Weights, name: str, x: Array) -> Array:
    windows = sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2))
    made = np.einsum("ocij,chwij->ohw", weights[f"{name}.weight"], windows)
    return made + weights.get(f"{name}.bias", np.zeros(1))[:, None, None]


def relu(x: Array) -> Array:
    return np.maximum(x, 0)
