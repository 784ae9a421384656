"""Sources of the tiny decoder's passes, thread by thread on a CPU, against what they mean."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from longlive_trt.basics import Array
from longlive_trt.plugins.kernels import vae_colors
from longlive_trt.plugins.kernels.base import GraphKernel
from longlive_trt.plugins.kernels.registry import KERNELS
from tests.fakes.emulation import COMPILER, EmulatedGpu, aligned, emulated
from tests.plugins.kernels.arrays import ROUNDING, computed, error
from tests.plugins.kernels.test_vae import SPREADS, STACKS, spread_inputs, stack_inputs
from tests.plugins.kernels.test_vae_colors import both, check, colors_inputs

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmulatedGpu:
    return emulated(tmp_path, monkeypatch)


def ran(
    gpu: EmulatedGpu, kernel: GraphKernel, inputs: list[Array], *types: np.dtype[Any]
) -> list[Array]:
    wanted = computed(kernel, inputs, *types)
    outputs = [aligned(np.full(one.shape, 77, one.dtype)) for one in wanted]
    gpu.run(kernel, [aligned(array) for array in inputs], outputs)
    return outputs


@pytest.mark.parametrize(
    "case",
    [
        "between blocks",
        *(
            pytest.param(case, marks=pytest.mark.exhaustive)
            for case in ("entrance", "inside a block", "last block", "second block", "head")
        ),
    ],
)
def test_stacks(gpu: EmulatedGpu, case: str) -> None:
    flags = {**STACKS[case], "batch": 2}
    kernel, inputs = KERNELS["vae_stack"](**flags), stack_inputs(3, (3, 5), 40, "float16", flags)
    found = ran(gpu, kernel, inputs)
    for one, wanted in zip(found, computed(kernel, inputs), strict=True):
        assert error(one.astype(np.float32), wanted.astype(np.float32)) <= ROUNDING["float16"]


@pytest.mark.parametrize(
    "case",
    [
        case if case == "of the tiny one's" else pytest.param(case, marks=pytest.mark.exhaustive)
        for case in SPREADS
    ],
)
def test_spread_stacks(gpu: EmulatedGpu, case: str) -> None:
    flags = {**SPREADS[case], "batch": 2, "spread": True}
    inputs, _ = spread_inputs(4, (6, 4), 24, "float16", flags)
    kernel = KERNELS["vae_stack"](**flags)
    found = ran(gpu, kernel, inputs)
    for one, wanted in zip(found, computed(kernel, inputs), strict=True):
        assert error(one.astype(np.float32), wanted.astype(np.float32)) <= ROUNDING["float16"]


@pytest.mark.parametrize(
    ("frames", "size", "channels", "flags"),
    [
        # Two strips of columns, three of rows, the last one short; channels of two quads.
        (2, (10, 34), 40, {"frames_of_place": 2, "skipped": 1}),
        pytest.param(
            *(2, (2, 2), 8, {"batch": 2, "frames_of_place": 2}), marks=pytest.mark.exhaustive
        ),
        pytest.param(*(1, (8, 62), 64, {}), marks=pytest.mark.exhaustive),
        # More quads than are unrolled.
        pytest.param(*(1, (4, 6), 136, {}), marks=pytest.mark.exhaustive),
    ],
)
def test_pictures(
    gpu: EmulatedGpu,
    monkeypatch: pytest.MonkeyPatch,
    frames: int,
    size: tuple[int, int],
    channels: int,
    flags: dict[str, Any],
) -> None:
    monkeypatch.setattr(vae_colors, "_ROWS", 4)
    inputs, pixels = colors_inputs(frames, size, channels, "float16", flags)
    check(both(partial(ran, gpu), flags, inputs), inputs, pixels, flags)
