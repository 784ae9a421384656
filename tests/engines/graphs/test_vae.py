"""The VAE's graphs for a GPU, computed with numpy on a CPU, against the torch decoder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from longlive_trt.configs import ModelConfig, VaeConfig
from longlive_trt.configs.schema import LatentConfig
from longlive_trt.contract import VAE, weights_file
from longlive_trt.engines.graphs.kernels import kernels_of
from longlive_trt.engines.graphs.vae import build_vae_graphs
from longlive_trt.engines.graphs.vae_convolutions import folded_taps
from longlive_trt.engines.renewal import renewable
from longlive_trt.errors import UsageError
from longlive_trt.export.models.vae import VaeDecoder, to_pixels
from longlive_trt.exports import ExportRecord, GraphInfo
from longlive_trt.plugins.kernels.vae_tensors import gathered
from longlive_trt.precision import PRECISIONS
from tests.engines.graphs.written import specs_in
from tests.fakes.decoders import StateWeights, seeded_decoder, stored
from tests.fakes.streams import DecoderStream, make_latents, relative

FP16 = PRECISIONS["fp16"]
TOLERANCE = 2e-3
LATENT = LatentConfig(height=4, width=6)
SMALL = ModelConfig(name="small", latent=LATENT, vae=VaeConfig(dim=16))


@pytest.fixture(scope="module")
def decoder() -> VaeDecoder:
    assert SMALL.vae is not None
    return seeded_decoder(SMALL.vae)


@pytest.fixture(scope="module")
def export_folder(decoder: VaeDecoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(StateWeights(decoder), tmp_path_factory.mktemp("export") / "vae")


@pytest.fixture(scope="module")
def built(export_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    build_vae_graphs(SMALL, export_folder, FP16, folder)
    return folder


def check_stream(folder: Path, config: ModelConfig, model: VaeDecoder) -> None:
    latents = make_latents(config, 6)
    parts = list(DecoderStream(folder).decode_all(latents, [1, 2, 3]))
    expected = model.decode(torch.from_numpy(latents.astype(np.float32))).clamp(-1, 1)
    frames, pixels = (np.concatenate(group, axis=1) for group in zip(*parts, strict=True))
    assert frames.shape == tuple(expected.shape)
    assert relative(frames, expected.numpy()) <= TOLERANCE
    steps = np.abs(pixels.astype(int) - to_pixels(expected).numpy().astype(int))
    assert steps.max() <= 1
    # Saturated pictures would hide errors.
    assert expected.abs().lt(1).float().mean() > 0.5


def test_the_kernels_of_a_graph_are_known_before_it_is_written(built: Path) -> None:
    info = GraphInfo((), ())
    for graph in ("vae_first", "vae_next"):
        record = ExportRecord("fp32", SMALL, {}, {graph: info}, {}, {})
        assert kernels_of(record) == {spec["kernel"] for spec in specs_in(built / f"{graph}.onnx")}


def test_every_history_is_renewed_in_place(built: Path) -> None:
    model = ir.load(built / "vae_next.onnx")
    histories = {str(value.name) for value in model.graph.inputs} - {"latents"}
    assert len(histories) > 10 and renewable(model) == histories


def test_a_stream_is_the_decoder_s(built: Path, decoder: VaeDecoder) -> None:
    check_stream(built, SMALL, decoder)


def test_a_stream_of_the_tiny_model_is_the_decoder_s(
    tiny_export: Path, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    assert tiny_config.vae is not None
    build_vae_graphs(tiny_config, tiny_export, FP16, tmp_path)
    model = VaeDecoder(tiny_config.vae).eval().requires_grad_(False)
    exported = ir.load(tiny_export / "vae_next.onnx").graph.initializers
    model.load_state_dict(
        {
            name: torch.from_numpy(exported[f"vae.{name}"].const_value.numpy().copy())
            for name in model.state_dict()
        }
    )
    check_stream(tmp_path, tiny_config, model)


def test_a_wide_decoder_ends_in_a_plain_convolution(tmp_path: Path) -> None:
    """One that the head's own kernel does not take."""
    vae = VaeConfig(dim=112, multipliers=(1, 1), temporal_upsample=(True,), res_blocks=1)
    config, model = ModelConfig(name="wide", latent=LATENT, vae=vae), seeded_decoder(vae)
    build_vae_graphs(config, stored(StateWeights(model), tmp_path / "export"), FP16, tmp_path)
    check_stream(tmp_path, config, model)


def test_grouping_of_latent_frames_does_not_matter(built: Path) -> None:
    latents = make_latents(SMALL, 4)
    together, apart = (
        np.concatenate(
            [frames for frames, _ in DecoderStream(built).decode_all(latents, counts)], axis=1
        )
        for counts in ([1, 3], [1, 1, 1, 1])
    )
    assert relative(together, apart) <= 1e-5


