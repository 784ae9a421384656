"""Bundles for a GPU that hold a decoder in parts too, built and assembled where there is none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from longlive_trt.configs import VaeConfig
from longlive_trt.contract import PART_GRAPHS, TILE_GRAPHS, VAE, VAE_GRAPHS
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.engines.ort import gpu as onnxruntime_cuda
from longlive_trt.plugins.cuda.streams import Stream
from longlive_trt.runtime import assembly
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.bench.lane import BenchSettings, decoding_graphs
from longlive_trt.runtime.decoding import choice
from longlive_trt.runtime.decoding.choice import decoder_named
from longlive_trt.runtime.decoding.cuda import CudaDecoder
from longlive_trt.runtime.decoding.pieces import TiledPieces
from longlive_trt.runtime.decoding.tiled import TiledStream
from longlive_trt.runtime.memory.base import Buffer
from longlive_trt.runtime.memory.budget import Way, decoder_budget, decoding_bytes, way_of
from longlive_trt.runtime.memory.cuda import CudaMemory
from tests.fakes.cuda import FakeCuda
from tests.fakes.engines import FakeCudaEngine
from tests.fakes.sessions import KernelEngine
from tests.fakes.streams import make_latents
from tests.fakes.written import PARTS, SIZE, TWO, built


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
            loaded.append({engine.name for engine in engines._loaded.values()})
    assert loaded == [set(VAE_GRAPHS), PARTS]
    assert set(PART_GRAPHS) > PARTS
    # Whole blocks add in another order than single frames do; tiles are single frames.
    assert np.abs(pictures[0].astype(int) - pictures[2]).max() <= 1
    assert np.array_equal(pictures[1], pictures[3])


@pytest.mark.usefixtures("opened")
def test_bench_loads_and_times_what_decodes(bundle: Bundle) -> None:
    assert decoding_graphs(bundle, BenchSettings()) == VAE_GRAPHS
    assert set(decoding_graphs(bundle, BenchSettings(low_memory=True))) == PARTS


@pytest.mark.usefixtures("opened")
def test_the_benchmark_measures_every_way(bundle: Bundle, tmp_path: Path) -> None:
    from benchmarks.decoder_memory import WAYS, counted, measure

    pictures = {}
    for way in WAYS:
        report = measure(bundle, way, 1, tmp_path / f"{way}.npy")
        assert report["taken_gb"] > 0 and len(report["block_ms"]["series"]) == 1
        pictures[way] = np.load(tmp_path / f"{way}.npy").astype(int)
    assert pictures["blocks"].std() > 1
    assert np.abs(pictures["frames"] - pictures["blocks"]).max() <= 1
    assert np.array_equal(pictures["tiles"], pictures["frames"])
    decoder = decoder_named(bundle, None)
    for way, gigabytes in counted(bundle).items():
        assert gigabytes == round(decoding_bytes(bundle, bundle.config, decoder, 1, way) / 1e9, 3)
