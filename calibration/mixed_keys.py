"""Keys as attention in int8 keeps them: turned to a position, then multiplied by a Hadamard matrix.

How large they get depends on where they stand, and videos go on for longer than a calibration. So
keys are looked at where other videos may have them, in turn all over the table of positions.
"""

import torch
from torch import Tensor

from longlive_trt import hadamard
from longlive_trt.configs import ModelConfig
from longlive_trt.configs.schema import ROPE_TABLE_FRAMES
from longlive_trt.export.models.transformer import rope_table, rotate

MIXED_KEYS = "mixed_k"
"""In the names of their ranges."""
_PLACES_A_LOOK = 2
# Multiples of it lie evenly in the unit interval, however many there are.
_GOLDEN = 0.6180339887498949


class MixedKeys:
    def __init__(self, config: ModelConfig) -> None:
        self._grid, self._tokens = config.token_grid, config.tokens_per_frame
        self._signs = torch.from_numpy(hadamard.signs(config.transformer.head_dim))
        self.begin()

    def begin(self) -> None:
        """Of each video: what one shows depends on no other."""
        self._looks = 0

    def of(self, k: Tensor) -> Tensor:
        """[B, S, heads, head_dim], not turned, into [B, places * S, heads, head_dim]."""
        frames = k.shape[1] // self._tokens
        return torch.cat([self._mixed(k, frames) for _ in range(_PLACES_A_LOOK)], dim=1)

    def _mixed(self, k: Tensor, frames: int) -> Tensor:
        self._looks += 1
        place = int(self._looks * _GOLDEN % 1 * (ROPE_TABLE_FRAMES - frames))
        positions = torch.arange(place, place + frames, device=k.device)
        turned = rotate(k, rope_table(positions, self._grid, k.shape[-1])).float()
        self._signs = self._signs.to(k.device)
        mixed: Tensor = turned @ self._signs * hadamard.unit(k.shape[-1])
        return mixed
