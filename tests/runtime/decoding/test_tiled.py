"""Tiles of Wan's decoder: the same pictures as of whole frames, in less memory."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlive_trt.configs import VaeConfig
from longlive_trt.configs.loader import configure, load_config
from longlive_trt.configs.tiles import Axis, TileGrid, reaches
from longlive_trt.contract import BASE_GRAPHS, TILE_GRAPHS, VAE
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.ort.cpu import OnnxRuntimeEngine
from longlive_trt.engines.renewal import renewed_in_place
from longlive_trt.errors import ConfigError
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.decoding.choice import decoder_named
from longlive_trt.runtime.decoding.host import VaeStream
from longlive_trt.runtime.decoding.tiled import Part, TiledStream

MakeOnce = Callable[[str, Callable[[Path], object]], Path]
Array = np.ndarray[Any, Any]
SIZE = (14, 140)
"""Three tiles of the size that is cut by default, and none that divides it evenly."""
SECTION = {"dim": 8, "multipliers": [1, 1, 1], "res_blocks": 1, "temporal_upsample": [True, True]}
VALUES = {
    "name": "tiled",
    "latent": dict(zip(("height", "width"), SIZE, strict=True)),
    "vae": {**SECTION, "tiles": True},
}
TOLERANCES = {"fp32": 2e-6, "fp16": 5e-3}


@given(length=st.integers(1, 300), halo=st.integers(0, 20), core=st.integers(1, 80))
def test_cores_make_up_the_whole_and_lie_far_enough_inside(
    length: int, halo: int, core: int
) -> None:
    axis = Axis.of(length, halo, core)
    made = [place for t in axis.tiles for place in range(t.core_start, t.core_end)]
    assert made == list(range(length))
    for tile in axis.tiles:
        end = tile.start + axis.size
        assert tile.core_end - tile.core_start <= max(core, 2 * halo)
        assert tile.core_end - tile.core_start >= min(halo, length) or tile.core_end == length
        assert tile.start >= 0 and end <= length
        assert tile.start == 0 or tile.core_start - tile.start >= halo
        assert end == length or end - tile.core_end >= halo


@pytest.mark.parametrize(
    ("latent", "rows", "columns"),
    [((60, 104), (120, 72, 2), (208, 64, 4)), ((90, 160), (180, 72, 3), (320, 76, 5))],
)
def test_the_full_decoders_tiles(latent: Any, rows: Any, columns: Any) -> None:
    vae = load_config("longlive-1.3b").vae
    assert isinstance(vae, VaeConfig)
    grid = TileGrid.of(vae, latent)
    # Features of twice the latents' sides; six places of them are reached.
    assert reaches(vae) == [7, 10, 6]
    assert grid.scale == 4 and grid.count == rows[2] * columns[2]
    for axis, expected in ((grid.rows, rows), (grid.columns, columns)):
        assert (axis.length, axis.size, len(axis.tiles)) == expected


def test_a_small_frame_is_one_tile() -> None:
    vae = load_config("tiny").vae
    assert isinstance(vae, VaeConfig)
    assert TileGrid.of(vae, (16, 24)).count == TileGrid.of(vae, (16, 24)).share == 1
    assert TileGrid.of(vae, (60, 104)).share == 72 * 64 / (120 * 208)


def test_a_decoder_without_doublings_has_none() -> None:
    vae = {"multipliers": [1], "temporal_upsample": []}
    with pytest.raises(ConfigError, match="tiles"):
        configure({"vae": {**vae, "tiles": True}}, origin="test")
    assert configure({"vae": vae}, origin="test").vae is not None


WAN = {"dim": 2}
DEMO = {"dim": 8, "multipliers": [1, 2, 4], "res_blocks": 1, "temporal_taps": 1}
SHAPES = {
    "Wan's, and LightVAE's": (WAN, (4, 8), 6),
    "the demo's": ({**DEMO, "temporal_upsample": [True, True]}, (10, 12), 4),
    "three taps": (SECTION, (8, 16), 5),
    "one doubling": ({**SECTION, "multipliers": [1, 1], "temporal_upsample": [True]}, (10, 16), 3),
    "fewer frames": ({**SECTION, "temporal_upsample": [False, True]}, (10, 8), 5),
}


def imagined(shape: str, core: int, batch: int = 1) -> tuple[VaeStream, TiledStream, Any]:
    """Both decoders in torch, and the size of their latents."""
    pytest.importorskip("torch")
    from tests.fakes.torch_engines import torch_engines

    section, size, _ = SHAPES[shape]
    latent = dict(zip(("height", "width"), size, strict=True))
    values = {"name": "imagined", "latent": latent, "vae": {**section, "tiles": True}}
    config = configure(values, origin="test")
    assert isinstance(config.vae, VaeConfig)
    engines = torch_engines(config)
    base, tile = (
        Part(engines[first], engines[following], frozenset(engines[following].inputs))
        for first, following in (BASE_GRAPHS[VAE], TILE_GRAPHS[VAE])
    )
    whole = VaeStream(engines["vae_first"], engines["vae_next"], batch, "frames")
    tiled = TiledStream(base, tile, config.vae, batch, "frames", latents=size, core=core)
    return whole, tiled, size


def is_near(found: Array, expected: Array) -> bool:
    """Within what another order of sums does."""
    return bool(np.abs(found - expected).max() <= 5e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_tiles_are_the_whole_decoder(shape: str) -> None:
    whole, tiled, size = imagined(shape, SHAPES[shape][2])
    assert tiled.frames.plan.grid.count > 1
    made = latents(4, size=size)
    expected = whole.decode(made)
    assert expected.std() > 0.01
    found = np.concatenate([tiled.decode(made[:, :1]), tiled.decode(made[:, 1:])], axis=1)
    assert is_near(found, expected)
    assert tiled.caches.keys() == whole.caches.keys()
    for name, cache in whole.caches.items():
        assert is_near(tiled.caches[name], cache), name


def test_videos_side_by_side_go_on_from_what_was_kept() -> None:
    whole, tiled, size = imagined("three taps", 4, batch=2)
    made = latents(5, batch=2, size=size)
    expected = whole.decode(made)
    assert not is_near(expected[0], expected[1])
    tiled.decode(made[:, :2])
    memory = tiled.snapshot()
    assert is_near(tiled.decode(made[:, 2:]), expected[:, 5:])
    tiled.reinstate(memory)
    assert is_near(tiled.decode(made[:, 2:]), expected[:, 5:])
    # The whole decoder goes on where tiles stood, and they where it stood.
    whole.restore(2, memory.caches)
    assert is_near(whole.decode(made[:, 2:3]), expected[:, 5:9])
    tiled.restore(3, {name: cache.copy() for name, cache in whole.caches.items()})
    assert is_near(tiled.decode(made[:, 3:]), expected[:, 9:])


def test_a_smaller_halo_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    less = lambda vae: [*reaches(vae)[:-1], reaches(vae)[-1] - 1]  # noqa: E731
    monkeypatch.setattr("longlive_trt.configs.tiles.reaches", less)
    whole, tiled, size = imagined("three taps", 5)
    made = latents(3, size=size)
    assert np.abs(tiled.decode(made) - whole.decode(made)).max() > 1e-4


@pytest.mark.parametrize("level", [0, 1, 2])
def test_narrower_strips_of_what_was_would_not_do(
    monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    def narrower(vae: VaeConfig) -> list[int]:
        return [places - (i == level) for i, places in enumerate(reaches(vae))]

    monkeypatch.setattr("longlive_trt.runtime.decoding.tiling.reaches", narrower)
    whole, tiled, size = imagined("three taps", 5)
    made = latents(3, size=size)
    assert np.abs(tiled.decode(made) - whole.decode(made)).max() > 1e-4


@pytest.fixture(scope="module")
def exported(make_once: MakeOnce) -> Path:
    from longlive_trt.export.checkpoints.opening import random_weights
    from longlive_trt.export.components import Component, expected_shapes, vae_specs
    from longlive_trt.export.exporter import export_components
    from longlive_trt.export.models.vae import VaeDecoder
    from longlive_trt.export.tiles import tile_specs
    from longlive_trt.precision import precision_named

    config = configure(VALUES, origin="test")

    def export(path: Path) -> None:
        vae = config.vae
        assert isinstance(vae, VaeConfig)
        weights = random_weights(expected_shapes(lambda: VaeDecoder(vae)), 2)
        part = Component(VAE, weights, (*vae_specs(config), *tile_specs(config, VAE)))
        export_components(config, [part], path, precision_named("fp32"), check=True)

    return make_once("tiled-export", export)


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def bundle(request: pytest.FixtureRequest, make_once: MakeOnce, exported: Path) -> Bundle:
    from longlive_trt.engines.build import build

    name = request.param
    return open_bundle(make_once(f"tiled-{name}", lambda path: build(exported, path, name)))


class Opened:
    """A bundle's engines on one thread, and streams over them."""

    def __init__(self, bundle: Bundle, closing: ExitStack) -> None:
        self.bundle, self._closing = bundle, closing
        self.tolerance = TOLERANCES[bundle.manifest.precision]
        self._pairs = {
            pair: [self._engine(graph) for graph in pair]
            for pair in (("vae_first", "vae_next"), BASE_GRAPHS[VAE], TILE_GRAPHS[VAE])
        }

    def _engine(self, graph: str) -> OnnxRuntimeEngine:
        path = self.bundle.folder / f"{graph}.onnx"
        return self._closing.enter_context(OnnxRuntimeEngine(path, threads=1))

    def whole(self, batch: int = 1, output: str = "frames") -> VaeStream:
        first, following = self._pairs["vae_first", "vae_next"]
        return VaeStream(first, following, batch, output)

    def tiled(self, core: int, batch: int = 1, output: str = "frames") -> TiledStream:
        base, tile = (
            Part(*self._pairs[pair], renewed_in_place(self.bundle, pair[1]))
            for pair in (BASE_GRAPHS[VAE], TILE_GRAPHS[VAE])
        )
        vae = self.bundle.config.vae
        assert isinstance(vae, VaeConfig)
        return TiledStream(base, tile, vae, batch, output, latents=SIZE, core=core)


