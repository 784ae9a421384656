"""The convolution's own source, thread by thread on a CPU, against what it means.

Barriers, turns, rings of stages, descriptors and the places of all results are those of the source;
what tensor cores and copy engine do is imagined (``tests/fakes/gpu/emulated.h``).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from longlive_trt.basics import Array
from longlive_trt.plugins.kernels import vae_conv
from longlive_trt.plugins.kernels.base import GraphKernel
from longlive_trt.plugins.kernels.conv_tiles import ConvTiles
from longlive_trt.plugins.kernels.registry import KERNELS
from tests.fakes.emulation import COMPILER, EmulatedGpu, aligned, emulated, tensor_map
from tests.plugins.kernels.arrays import computed, error, random_array
from tests.plugins.kernels.test_vae_conv import (
    ENDS,
    FLOAT16,
    NARROW,
    ZEROS,
    activations,
    conv_inputs,
    flags_of,
    output_types,
    rounded,
)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmulatedGpu:
    gpu = emulated(tmp_path, monkeypatch, multiprocessors=2)
    monkeypatch.setattr(vae_conv, "tensor_map", tensor_map)
    monkeypatch.setattr(vae_conv, "_multiprocessors", lambda _place: gpu.multiprocessors)
    return gpu


def check(
    gpu: EmulatedGpu,
    end: str,
    kind: str,
    channels: tuple[int, int],
    size: tuple[int, int],
    frames: int,
    *,
    batch: int = 1,
    history: bool = True,
) -> None:
    flags = flags_of(end, kind, history=history, batch=batch)
    kernel = KERNELS["vae_conv"](**flags)
    inputs, _ = conv_inputs(kind, frames, size, channels, flags)
    run_and_compare(gpu, kernel, inputs, output_types(kind, flags))


def run_and_compare(
    gpu: EmulatedGpu, kernel: GraphKernel, inputs: Sequence[Array], types: Sequence[np.dtype[Any]]
) -> None:
    wanted = computed(kernel, inputs, *types)
    outputs = [aligned(np.full(one.shape, 77, one.dtype)) for one in wanted]
    gpu.run(kernel, [aligned(array) for array in inputs], outputs)
    for got, expected in zip(outputs, wanted, strict=True):
        allowed = 4e-4 if expected.dtype == FLOAT16 else 3e-3
        assert error(got.astype(np.float32), expected.astype(np.float32)) <= allowed


def test_warpgroups_take_turns(gpu: EmulatedGpu) -> None:
    """Eight tiles on two multiprocessors, so that each warpgroup has two of them."""
    check(gpu, "both", "fp8", (96, 96), (9, 17), 2, batch=2)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("channels", [(96, 96), (192, 192), (192, 96), (96, 192)])
def test_ends_and_widths(gpu: EmulatedGpu, channels: tuple[int, int], end: str, kind: str) -> None:
    check(gpu, end, kind, channels, (9, 11), 3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("kind", ["int8", "shifted"])
def test_a_lone_frame(gpu: EmulatedGpu, kind: str, history: bool) -> None:
    check(gpu, "active", kind, (96, 192), (17, 9), 1, batch=2, history=history)


@pytest.mark.exhaustive
def test_zeros_before_a_video_and_around_pictures(gpu: EmulatedGpu) -> None:
    check(gpu, "both", "shifted", (96, 96), (10, 17), 3, history=False)
    check(gpu, "sum", "shifted", (96, 96), (1, 9), 2, history=False)


@pytest.mark.exhaustive
@pytest.mark.parametrize("patch_rows", [1, 2])
@pytest.mark.parametrize("end", ["active", "both"])
def test_two_blocks_share_a_norm(
    gpu: EmulatedGpu, end: str, patch_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = ConvTiles(96, 384, patch_rows, norm=True)
    monkeypatch.setattr(vae_conv, "tiles_for", lambda *_sizes, **_norm: tiles)
    check(gpu, end, "fp8", (96, 384), (9, 17), 3)


@pytest.mark.exhaustive
def test_chunks_of_input_channels(gpu: EmulatedGpu) -> None:
    check(gpu, "second sum", "fp8", (384, 384), (9, 9), 2)


@pytest.mark.parametrize(
    ("spread", "residual"),
    [(False, True), pytest.param(True, False, marks=pytest.mark.exhaustive)],
)
def test_inputs_are_rounded(gpu: EmulatedGpu, spread: bool, residual: bool) -> None:
    cases = (("fp8", 1, True), ("int8", 3, True), ("fp8", 1, False), ("shifted", 1, False))
    for kind, frames, history in cases:
        flags = {"residual": residual, "history": history, "total": True, "spread": spread}
        zero = ZEROS["output_zero"] if kind == "shifted" else 0
        kernel = KERNELS["vae_quantize"](scale=0.02, zero=zero, batch=2, bias=True, **flags)
        x = (2 * frames, 3, 4, 4 * 40) if spread else (2 * frames, 4, 6, 40)
        inputs = [random_array(x, "float16", 1)] * (2 if residual else 1)
        inputs += [random_array((40,), "float16", seed) for seed in (3, 4)]
        if history:
            inputs.append(rounded(activations((2, 2, 4, 6, 40), 5), kind)[0])
        run_and_compare(gpu, kernel, inputs, [FLOAT16, NARROW[kind], NARROW[kind]])
