"""The noise schedule of shifted flow matching, in float32 exactly as upstream tabulates it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from longlive_trt.configs.schema import RolloutConfig

TRAINING_STEPS = 1000

Table = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pass:
    """One denoising pass: from which noise level, and to which its result is noised again."""

    timestep: float
    sigma: float
    sigma_next: float


@dataclass(frozen=True)
class Schedule:
    passes: tuple[Pass, ...]
    clean: Pass
    """The pass whose keys and values are committed to the cache."""

    @classmethod
    def of(cls, rollout: RolloutConfig, steps: Sequence[int] | None = None) -> "Schedule":
        """``steps``: others than the rollout's own."""
        timesteps, sigmas = noise_tables(rollout.timestep_shift)
        levels = [TRAINING_STEPS - nominal for nominal in steps or rollout.steps]
        nexts = [float(sigmas[level]) for level in levels[1:]] + [0.0]
        passes = tuple(
            Pass(float(timesteps[level]), float(sigmas[level]), sigma_next)
            for level, sigma_next in zip(levels, nexts, strict=True)
        )
        return cls(passes, Pass(float(rollout.context_timestep), 0.0, 0.0))


@lru_cache
def noise_tables(shift: float) -> tuple[Table, Table]:
    """Timesteps and sigmas by index, from pure noise (index 0) down."""
    u = _linspace_one_to_zero(TRAINING_STEPS + 1)[:-1]
    shift32 = np.float32(shift)
    sigmas = shift32 * u / (np.float32(1) + (shift32 - np.float32(1)) * u)
    return sigmas * np.float32(TRAINING_STEPS), sigmas


def _linspace_one_to_zero(count: int) -> Table:
    """torch.linspace(1, 0, count): one fused multiply-add from the nearer end."""
    index = np.arange(count, dtype=np.float64)
    step = np.float64(np.float32(-1.0 / (count - 1)))
    from_start, from_end = 1.0 + step * index, -step * (count - 1 - index)
    return np.where(index < count // 2, from_start, from_end).astype(np.float32)
