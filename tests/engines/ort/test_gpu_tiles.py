"""Bundles for a GPU that hold a decoder in parts too, built and assembled where there is none."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from longlive_trt.configs import ModelConfig, VaeConfig
from longlive_trt.configs.schema import LatentConfig
from longlive_trt.contract import BASE_GRAPHS, PART_GRAPHS, TILE_GRAPHS, VAE, VAE_GRAPHS
from longlive_trt.engines.build import build
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.engines.ort import gpu as onnxruntime_cuda
from longlive_trt.exports import RECORD_NAME, ExportRecord, graph_info
from longlive_trt.plugins.cuda.streams import Stream
from longlive_trt.runtime import assembly
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.decoding import choice
from longlive_trt.runtime.decoding.choice import decoder_named
from longlive_trt.runtime.decoding.cuda import CudaDecoder
from longlive_trt.runtime.decoding.pieces import TiledPieces
from longlive_trt.runtime.decoding.tiled import TiledStream
from longlive_trt.runtime.memory.base import Buffer
from longlive_trt.runtime.memory.budget import Way, decoder_budget, decoding_bytes, way_of
from longlive_trt.runtime.memory.cuda import CudaMemory
from tests.fakes.cuda import FakeCuda
from tests.fakes.decoders import StateWeights, seeded_decoder, stored
from tests.fakes.engines import FakeCudaEngine
from tests.fakes.sessions import KernelEngine
from tests.fakes.streams import make_latents
from tests.fakes.written import SIZE, TWO

PARTS = {*BASE_GRAPHS[VAE], *TILE_GRAPHS[VAE]}


def exported(folder: Path, vae: VaeConfig, size: tuple[int, int]) -> Path:
    """An export as far as this compiler reads it: weights, and what its record says."""
    latent = LatentConfig(height=size[0], width=size[1])
    config = ModelConfig(name="tiled", latent=latent, vae=vae)
    stored(StateWeights(seeded_decoder(vae)), folder)
    for name in {*VAE_GRAPHS, *PARTS}:
        path, (inputs, outputs) = folder / f"{name}.onnx", _described(config, name)
        graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": 22})
        model = ir.load(path) if path.exists() else ir.Model(graph, ir_version=10)
        model.graph.inputs.extend(inputs)
        model.graph.outputs.extend(outputs)
        ir.save(model, path)
    paths = sorted(folder.iterdir())
    graphs = {p.stem: graph_info(ir.load(p)) for p in paths if p.suffix == ".onnx"}
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    record = ExportRecord("fp32", config, {VAE: "seeded"}, graphs, files, {})
    (folder / RECORD_NAME).write_text(record.to_json())
    return folder


def _described(config: ModelConfig, graph: str) -> tuple[list[ir.Value], list[ir.Value]]:
    """Inputs and outputs, as far as a manifest is checked for them."""
    assert config.video_size is not None
    inputs, outputs = [], []
    if graph not in TILE_GRAPHS[VAE]:
        inputs.append(_value("latents", ["batch", "latent_frames", *config.latent_shape]))
    if graph in VAE_GRAPHS:
        frames = 1 if graph == VAE_GRAPHS[0] else "4*latent_frames"
        outputs.append(_value("pixels", ["batch", frames, *config.video_size, 3]))
    return inputs, outputs


def _value(name: str, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def built(folder: Path, vae: VaeConfig, size: tuple[int, int]) -> Bundle:
    source = exported(folder / "export", vae, size)
    build(source, folder / "bundle", "fp16", options=BuildOptions(gpu="sm90"))
    return open_bundle(folder / "bundle")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return built(tmp_path_factory.mktemp("built"), TWO, SIZE)


def test_a_bundle_keeps_both_parts(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert set(manifest.graphs) == {*VAE_GRAPHS, *PARTS}
    assert set(manifest.options["kernel_graphs"]) >= set(manifest.graphs)
    tile = {tensor.name: tensor.shape for tensor in manifest.graphs[TILE_GRAPHS[VAE][1]].inputs}
    assert tile["features"] == ("feature_frames", "tile_height", "tile_width", 16)
    assert tile["cache.0"] == (1, 2, "tile_height", "tile_width", 16)
    assert len([name for name in manifest.files if name.endswith(".weights")]) == 1


SIZES = {"480x832": (60, 104), "720x1280": (90, 160)}


@pytest.mark.parametrize("size", SIZES)
def test_tiles_take_the_least_as_is_known_before_loading(tmp_path: Path, size: str) -> None:
    vae = VaeConfig(dim=16, tiles=True)
    bundle = built(tmp_path, vae, SIZES[size])
    decoder, config = decoder_named(bundle, None), bundle.config
    ways: tuple[Way, ...] = ("tiles", "frames", "blocks")
    tiles, frames, blocks = (decoding_bytes(bundle, config, decoder, 1, way) for way in ways)
    assert tiles < 0.7 * frames and frames < 0.6 * blocks
    assert way_of(bundle, decoder, low_memory=True) == "tiles"
    assert way_of(bundle, decoder, low_memory=False) == "blocks"
    assert decoder_budget(bundle, config, low_memory=True).parts["decoding"] == tiles
    assert decoder_budget(bundle, config).parts["decoding"] == blocks
    # Histories of whole frames, once, in half precision: 2 frames of each convolution's input.
    histories = bundle.manifest.graphs[VAE_GRAPHS[1]].inputs
    whole = sum(2 * int(np.prod(t.shape)) for t in histories if t.name.startswith("cache."))
    assert whole < tiles


@pytest.fixture
def opened(
    bundle: Bundle, fake_cuda: Callable[..., FakeCuda], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Engines on an imagined GPU; frames of any size are cut, though one tile has all of it."""
    cuda = fake_cuda()
    monkeypatch.setattr(onnxruntime_cuda, "load_libraries", lambda: None)
    monkeypatch.setattr(choice, "_LARGEST_SHARE", 1)

    def load(bundle: Bundle, graph: str, *, stream: Stream, **_: Any) -> FakeCudaEngine:
        path = bundle.folder / f"{graph}.onnx"
        return FakeCudaEngine(cuda, path, stream, inner=KernelEngine(path))

    monkeypatch.setattr(assembly, "load_engine", load)
    return lambda **options: Engines(bundle, "cuda", **options)


def test_low_memory_decodes_in_tiles_on_a_gpu(bundle: Bundle, opened: Any) -> None:
    made, pictures, loaded = make_latents(bundle.config, 3), [], []
    for low_memory in (False, True):
        with opened(low_memory=low_memory) as engines:
            memory = CudaMemory(engines.stream("transformer"))
            place = memory.reserve({"block": Buffer(made.shape, made.dtype)}, "a block's latents")
            memory.write(place["block"], made)
            decoder = engines.decoder(1)
            assert isinstance(decoder, CudaDecoder)
            assert isinstance(decoder.pieces, TiledPieces) == low_memory
            pictures.append(decoder.start(place["block"]).result())
            stream = engines.stream_of(decoder_named(bundle, None), 1, "frames", SIZE)
            assert isinstance(stream, TiledStream) == low_memory
            pictures.append(stream.decode(made))
            decoder.close()
            memory.close()
            loaded.append(set(engines._loaded))
    assert loaded == [set(VAE_GRAPHS), PARTS]
    assert set(PART_GRAPHS) > PARTS
    # Whole blocks add in another order than single frames do; tiles are single frames.
    assert np.abs(pictures[0].astype(int) - pictures[2]).max() <= 1
    assert np.array_equal(pictures[1], pictures[3])
