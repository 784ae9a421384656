"""The quantized key/value cache: one scale for each head."""

from collections.abc import Mapping

from torch import Tensor

from longlive_trt.calibration.calibration_file import Calibration
from longlive_trt.calibration.layers import QuantizedAttention
from longlive_trt.calibration.mixed_keys import MIXED_KEYS
from longlive_trt.calibration.quantization import rounded, scale_of
from longlive_trt.calibration.recipes import FP8, INT8, Extras, Format
from longlive_trt.configs import ModelConfig
from longlive_trt.export.models.rollout import ReferenceRollout
from longlive_trt.export.models.transformer import Transformer


def cache_scales(calibration: Calibration, block: int, extras: Extras) -> dict[str, Tensor]:
    """[heads] for keys and for values, of what is kept or attended to in eight bits."""
    centered = extras.attention is not None
    v_amax = calibration.value_amax(block) if centered else calibration.head_amax(block, "v")
    part = MIXED_KEYS if extras.attention == INT8 else "k"
    amax = {"k": calibration.head_amax(block, part), "v": v_amax}
    return {part: scale_of(amax[part], format_) for part, format_ in extras.scaled.items()}


class QuantizedCacheRollout(ReferenceRollout):
    """What a rollout makes of a quantized cache: a pass sees its own keys unrounded."""

    def __init__(
        self,
        model: Transformer,
        config: ModelConfig,
        batch: int,
        total_frames: int,
        calibration: Calibration,
        format_: Format,
    ) -> None:
        super().__init__(model, config, batch, total_frames)
        self._format = format_
        is_fp8 = isinstance(model.attention_format, QuantizedAttention)
        extras = Extras(cache=format_, attention=FP8 if is_fp8 else None)
        self._scales: list[Mapping[str, Tensor]] = [
            cache_scales(calibration, block, extras) for block in range(config.transformer.layers)
        ]

    def forward(
        self, latents: Tensor, start: int, timestep: float, *, rewrite_sink: bool = False
    ) -> Tensor:
        flow = super().forward(latents, start, timestep, rewrite_sink=rewrite_sink)
        for layer, scales in enumerate(self._scales):
            self.cache.keys[layer] = self._rounded(self.cache.keys[layer], scales["k"])
            self.cache.values[layer] = self._rounded(self.cache.values[layer], scales["v"])
        return flow

    def _rounded(self, cached: Tensor, scale: Tensor) -> Tensor:
        return rounded(cached, scale.to(cached.device)[:, None], self._format)


def cache_bytes(config: ModelConfig, bytes_per_value: float) -> int:
    """Of all layers' keys and values in the frames that the runtime keeps, for one video."""
    rollout, transformer = config.rollout, config.transformer
    frames = rollout.window_frames - rollout.frames_per_block
    values = 2 * transformer.layers * frames * config.tokens_per_frame * transformer.dim
    return round(values * bytes_per_value)
