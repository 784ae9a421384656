"""The noise schedule, number by number."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from longlive_trt.configs import RolloutConfig
from longlive_trt.configs.schedule import Pass, Schedule, noise_tables

RECORDED = load_file(Path(__file__).parents[1] / "data" / "transformer" / "schedule.safetensors")


@pytest.mark.parametrize("shift", [5, 8])
def test_recorded_tables_bit_for_bit(shift: int) -> None:
    timesteps, sigmas = noise_tables(float(shift))
    assert timesteps.dtype == sigmas.dtype == np.float32
    assert np.array_equal(timesteps, RECORDED[f"sched.shift{shift}.timesteps"])
    assert np.array_equal(sigmas, RECORDED[f"sched.shift{shift}.sigmas"])


def test_the_shipped_passes() -> None:
    schedule = Schedule.of(RolloutConfig())
    assert schedule.passes == (
        Pass(1000.0, 1.0, 0.9375),
        Pass(937.5, 0.9375, 0.8333333134651184),
        Pass(833.3333129882812, 0.8333333134651184, 0.625),
        Pass(625.0, 0.625, 0.0),
    )
    assert schedule.clean == Pass(0.0, 0.0, 0.0)


def test_another_shift() -> None:
    passes = Schedule.of(RolloutConfig(timestep_shift=8.0)).passes
    assert [level.timestep for level in passes] == [
        1000.0,
        960.0,
        888.888916015625,
        727.2727661132812,
    ]
    assert passes[1].sigma == 0.9599999785423279


def test_the_smallest_level() -> None:
    (level,) = Schedule.of(RolloutConfig(steps=(1,))).passes
    assert level.sigma == pytest.approx(0.004980080, rel=1e-6)
    assert level.sigma_next == 0.0


def test_the_clean_pass_has_the_context_timestep() -> None:
    schedule = Schedule.of(RolloutConfig(context_timestep=37))
    assert schedule.clean == Pass(37.0, 0.0, 0.0)
