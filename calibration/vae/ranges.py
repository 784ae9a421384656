"""What the VAE's convolutions met in a calibration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longlive_trt.calibration.modelopt import LayerRanges
from longlive_trt.errors import UsageError


@dataclass(frozen=True)
class VaeRanges:
    """Of every convolution, whatever is quantized in the end."""

    checkpoint: str
    layers: Mapping[str, LayerRanges]

    def require_fit(self, names: Sequence[str], checkpoint: str) -> None:
        if self.checkpoint != checkpoint:
            raise UsageError(
                f"the calibration's ranges of the VAE are of another checkpoint (digest "
                f"{self.checkpoint[:12]}, this one has {checkpoint[:12]}); calibrate again"
            )
        missing = set(names) - self.layers.keys()
        if missing:
            raise UsageError(
                f"the calibration has no ranges of the VAE's {min(missing)}; calibrate again"
            )
