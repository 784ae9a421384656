"""The kinds of decoders, and the pictures that each makes."""

from torch import Tensor

from longlive_trt.configs import DecoderConfig, TaehvConfig
from longlive_trt.export.models.taehv import TaehvDecoder
from longlive_trt.export.models.vae import VaeDecoder, in_eight_bits, to_pixels

Decoder = VaeDecoder | TaehvDecoder


def decoder_of(config: DecoderConfig) -> Decoder:
    return TaehvDecoder(config) if isinstance(config, TaehvConfig) else VaeDecoder(config)


def presented(frames: Tensor, config: DecoderConfig) -> tuple[Tensor, Tensor]:
    """Raw frames in the decoder's own range, and as 8-bit pictures [B, n, H, W, 3]."""
    clamped = frames.float().clamp(*config.frame_range)
    is_unit = isinstance(config, TaehvConfig)
    return clamped, in_eight_bits(clamped) if is_unit else to_pixels(clamped)
