"""Decoders with quantized convolutions as graphs for a GPU, on a CPU, against torch's."""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from longlive_trt.calibration.recipes import FP8, INT8, VAE_EXCLUDED, WIDER_THAN
from longlive_trt.calibration.vae.decoder import load_quantized_vae, select_convolutions
from longlive_trt.configs import ModelConfig, VaeConfig
from longlive_trt.configs.schema import LatentConfig
from longlive_trt.engines.graphs.kernels import kernels_of
from longlive_trt.engines.graphs.vae import build_vae_graphs
from longlive_trt.engines.graphs.vae_convolutions import steps_of_silu
from longlive_trt.exports import ExportRecord, GraphInfo, Quantization
from longlive_trt.precision import PRECISIONS
from tests.engines.graphs.written import specs_in
from tests.fakes.decoders import (
    StateWeights,
    quantized_weights,
    seeded_decoder,
    seen_ranges,
    stored,
    take_steps_of_silu,
)
from tests.fakes.streams import DecoderStream, make_latents, relative

FP16 = PRECISIONS["fp16"]
FORMATS = {"fp8": FP8, "int8": INT8}
ALL_BLOCKS = tuple(pattern for pattern in VAE_EXCLUDED if not pattern.startswith(WIDER_THAN))
LATENT = LatentConfig(height=4, width=4)


def model(name: str, *multipliers: int, dim: int = 96) -> ModelConfig:
    vae = VaeConfig(dim=dim, multipliers=multipliers, temporal_upsample=(True,), res_blocks=1)
    return ModelConfig(name=name, latent=LATENT, vae=vae)


WIDE = model("wide", 1, 2)
# 288 channels, which no kernel takes the norm of; then 144 into 96, which none convolves.
MIXED = model("mixed", 1, 3)
NARROW = model("narrow", 1, 2, dim=16)
# Where two programs differ in the last bit, a few values in a thousand are rounded the other way,
# by a step that is larger in FP8.
SAME_ROUNDING = {"fp8": 3.5e-2, "int8": 1.5e-2}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """By model, format and what is left out: an export, and the decoder that it means."""
    made: dict[Any, Any] = {}

    def export(
        config: ModelConfig, format_: str = "fp8", exclude: tuple[str, ...] = VAE_EXCLUDED
    ) -> Any:
        key = (config.name, format_, exclude)
        if key not in made:
            assert config.vae is not None
            plain = seeded_decoder(config.vae)
            ranges = seen_ranges(plain, torch.from_numpy(make_latents(config, 3)).float())
            chosen = select_convolutions(config.vae, exclude)
            weights = quantized_weights(plain, ranges, FORMATS[format_], chosen)
            folder = stored(weights, tmp_path_factory.mktemp("quantized") / "vae")
            decoder = load_quantized_vae(
                config.vae, StateWeights(plain), ranges, FORMATS[format_], exclude
            )
            made[key] = (folder, decoder)
        return made[key]

    return export


def kernels(folder: Path, graph: str = "vae_next") -> Counter[str]:
    return Counter(spec["kernel"] for spec in specs_in(folder / f"{graph}.onnx"))


def caches(folder: Path, graph: str = "vae_next") -> Counter[str]:
    inputs = ir.load(folder / f"{graph}.onnx").graph.inputs
    return Counter(value.dtype.name for value in inputs if value.name.startswith("cache."))


def check_stream(folder: Path, config: ModelConfig, decoder: Any, allowed: float) -> None:
    latents = make_latents(config, 4)
    parts = list(DecoderStream(folder).decode_all(latents, [1, 1, 2]))
    frames = np.concatenate([frames for frames, _ in parts], axis=1)
    expected = decoder.decode(torch.from_numpy(latents.astype(np.float32))).clamp(-1, 1).numpy()
    assert frames.shape == expected.shape
    assert relative(frames, expected) <= allowed


@pytest.mark.parametrize("format_", ["fp8", pytest.param("int8", marks=pytest.mark.exhaustive)])
def test_a_stream_is_the_quantized_decoder_s(
    exported: Callable[..., Any], format_: str, tmp_path: Path
) -> None:
    folder, decoder = exported(WIDE, format_)
    build_vae_graphs(WIDE, folder, FP16, tmp_path)
    check_stream(tmp_path, WIDE, take_steps_of_silu(decoder), SAME_ROUNDING[format_])


@pytest.mark.exhaustive
def test_int8_is_closer_to_the_decoder_than_its_export(
    exported: Callable[..., Any], tmp_path: Path
) -> None:
    """Steps that leave out what SiLU never gives are half as large."""
    assert WIDE.vae is not None
    folder, decoder = exported(WIDE, "int8", (*VAE_EXCLUDED, "decoder.middle.*"))
    build_vae_graphs(WIDE, folder, FP16, tmp_path)
    latents = make_latents(WIDE, 2)
    frames = np.concatenate([f for f, _ in DecoderStream(tmp_path).decode_all(latents, [1, 1])], 1)
    plain, exact = (
        one.decode(torch.from_numpy(latents.astype(np.float32))).clamp(-1, 1).numpy()
        for one in (decoder, seeded_decoder(WIDE.vae))
    )
    assert relative(frames, exact) <= 0.75 * relative(plain, exact)