@pytest.fixture(scope="module")
def opened(bundle: Bundle) -> Iterator[Opened]:
    with ExitStack() as closing:
        yield Opened(bundle, closing)


def latents(count: int, batch: int = 1, size: tuple[int, int] = SIZE) -> Array:
    shape = (batch, count, 16, *size)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.exhaustive
@pytest.mark.parametrize("core", [5, 11, 64])
def test_tiles_make_the_pictures_of_whole_frames(opened: Opened, core: int) -> None:
    made = latents(4)
    expected, found = opened.whole().decode(made), opened.tiled(core).decode(made)
    assert found.shape == expected.shape == (1, 13, 3, 56, 560)
    assert expected.std() > 0.1
    assert np.abs(found - expected).max() <= opened.tolerance


@pytest.mark.exhaustive
def test_pixels_differ_where_a_value_is_on_an_edge_at_most(opened: Opened) -> None:
    made = latents(2)
    expected = opened.whole(output="pixels").decode(made)
    found = opened.tiled(9, output="pixels").decode(made)
    assert found.shape == expected.shape and found.dtype == np.uint8
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.05


@pytest.mark.exhaustive
def test_videos_side_by_side_are_videos_of_their_own(opened: Opened) -> None:
    made = latents(3, batch=2)
    both, found = opened.whole(batch=2).decode(made), opened.tiled(11, batch=2).decode(made)
    assert np.abs(both[0] - both[1]).max() > 0.1
    assert np.abs(found - both).max() <= opened.tolerance


