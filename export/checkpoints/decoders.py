"""Which decoder a file holds, told from the names and shapes of its tensors."""

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

import torch

from longlive_trt.configs.schema import TAEHV, WAN
from longlive_trt.errors import CheckpointError
from longlive_trt.export.checkpoints.components import TINY_VAE, VAE
from longlive_trt.export.checkpoints.weights import Weights, combined_digest

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

_FITS = (
    "what fits: Wan 2.1's VAE (Wan2.1_VAE.pth, or Diffusers' AutoencoderKLWan), LightVAE, taew2_1 "
    "or lighttaew2_1"
)
_LATENT_CHANNELS = 16
_OF_CHANNELS = {
    4: "images (TAESD)",
    32: "HunyuanVideo 1.5 (taehv1_5)",
    48: "Wan 2.2 5B (taew2_2)",
    128: "LTX-Video (taeltx)",
}
_FIRST, _LAST, _SUPER = "decoder.1.weight", "decoder.22.bias", "decoder.0.weight"
_ENTRANCES = ("conv2.weight", "post_quant_conv.weight")
_WIDTHS = tuple(f"decoder.{layer}.weight" for layer in (1, 8, 14, 20))
_NARROWEST = ("decoder.head.0.gamma", "decoder.norm_out.gamma")
_IMAGE_DIMENSIONS = 4
_COLORS = 3
# Decoders of other models with the same names and shapes: only the name of a file tells them.
_NAMESAKES = {
    "taehv": "HunyuanVideo",
    "taecvx": "CogVideoX",
    "taeos1_3": "Open-Sora 1.3",
}
_GROWS = re.compile(r"decoder\.\d+\.conv\.weight")
_WAN22_CHANNELS = 48
_RAW = re.compile("light.?tae", re.IGNORECASE)


class DecoderFacts(TypedDict):
    """Keys of a configuration's section."""

    kind: str
    latents: NotRequired[str]
    widths: NotRequired[list[int]]
    dim: NotRequired[int]


def facts_of(path: Path, shapes: Shapes) -> DecoderFacts | None:
    """What a file says of its decoder, as keys of a configuration; None where it is none.

    Other models' decoders are refused.
    """
    decoder = {name: shape for name, shape in shapes.items() if name.startswith("decoder.")}
    if decoder and all(TINY_VAE.signature.match(name) for name in decoder):
        _require_of_wan(path, decoder)
        _tell_namesake(path)
        widths = [decoder[name][0] for name in _WIDTHS if decoder.get(name)]
        # Its name is all that tells what it was trained on.
        latents = "raw" if _RAW.search(path.name) else "normalized"
        is_whole = len(widths) == len(_WIDTHS)
        facts = DecoderFacts(kind=TAEHV, latents=latents)
        return DecoderFacts(**facts, widths=widths) if is_whole else facts
    if any(name.startswith(("decoder.layers.", "layers.")) for name in shapes):
        raise _foreign(path, "Diffusers' AutoencoderTiny, for images")
    if not any(VAE.signature.match(name) for name in decoder):
        return None
    weights = [shape for name, shape in decoder.items() if re.search(r"conv\d?\.weight$", name)]
    if weights and all(len(shape) == _IMAGE_DIMENSIONS for shape in weights):
        raise _foreign(path, "an image model's VAE (its convolutions are 2-D)")
    if any(shapes.get(name, ())[:1] == (_WAN22_CHANNELS,) for name in _ENTRANCES):
        raise _foreign(path, "the VAE of Wan 2.2 5B (latents of 48 channels)")
    widths = [shapes[name][0] for name in _NARROWEST if shapes.get(name)]
    return DecoderFacts(kind=WAN, dim=widths[0]) if widths else DecoderFacts(kind=WAN)


def as_stored(wanted: Shapes, stored: Shapes) -> Shapes:
    """The wanted shapes; but what makes frames may be stored for more of them."""

    def shape(name: str) -> Shape:
        found, own = stored.get(name, ()), tuple(wanted[name])
        is_more = _GROWS.fullmatch(name) and found[1:] == own[1:] and found[0] % own[0] == 0
        return found if is_more else own

    return {name: shape(name) for name in wanted}


class LastRows(Weights):
    """Weights of which some are stored with more rows than are wanted."""

    def __init__(self, weights: Weights, wanted: Shapes) -> None:
        self._weights, self._wanted = weights, wanted

    @property
    def names(self) -> tuple[str, ...]:
        return self._weights.names

    def shape(self, name: str) -> Shape:
        return tuple(self._wanted[name])

    def dtype(self, name: str) -> torch.dtype:
        return self._weights.dtype(name)

    def load(self, name: str) -> torch.Tensor:
        return self._weights.load(name)[-self._wanted[name][0] :].contiguous()

    def digest(self) -> str:
        cut = {n: s for n, s in self._wanted.items() if tuple(s) != self._weights.shape(n)}
        return combined_digest(self._weights.digest(), cut) if cut else self._weights.digest()


def _require_of_wan(path: Path, decoder: Shapes) -> None:
    """Refuse decoders of the same family that are not for Wan 2.1's latents."""
    if _SUPER in decoder:
        raise _foreign(path, "a TAEHV decoder of the larger kind (decoder.0 has weights)")
    first, last = decoder.get(_FIRST, ()), decoder.get(_LAST, ())
    if len(first) != _IMAGE_DIMENSIONS or len(last) != 1:
        raise _foreign(path, "no whole TAEHV decoder: decoder.1.weight and decoder.22.bias tell it")
    channels = first[1]
    if channels != _LATENT_CHANNELS:
        model = _OF_CHANNELS.get(channels)
        whose = f", as of {model}" if model else ""
        raise _foreign(path, f"a TAEHV decoder for latents of {channels} channels{whose}")
    if last[0] != _COLORS:
        patch = math.isqrt(last[0] // _COLORS)
        raise _foreign(path, f"a TAEHV decoder that makes patches of {patch} x {patch} pixels")


def _tell_namesake(path: Path) -> None:
    model = _NAMESAKES.get(path.stem.lower())
    if model is not None:
        logger.warning(
            "%s: has the name of a decoder for %s, whose tensors look the same; if it is that one, "
            "the pictures will be wrong",
            path,
            model,
        )


def _foreign(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is {what}; {_FITS}")