def test_steps_of_silu_leave_out_what_it_never_gives() -> None:
    steps = steps_of_silu(0.05)
    least, largest = ((number - steps.zero) * steps.size for number in (-127, 127))
    assert least == pytest.approx(-0.2785, abs=steps.size / 2)
    assert largest == pytest.approx(127 * 0.05, abs=steps.size / 2)
    assert steps.size < 0.53 * 0.05


def test_what_follows_a_convolution_is_computed_with_it(
    exported: Callable[..., Any], tmp_path: Path
) -> None:
    folder, _ = exported(WIDE)
    build_vae_graphs(WIDE, folder, FP16, tmp_path)
    nodes = specs_in(tmp_path / "vae_next.onnx")
    convolutions = [node for node in nodes if node["kernel"] == "vae_conv"]
    # The middle's two blocks, around attention; two of 192 channels, and two of 96.
    ends = [(node["total"], "output_scale" in node) for node in convolutions]
    inner, end, last = (False, True), (True, True), (True, False)
    assert ends == [inner, last] + [inner, end] * 2 + [inner, last] + [inner, end, inner, last]
    # By itself is rounded what the middle begins with, and what attention and a doubling leave.
    assert kernels(tmp_path)["vae_quantize"] == 3
    assert caches(tmp_path) == {"FLOAT8E4M3FN": 12, "FLOAT16": 3}


def test_left_out_convolutions_stay_in_sixteen_bits(
    exported: Callable[..., Any], tmp_path: Path
) -> None:
    """Half of a block, the other half of the next, and all that is wide."""
    exclude = (*VAE_EXCLUDED, "decoder.middle.*", "decoder.upsamples.[01].*")
    exclude = (*exclude, "*.3.residual.2", "*.4.residual.6")
    folder, decoder = exported(WIDE, "fp8", exclude)
    build_vae_graphs(WIDE, folder, FP16, tmp_path)
    assert kernels(tmp_path)["vae_conv"] == 2
    assert caches(tmp_path) == {"FLOAT8E4M3FN": 2, "FLOAT16": 13}
    check_stream(tmp_path, WIDE, decoder, SAME_ROUNDING["fp8"])


def test_what_has_no_kernel_keeps_its_weights_in_sixteen_bits(
    exported: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, decoder = exported(NARROW)
    with caplog.at_level(logging.WARNING):
        build_vae_graphs(NARROW, folder, FP16, tmp_path)
    (message,) = caplog.messages
    assert message == (
        "12 of the decoder's 12 quantized convolutions run in fp16, with their 8-bit weights: our "
        "kernel takes multiples of 96 channels and 3x3x3 taps, and "
        "decoder.middle.0.residual.2 is [32, 32, 3, 3, 3]"
    )
    assert not kernels(tmp_path)["vae_conv"]
    assert caches(tmp_path).keys() == {"FLOAT16"}
    # Torch rounds what they read, too.
    check_stream(tmp_path, NARROW, decoder, 1e-1)


@pytest.mark.exhaustive
def test_widths_without_a_kernel_stand_beside_others(
    exported: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, decoder = exported(MIXED, "fp8", ALL_BLOCKS)
    build_vae_graphs(MIXED, folder, FP16, tmp_path)
    assert caplog.messages[0].startswith("1 of the decoder's 12 quantized convolutions run in fp16")
    assert (kernels(tmp_path)["vae_conv"], kernels(tmp_path)["vae_quantize"]) == (11, 9)
    check_stream(tmp_path, MIXED, decoder, 3e-2)


def test_other_gpus_convolve_in_sixteen_bits(
    exported: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, decoder = exported(WIDE)
    with caplog.at_level(logging.WARNING):
        build_vae_graphs(WIDE, folder, FP16, tmp_path, hopper=False)
    (message,) = caplog.messages
    assert message.startswith("12 of the decoder's 12 quantized convolutions run in fp16")
    assert message.endswith("our kernel for them needs sm90")
    assert not kernels(tmp_path)["vae_conv"]
    check_stream(tmp_path, WIDE, decoder, 1e-1)


@pytest.mark.exhaustive
def test_all_may_be_quantized(exported: Callable[..., Any], tmp_path: Path) -> None:
    """Those of one frame or pixel have 8-bit weights, and are multiplied in sixteen."""
    folder, decoder = exported(MIXED, "int8", ("conv2",))
    build_vae_graphs(MIXED, folder, FP16, tmp_path)
    check_stream(tmp_path, MIXED, decoder, 1e-1)


def test_the_kernels_of_a_graph_are_known_before_it_is_written(
    exported: Callable[..., Any], tmp_path: Path
) -> None:
    folder, _ = exported(WIDE)
    build_vae_graphs(WIDE, folder, FP16, tmp_path)
    graphs = {name: GraphInfo((), ()) for name in ("vae_first", "vae_next")}
    quantization = Quantization("fp8", "fp8", "", vae="fp8")
    record = ExportRecord("fp32", WIDE, {}, graphs, {}, {}, quantization)
    assert kernels_of(record) == set(kernels(tmp_path)) | set(kernels(tmp_path, "vae_first"))


def test_weights_take_a_byte(exported: Callable[..., Any], tmp_path: Path) -> None:
    folder, _ = exported(WIDE)
    sizes = []
    for hopper in (True, False):
        (tmp_path / str(hopper)).mkdir()
        build_vae_graphs(WIDE, folder, FP16, tmp_path / str(hopper), hopper=hopper)
        sizes.append((tmp_path / str(hopper) / "vae.weights").stat().st_size)
    assert sizes[0] < 0.6 * sizes[1]