@pytest.mark.exhaustive
def test_chunks_of_many_blocks_and_another_video_change_no_bit(opened: Opened) -> None:
    made, stream = latents(7), opened.tiled(20)
    expected = stream.decode(made)
    stream.begin()
    pieces = [stream.decode(made[:, start:end]) for start, end in ((0, 3), (3, 6), (6, 7))]
    assert np.array_equal(np.concatenate(pieces, axis=1), expected)


@pytest.mark.exhaustive
def test_what_tiles_remember_is_what_whole_frames_do(opened: Opened) -> None:
    made, cut = latents(5), 2
    one, other = opened.whole(), opened.tiled(11)
    expected = one.decode(made)[:, 5:]
    other.decode(made[:, :cut])
    memory = other.snapshot()
    first = other.decode(made[:, cut:])
    other.reinstate(memory)
    assert np.array_equal(other.decode(made[:, cut:]), first)
    # One goes on where the other stood, both ways.
    one.begin()
    one.decode(made[:, :cut])
    kept = {name: cache.copy() for name, cache in one.caches.items()}
    assert kept.keys() == memory.caches.keys()
    for name, cache in kept.items():
        assert np.abs(memory.caches[name] - cache).max() <= 5 * opened.tolerance, name
    other.restore(cut, kept)
    assert np.abs(other.decode(made[:, cut:]) - expected).max() <= opened.tolerance
    one.restore(cut, memory.caches)
    assert np.abs(one.decode(made[:, cut:]) - expected).max() <= opened.tolerance


@pytest.mark.exhaustive
def test_there_is_one_history_of_each_convolution(opened: Opened) -> None:
    stream = opened.tiled(11)
    base = opened.bundle.manifest.graphs[BASE_GRAPHS[VAE][1]]
    assert {t.name for t in base.inputs} - {"latents"} == renewed_in_place(
        opened.bundle, BASE_GRAPHS[VAE][1]
    )
    stream.decode(latents(1))
    before = {name: id(cache) for name, cache in stream.caches.items()}
    stream.decode(latents(1))
    assert {name: id(cache) for name, cache in stream.caches.items()} == before


@pytest.mark.exhaustive
def test_low_memory_decodes_in_tiles_and_loads_nothing_else(opened: Opened) -> None:
    bundle, made = opened.bundle, latents(3)
    with Engines(bundle) as whole, Engines(bundle, low_memory=True) as tiled:
        decoder = decoder_named(bundle, None)
        streams = [e.stream_of(decoder, 1, "frames", SIZE) for e in (whole, tiled)]
        expected, found = (stream.decode(made) for stream in streams)
        assert np.abs(found - expected).max() <= opened.tolerance
        assert set(tiled._loaded) == {*BASE_GRAPHS[VAE], *TILE_GRAPHS[VAE]}
        assert set(whole._loaded) == {"vae_first", "vae_next"}


@pytest.mark.exhaustive
def test_plans_of_tensorrt_have_no_tiles(exported: Path) -> None:
    from longlive_trt.engines.build import _without_tiles
    from longlive_trt.exports import read_export

    record = read_export(exported)
    assert set(record.graphs) >= {*TILE_GRAPHS[VAE], *BASE_GRAPHS[VAE]}
    for engine in ("tensorrt", "tensorrt-rtx"):
        assert set(_without_tiles(record, engine).graphs) == {"vae_first", "vae_next"}
    assert _without_tiles(record, "onnxruntime") == record
