"""The tiny decoder's graphs for a GPU, computed with numpy on a CPU, against the torch decoder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from longlive_trt.configs import ModelConfig, TaehvConfig
from longlive_trt.configs.schema import LatentConfig, TransformerConfig
from longlive_trt.contract import KERNEL_DOMAIN, VAE, VAE_GRAPHS, weights_file
from longlive_trt.engines.graphs.kernels import kernels_of
from longlive_trt.engines.graphs.taehv import build_taehv_graphs
from longlive_trt.engines.renewal import renewable
from longlive_trt.errors import UsageError
from longlive_trt.export.models.decoders import presented
from longlive_trt.export.models.taehv import TaehvDecoder
from longlive_trt.exports import ExportRecord, GraphInfo
from longlive_trt.precision import PRECISIONS
from tests.engines.graphs.written import specs_in
from tests.export.models.test_taehv import random_decoder
from tests.fakes.decoders import StateWeights, stored
from tests.fakes.streams import DecoderStream, make_latents, relative

FP16 = PRECISIONS["fp16"]
TOLERANCE = 2e-3
SIZE = (3, 5)
WIDTHS = (24, 16, 12, 12)
"""The last two are filled up with zeros."""


def config_of(model: TaehvDecoder, size: tuple[int, int] = SIZE) -> ModelConfig:
    latent = LatentConfig(height=size[0], width=size[1])
    any_size = TransformerConfig(patch=(1, 1, 1), channels=model.config.channels)
    return ModelConfig(name="small", latent=latent, transformer=any_size, vae=model.config)


def rounded_decoder(**changes: Any) -> TaehvDecoder:
    """Rounded before, so that only the arithmetic differs."""
    model = random_decoder(7, **{"widths": WIDTHS, **changes})
    for value in model.state_dict().values():
        value.copy_(value.half())
    return model


def written(
    model: TaehvDecoder, folder: Path, size: tuple[int, int] = SIZE, batch: int = 1
) -> Path:
    out = folder / "out"
    out.mkdir()
    exported = stored(StateWeights(model), folder / "export")
    build_taehv_graphs(config_of(model, size), VAE, exported, FP16, out, batch=batch, latents=FP16)
    return out


@pytest.fixture(scope="module")
def decoder() -> TaehvDecoder:
    return rounded_decoder()


@pytest.fixture(scope="module")
def built(decoder: TaehvDecoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(decoder, tmp_path_factory.mktemp("taehv"))


def check_stream(
    folder: Path, model: TaehvDecoder, latents: Any, counts: list[int], size: tuple[int, int] = SIZE
) -> None:
    parts = list(DecoderStream(folder).decode_all(latents, counts))
    frames, pixels = (np.concatenate(group, axis=1) for group in zip(*parts, strict=True))
    raw = model.decode(torch.from_numpy(latents.astype(np.float32)))
    expected, pictures = presented(raw, model.config)
    assert frames.shape == tuple(expected.shape) and pixels.shape == tuple(pictures.shape)
    assert frames.shape[3:] == (8 * size[0], 8 * size[1])
    assert relative(frames, expected.numpy()) <= TOLERANCE
    assert np.abs(pixels.astype(int) - pictures.numpy().astype(int)).max() <= 1
    # Saturated pictures would hide errors.
    assert ((expected > 0) & (expected < 1)).float().mean() > 0.3


@pytest.mark.parametrize("counts", [[1, 2, 3], [1, 1, 1, 1]], ids=str)
def test_a_stream_is_the_decoder_s(built: Path, decoder: TaehvDecoder, counts: list[int]) -> None:
    check_stream(built, decoder, make_latents(config_of(decoder), sum(counts)), counts)


@pytest.mark.parametrize(
    "changes",
    [
        {"temporal_upsample": (False, False, False)},
        {"temporal_upsample": (True, False, True)},
        {"temporal_upsample": (True, True, True)},
        {"latents": "raw", "temporal_upsample": (False, True, False)},
        {"widths": (8, 4, 20, 9), "channels": 12, "mean": (0.0,) * 12, "std": (1.0,) * 12},
    ],
    ids=str,
)
def test_every_kind_of_it_for_several_videos(changes: dict[str, Any], tmp_path: Path) -> None:
    model, size = rounded_decoder(**changes), (1, 2)
    config = config_of(model, size)
    latents = np.random.default_rng(3).standard_normal((2, 4, model.config.channels, *size))
    folder = written(model, tmp_path, size, batch=2)
    check_stream(folder, model, latents.astype(np.float16), [1, 1, 2], size)
    assert config.video_size == (8, 16)


def test_grouping_of_latent_frames_does_not_matter(built: Path, decoder: TaehvDecoder) -> None:
    latents = make_latents(config_of(decoder), 4)
    together, apart = (
        np.concatenate(
            [frames for frames, _ in DecoderStream(built).decode_all(latents, counts)], axis=1
        )
        for counts in ([1, 3], [1, 1, 1, 1])
    )
    assert relative(together, apart) <= 1e-5


def test_the_kernels_of_a_graph_are_known_before_it_is_written(
    built: Path, decoder: TaehvDecoder
) -> None:
    for graph in VAE_GRAPHS:
        record = ExportRecord("fp32", config_of(decoder), {}, {graph: GraphInfo((), ())}, {}, {})
        assert kernels_of(record) == {spec["kernel"] for spec in specs_in(built / f"{graph}.onnx")}


def test_every_memory_is_renewed_in_place(built: Path) -> None:
    model = ir.load(built / "vae_next.onnx")
    histories = {str(value.name) for value in model.graph.inputs} - {"latents"}
    assert len(histories) == 9 and renewable(model) == histories


def test_memories_are_those_of_the_decoder_with_channels_last(
    built: Path, decoder: TaehvDecoder
) -> None:
    """Channels are filled up to whole vectors."""
    wanted = [
        (f"cache.{index}", [1, 1, height, width, -(-channels // 8) * 8])
        for index, (channels, height, width) in enumerate(decoder.cache_shapes(*SIZE))
    ]
    stream = DecoderStream(built)
    assert [(i.name, i.shape) for i in stream.following.get_inputs()[1:]] == wanted
    for graph in (stream.first, stream.following):
        outputs = [(o.name.replace("_next", ""), o.shape) for o in graph.get_outputs()[2:]]
        assert outputs == wanted


def test_sizes_are_named_as_in_the_exported_graphs(built: Path) -> None:
    """The runtime reserves memory by these names."""
    stream = DecoderStream(built)
    assert stream.following.get_inputs()[0].shape == [1, "latent_frames", 16, *SIZE]
    assert [(o.name, o.type, o.shape) for o in stream.following.get_outputs()[:2]] == [
        ("frames", "tensor(float)", [1, "4*latent_frames", 3, 24, 40]),
        ("pixels", "tensor(uint8)", [1, "4*latent_frames", 24, 40, 3]),
    ]
    assert [(o.name, o.shape) for o in stream.first.get_outputs()[:2]] == [
        ("frames", [1, 1, 3, 24, 40]),
        ("pixels", [1, 1, 24, 40, 3]),
    ]


def test_the_host_works_nothing_out(built: Path) -> None:
    """So that a run can be captured."""
    for name in VAE_GRAPHS:
        graph = ir.load(built / f"{name}.onnx").graph
        standard = {node.op_type for node in graph if node.domain == ""}
        assert standard == {"Cast", "Conv", "Div", "Mul", "Reshape", "Tanh", "Transpose"}
        assert all(n.inputs[1].const_value is not None for n in graph if n.op_type == "Reshape")


def test_both_graphs_share_their_weights(built: Path, decoder: TaehvDecoder) -> None:
    names = {path.name for path in built.iterdir()}
    assert names == {"vae_first.onnx", "vae_next.onnx", weights_file(VAE)}
    graphs = [ir.load(built / f"{name}.onnx").graph for name in VAE_GRAPHS]
    inside = [
        {name for name, value in graph.initializers.items() if value.const_value.nbytes > 1024}
        for graph in graphs
    ]
    assert inside[0] == inside[1] and len(inside[0]) == 31
    # All that the library convolves with.
    stored_bytes = sum(graphs[0].initializers[name].const_value.nbytes for name in inside[0])
    assert (built / weights_file(VAE)).stat().st_size <= 1.1 * stored_bytes


def test_a_block_is_this_many_launches(built: Path) -> None:
    graph = ir.load(built / "vae_next.onnx").graph
    kinds = [
        json.loads(node.attributes["spec"].as_string())["kernel"]
        if node.domain == KERNEL_DOMAIN
        else node.op_type
        for node in graph
    ]
    assert {kind: kinds.count(kind) for kind in ("Conv", "vae_stack", "vae_colors")} == {
        "Conv": 31,
        "vae_stack": 30,
        "vae_colors": 2,
    }


def test_a_run_makes_frames_or_pictures(built: Path) -> None:
    specs = [
        json.loads(node.attributes["spec"].as_string())
        for node in ir.load(built / "vae_next.onnx").graph
        if node.domain == KERNEL_DOMAIN
    ]
    serving = [(spec["kernel"], spec["serves"]) for spec in specs if "serves" in spec]
    assert serving == [("vae_colors", "frames"), ("vae_colors", "pixels")]


@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_precisions_without_convolutions_are_refused(
    name: str, decoder: TaehvDecoder, tmp_path: Path
) -> None:
    arguments = (config_of(decoder), VAE, tmp_path, PRECISIONS[name], tmp_path)
    with pytest.raises(UsageError, match=rf"cannot be {name}.*build them with fp16"):
        build_taehv_graphs(*arguments, batch=1, latents=FP16)


def test_widths_that_the_last_kernel_does_not_take_are_refused(
    decoder: TaehvDecoder, tmp_path: Path
) -> None:
    wide = TaehvConfig(widths=(8, 8, 8, 488))
    config = replace(config_of(decoder), vae=wide)
    with pytest.raises(UsageError, match=r"last of vae\.widths is 488.*up to 480"):
        build_taehv_graphs(config, VAE, tmp_path, FP16, tmp_path, batch=1, latents=FP16)
