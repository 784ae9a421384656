"""What pushes and pulls leave behind, and what one bad entry does to the others."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from longlive_trt.engines.bundles.archive import pack
from longlive_trt.engines.bundles.catalog import CatalogEntry, read_catalog
from longlive_trt.engines.bundles.stores import Store
from longlive_trt.engines.bundles.transfer import push
from longlive_trt.files import BUNDLE, seal_of
from tests.robustness.support.places import MakeBundle, run, snapshot, write


@pytest.fixture
def bundle(tmp_path: Path, fake_bundle: MakeBundle) -> Path:
    return fake_bundle(tmp_path / "b")


@pytest.mark.parametrize("store", ["b", "b/inside", "b/kernels", "link", "-"])
def test_a_bundle_is_no_store(
    store: str, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bundle.parent
    monkeypatch.chdir(folder)
    (folder / "link").symlink_to(bundle)
    pack(bundle, folder / "a.tar.zst")
    before = snapshot(folder)
    for source in ("b", "a.tar.zst"):
        assert run("push", source, store) == 2
        assert "error: " in capsys.readouterr().err
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    "text",
    ["mine", "{}", "[1]", '{"pages": []}', '{"format": 2, "bundles": []}', '{"bundles": [{}]}'],
)
@pytest.mark.parametrize("beside", ["index.html", "catalog/mine.json"])
def test_the_index_of_somebody_else_is_not_replaced(
    text: str, beside: str, bundle: Path, tmp_path: Path
) -> None:
    write(tmp_path / "site" / "index.json", text)
    write(tmp_path / "site" / beside)
    before = snapshot(tmp_path)
    assert run("push", bundle, tmp_path / "site") == 2
    assert snapshot(tmp_path) == before


BAD_NAMES = ("a\tb", "a\nb", "a\x00b", "a\x1b[31mb", "\u202eb", "a\u2028b")


def rename_model(bundle: Path, name: str) -> None:
    """Sealed, as a build of a model with this name would be."""
    path = bundle / "manifest.json"
    text = re.sub(r'"sha256": "[0-9a-f]{64}"', '"sha256": ""', path.read_text(), count=1)
    text = text.replace('"mini-relative"', json.dumps(name), 1)
    path.write_text(text.replace('"sha256": ""', f'"sha256": "{seal_of(text)}"', 1))
    assert BUNDLE.listing(bundle) is not None


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("packed", [False, True])
def test_a_name_that_cannot_be_listed_is_refused_before_anything_is_sent(
    name: str, packed: bool, bundle: Path, tmp_path: Path, fake_bundle: MakeBundle
) -> None:
    store = tmp_path / "store"
    assert run("push", bundle, store) == 0
    source = fake_bundle(tmp_path / "bad")
    rename_model(source, name)
    if packed:
        pack(source, tmp_path / "bad.tar.zst")
        source = tmp_path / "bad.tar.zst"
    before = snapshot(store)
    assert run("push", source, store) in (1, 2)
    assert snapshot(store) == before
    assert run("pull", store, "--out", tmp_path / "out") == 0


ENTRIES: dict[str, Callable[[CatalogEntry], object]] = {
    "a tab": lambda entry: {**asdict(entry), "path": "bad", "config": "a\tb"},
    "a number for a path": lambda entry: {**asdict(entry), "path": 7},
    "a list for a path": lambda entry: {**asdict(entry), "path": ["bad"]},
    "another field": lambda entry: {**asdict(entry), "path": "bad", "more": 1},
    "a field less": lambda entry: {"path": entry.path},
    "graphs that are a number": lambda entry: {**asdict(entry), "path": "bad", "graphs": 7},
    "graphs that are numbers": lambda entry: {**asdict(entry), "path": "bad", "graphs": [7]},
    "a negative size": lambda entry: {**asdict(entry), "path": "bad", "bytes": -1},
    "a text": lambda _: "bad",
    "nothing": lambda _: None,
}


@pytest.mark.parametrize("case", ENTRIES)
@pytest.mark.parametrize("where", ["index", "catalog", "both"])
def test_a_bad_entry_is_left_out_and_told(
    case: str, where: str, bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    entry, _ = push(bundle, str(store))
    bad = ENTRIES[case](entry)
    if where in ("index", "both"):
        index = json.loads((store / "index.json").read_text())
        index["bundles"].insert(0, bad)
        (store / "index.json").write_text(json.dumps(index))
    if where in ("catalog", "both"):
        write(store / "catalog" / "bad.json", json.dumps(bad))
    logging.getLogger("longlive_trt").handlers = []
    assert read_catalog(Store(str(store))) == [entry]
    assert "is left out" in caplog.text
    assert run("pull", store, "--out", tmp_path / "out") == 0
    (bundle / "manifest.json").unlink()


def test_a_push_beside_a_bad_entry(bundle: Path, tmp_path: Path, fake_bundle: MakeBundle) -> None:
    store = tmp_path / "store"
    first, _ = push(bundle, str(store))
    write(store / "catalog" / "bad.json", json.dumps({**asdict(first), "config": "a\tb"}))
    other = fake_bundle(tmp_path / "other", {"other.onnx": b"1"})
    assert run("push", other, store) == 0
    assert len(read_catalog(Store(str(store))) or ()) == 2
    assert len(json.loads((store / "index.json").read_text())["bundles"]) == 2


def altered_file(store: Path, entry: CatalogEntry) -> None:
    path = store / entry.path / "step.weights"
    path.write_bytes(bytes(path.stat().st_size))


def missing_file(store: Path, entry: CatalogEntry) -> None:
    (store / entry.path / "step.weights").unlink()


def short_file(store: Path, entry: CatalogEntry) -> None:
    path = store / entry.path / "step.weights"
    path.write_bytes(path.read_bytes()[:1000])


def other_manifest(store: Path, entry: CatalogEntry) -> None:
    write(store / entry.path / "manifest.json")


def missing_bundle(store: Path, entry: CatalogEntry) -> None:
    shutil.rmtree(store / entry.path)


@pytest.mark.parametrize(
    "damage", [altered_file, missing_file, short_file, other_manifest, missing_bundle]
)
def test_a_refused_pull_leaves_nothing(
    damage: Callable[[Path, CatalogEntry], None], bundle: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    entry, address = push(bundle, str(store))
    damage(store, entry)
    before = snapshot(tmp_path)
    for url in (store, address):
        assert run("pull", url, "--out", tmp_path / "out") in (1, 2)
        assert snapshot(tmp_path) == before


def test_a_refused_pull_of_an_archive_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    pack(bundle, tmp_path / "a.tar.zst")
    _, address = push(tmp_path / "a.tar.zst", str(tmp_path / "store"))
    path = Path(address)
    path.write_bytes(path.read_bytes()[:-20] + bytes(20))
    before = snapshot(tmp_path)
    for url in (address, tmp_path / "store"):
        assert run("pull", url, "--out", tmp_path / "out") == 1
        assert snapshot(tmp_path) == before