def test_rows_of_a_batch_are_independent(export_folder: Path, built: Path, tmp_path: Path) -> None:
    build_vae_graphs(SMALL, export_folder, FP16, tmp_path, batch=2)
    latents = make_latents(SMALL, 3, batch=2)
    both = [frames for frames, _ in DecoderStream(tmp_path).decode_all(latents, [1, 2])]
    for row in range(2):
        alone = DecoderStream(built).decode_all(latents[row : row + 1], [1, 2])
        for together, (frames, _) in zip(both, alone, strict=True):
            assert relative(together[row : row + 1], frames) <= 1e-5


def test_caches_are_those_of_the_decoder_with_channels_last(
    built: Path, decoder: VaeDecoder
) -> None:
    wanted = [
        (f"cache.{index}", [1, frames, height, width, channels])
        for index, (channels, frames, height, width) in enumerate(
            decoder.cache_shapes(LATENT.height, LATENT.width)
        )
    ]
    stream = DecoderStream(built)
    assert [(i.name, i.shape) for i in stream.following.get_inputs()[1:]] == wanted
    for graph in (stream.first, stream.following):
        outputs = [(o.name.replace("_next", ""), o.shape) for o in graph.get_outputs()[2:]]
        assert outputs == wanted


def test_sizes_are_named_as_in_the_exported_graphs(built: Path) -> None:
    """The runtime reserves memory by these names."""
    stream = DecoderStream(built)
    assert stream.following.get_inputs()[0].shape == [1, "latent_frames", 16, 4, 6]
    assert [(o.name, o.shape) for o in stream.following.get_outputs()[:2]] == [
        ("frames", [1, "4*latent_frames", 3, 32, 48]),
        ("pixels", [1, "4*latent_frames", 32, 48, 3]),
    ]
    assert [(o.name, o.shape) for o in stream.first.get_outputs()[:2]] == [
        ("frames", [1, 1, 3, 32, 48]),
        ("pixels", [1, 1, 32, 48, 3]),
    ]


def test_both_graphs_share_their_weights(built: Path, decoder: VaeDecoder) -> None:
    names = {path.name for path in built.iterdir()}
    assert names == {"vae_first.onnx", "vae_next.onnx", weights_file(VAE)}
    # A doubling convolution has 16 taps in place of 9.
    doubling = [key for key in decoder.state_dict() if key.endswith("resample.1.weight")]
    parameters = sum(value.numel() for value in decoder.state_dict().values())
    parameters += sum(decoder.state_dict()[key].numel() * 7 // 9 for key in doubling)
    assert len(doubling) == 3
    assert 0.9 < (built / weights_file(VAE)).stat().st_size / (2 * parameters) <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)])
def test_a_folded_convolution_is_that_of_the_doubled_image(size: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    small = torch.randn(2, 5, *size, generator=random)
    kernel = torch.randn(3, 5, 3, 3, generator=random)
    folded = torch.from_numpy(folded_taps(kernel.numpy()))
    assert folded.shape == (12, 5, 2, 2)
    spread = torch.conv2d(small, folded, padding=1).permute(0, 2, 3, 1).contiguous()
    doubled = torch.nn.functional.interpolate(small, scale_factor=2.0, mode="nearest")
    wanted = torch.conv2d(doubled, kernel, padding=1).permute(0, 2, 3, 1)
    np.testing.assert_allclose(gathered(spread.numpy()), wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_a_folded_convolution_keeps_its_gain_in_half_precision() -> None:
    """What falls on one pixel is added before it is rounded, so nothing is rounded twice."""
    kernel = np.random.default_rng(0).standard_normal((3, 5, 3, 3)).astype(np.float16)
    folded = folded_taps(kernel)
    assert folded.dtype == np.float32
    total = kernel.astype(np.float64).sum(axis=(2, 3))
    for four in folded.astype(np.float16).reshape(4, 3, 5, 2, 2):
        assert relative(four.astype(np.float64).sum(axis=(2, 3)), total) < 5e-4


@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_precisions_without_convolutions_are_refused(
    name: str, export_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=rf"cannot be {name}.*build them with fp16"):
        build_vae_graphs(SMALL, export_folder, PRECISIONS[name], tmp_path)
    assert not list(tmp_path.iterdir())


def test_configurations_that_do_not_fit_are_refused(export_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="small has no VAE"):
        build_vae_graphs(replace(SMALL, vae=None), export_folder, FP16, tmp_path)
    with pytest.raises(UsageError, match=r"layers of 12 channels.*multiples of 8"):
        odd = replace(SMALL, vae=VaeConfig(dim=12))
        build_vae_graphs(odd, export_folder, FP16, tmp_path)
