"""The two parts of a decoder's graphs for a GPU, computed with numpy, against the whole of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from longlive_trt.contract import BASE_GRAPHS, TILE_GRAPHS, VAE, VAE_GRAPHS, weights_file
from longlive_trt.engines.graphs.vae import build_vae_graphs
from tests.fakes.written import FP16, THREE, TWO, Written

Array = np.ndarray[Any, np.dtype[Any]]
STEP = 2**-10
"""Of a half-precision number near one: so much a sum in another order may differ, a few times."""


@pytest.fixture(scope="module", params=["two doublings", "three doublings"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    vae = TWO if request.param == "two doublings" else THREE
    return Written(vae, tmp_path_factory.mktemp("tiles"))


def test_a_tile_that_is_the_whole_frame_has_its_bits(written: Written) -> None:
    """The cut is where a sum is rounded anyway."""
    made = written.latents(3)
    whole, tiled = written.whole(), written.tiled(64)
    assert tiled.frames.plan.grid.count == 1
    assert np.array_equal(tiled.decode(made), whole.decode(made))
    require_same_memory(tiled.caches, whole.caches, 0)


def test_tiles_are_the_whole_frame_but_for_the_order_of_sums(written: Written) -> None:
    made = written.latents(3)
    whole, tiled = written.whole(), written.tiled(4)
    assert tiled.frames.plan.grid.count > 4
    expected, found = whole.decode(made), tiled.decode(made)
    assert expected.std() > 0.05 and (np.abs(expected) < 1).mean() > 0.5
    assert np.abs(found - expected).max() <= 4 * STEP
    require_same_memory(tiled.caches, whole.caches, 8 * STEP)


def require_same_memory(
    found: Mapping[str, Array], expected: Mapping[str, Array], largest: float
) -> None:
    assert found.keys() == expected.keys()
    for name, cache in expected.items():
        assert found[name].shape == cache.shape
        difference = np.abs(found[name].astype(np.float32) - cache)
        assert (difference <= largest * np.maximum(1, np.abs(cache))).all(), name


def test_either_goes_on_where_the_other_stands(written: Written) -> None:
    made = written.latents(3)
    whole, tiled = written.whole(), written.tiled(4)
    expected = whole.decode(made)[:, -written.vae.temporal_factor :]
    tiled.decode(made[:, :2])
    whole.restore(2, dict(tiled.saved()))
    assert np.abs(whole.decode(made[:, 2:]) - expected).max() <= 4 * STEP


def test_pixels_of_two_videos_side_by_side(tmp_path: Path) -> None:
    both = Written(TWO, tmp_path, batch=2)
    made = both.latents(2)
    expected, found = both.whole("pixels").decode(made), both.tiled(5, "pixels").decode(made)
    assert found.shape == expected.shape == (2, 5, 32, 64, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert np.abs(found[0].astype(int) - found[1]).max() > 20


def test_parts_are_renewed_in_place_and_share_the_weights(written: Written) -> None:
    names = {f"{name}.onnx" for name in written.engines} | {weights_file(VAE)}
    assert {path.name for path in written.folder.iterdir()} == names
    counts = []
    for part in (BASE_GRAPHS, TILE_GRAPHS):
        histories = {n for n in written.engines[part[VAE][1]].inputs if n.startswith("cache.")}
        assert histories and written.in_place(part[VAE][1]) == histories
        counts.append(len(histories))
    whole = written.engines[VAE_GRAPHS[1]].inputs
    assert sum(counts) == sum(name.startswith("cache.") for name in whole)


def test_without_tiles_the_graphs_are_the_same(written: Written, tmp_path: Path) -> None:
    exported = written.folder.parent / "export"
    build_vae_graphs(written.config, exported, FP16, tmp_path)
    kept = [*(f"{name}.onnx" for name in VAE_GRAPHS), weights_file(VAE)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    for name in kept:
        assert (tmp_path / name).read_bytes() == (written.folder / name).read_bytes()
