"""Bundles on one disk that have engines in common."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from longlive_trt.cli import main
from longlive_trt.configs import ModelConfig
from longlive_trt.configs.loader import configure
from longlive_trt.engines import build as building
from longlive_trt.engines.build import build
from longlive_trt.engines.bundles.archive import pack, unpack
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.bundles.sharing import donors_beside, share_files
from longlive_trt.engines.bundles.transfer import pull, push
from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.engines.matrices import MATRICES_NAME, MatricesFile
from longlive_trt.errors import UsageError
from longlive_trt.exports import read_export
from longlive_trt.files import BUNDLE, foreign_file

FakeBundle = Callable[..., Path]
STEP = "step.weights"
LARGE = bytes(range(256)) * 8192
"""Large enough to be worth a second name."""


@pytest.fixture
def other_window(golden_export: Path, tmp_path: Path) -> Path:
    """The same graphs and weights, rolled out otherwise: as another export makes them."""
    folder = tmp_path / "exports" / "other"
    shutil.copytree(golden_export, folder)
    path = folder / "export.json"
    values = json.loads(path.read_text())
    values["config"]["rollout"] |= {"window_frames": 9, "steps": [1000, 500]}
    path.write_text(json.dumps(values))
    return folder


@pytest.fixture
def first(golden_export: Path, tmp_path: Path) -> Path:
    out = tmp_path / "bundles" / "first"
    build(golden_export, out, "fp32")
    return out


def is_same_file(one: Path, other: Path, name: str = STEP) -> bool:
    return (one / name).samefile(other / name)


def test_another_window_and_other_steps_share_the_transformer(
    first: Path, other_window: Path
) -> None:
    second = first.with_name("second")
    result = build(other_window, second, "fp32")
    one, other = open_bundle(first).manifest, open_bundle(second).manifest
    assert one.key != other.key and other.config.rollout.window_frames == 9
    assert result.shared_bytes == other.total_bytes
    assert all(is_same_file(first, second, name) for name in other.files)
    shutil.rmtree(first)
    open_bundle(second)


def test_nothing_else_is_shared(
    first: Path, golden_export: Path, other_window: Path, tmp_path: Path
) -> None:
    assert build(other_window, first.with_name("half"), "fp16").shared_bytes == 0
    assert build(other_window, first.with_name("anew"), "fp32", force=True).shared_bytes == 0
    assert not is_same_file(first, first.with_name("anew"))
    elsewhere = tmp_path / "elsewhere" / "bundle"
    assert build(other_window, elsewhere, "fp32").shared_bytes == 0
    told = build(golden_export, tmp_path / "far" / "b", "fp32", share_with=[first])
    assert told.shared_bytes > 0 and is_same_file(first, tmp_path / "far" / "b")
    weights = other_window / "transformer.weights"
    changed = bytearray(weights.read_bytes())
    changed[0] ^= 1
    weights.write_bytes(changed)
    values = json.loads((other_window / "export.json").read_text())
    values["files"][weights.name] = building.sha256_file(weights)
    (other_window / "export.json").write_text(json.dumps(values))
    assert build(other_window, first.with_name("changed"), "fp32").shared_bytes == 0


def test_a_bundle_that_is_built_again_shares_with_what_it_was(
    first: Path, other_window: Path
) -> None:
    inode = (first / STEP).stat().st_ino
    assert build(other_window, first, "fp32").shared_bytes > 0
    assert (first / STEP).stat().st_ino == inode and (first / STEP).stat().st_nlink == 1
    assert foreign_file(first, BUNDLE) is None
    assert [path.name for path in first.parent.iterdir()] == ["first"]


def test_a_damaged_bundle_gives_nothing(first: Path, other_window: Path) -> None:
    weights = first / STEP
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    second = first.with_name("second")
    assert build(other_window, second, "fp32").shared_bytes == 0
    open_bundle(second)
    assert (second / STEP).stat().st_nlink == 1


def test_a_disk_without_links_gets_a_copy(
    first: Path, other_window: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    second = first.with_name("second")
    assert build(other_window, second, "fp32").shared_bytes > 0
    open_bundle(second)
    assert not is_same_file(first, second)


def test_what_belongs_to_somebody_else_is_left_alone(
    first: Path, other_window: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert donors_beside(first) == []
    assert build(other_window, first.with_name("second"), "fp32").shared_bytes == 0


def test_an_archive_is_whole_and_shares_where_it_is_unpacked(
    fake_bundle: FakeBundle, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    one = fake_bundle(tmp_path / "here" / "one", {"step.weights": LARGE, "vae.weights": b"a" * 9})
    other = fake_bundle(tmp_path / "other", {"step.weights": LARGE, "vae.weights": b"b" * 9})
    pack(other, tmp_path / "other.tar.zst")
    unpack(tmp_path / "other.tar.zst", tmp_path / "here" / "two")
    two = tmp_path / "here" / "two"
    assert is_same_file(one, two) and not is_same_file(one, two, "vae.weights")
    assert open_bundle(two).manifest == open_bundle(other).manifest
    pack(two, tmp_path / "two.tar.zst")
    assert (tmp_path / "two.tar.zst").read_bytes() == (tmp_path / "other.tar.zst").read_bytes()
    assert sorted(path.name for path in two.iterdir()) == [
        *("manifest.json", "step.weights", "vae.weights"),
    ]


@pytest.mark.parametrize("as_archive", [True, False])
def test_what_is_pulled_shares(as_archive: bool, fake_bundle: FakeBundle, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    one = fake_bundle(tmp_path / "here" / "one", {STEP: LARGE, "vae.weights": b"a"})
    other = fake_bundle(tmp_path / "store" / "other", {STEP: LARGE, "vae.weights": b"b"})
    name = "other.tar.zst" if as_archive else "other"
    if as_archive:
        pack(other, tmp_path / "store" / name)
    pull(str(tmp_path / "store" / name), tmp_path / "here" / "two", None)
    two = tmp_path / "here" / "two"
    assert open_bundle(two).manifest == open_bundle(other).manifest
    assert is_same_file(one, two) and not is_same_file(other, two)


def test_a_file_is_read_before_it_is_shared(fake_bundle: FakeBundle, tmp_path: Path) -> None:
    one = fake_bundle(tmp_path / "one", {"step.weights": LARGE})
    two = fake_bundle(tmp_path / "two", {"step.weights": LARGE})
    (one / STEP).write_bytes(LARGE[:-1] + b"\0")
    share_files(two, open_bundle(two).manifest.files, donors_beside(two))
    assert (two / STEP).read_bytes() == LARGE and not is_same_file(one, two)


def test_another_donor_s_file_is_not_written_into_an_altered_one(
    fake_bundle: FakeBundle, tmp_path: Path
) -> None:
    altered = LARGE[:-1] + b"\0"
    for name in ("one", "other", "two"):
        fake_bundle(tmp_path / name, {"step.weights": LARGE})
    one, other, two = (tmp_path / name for name in ("one", "other", "two"))
    (one / STEP).write_bytes(altered)
    share_files(two, open_bundle(two).manifest.files, donors_beside(two))
    assert (one / STEP).read_bytes() == altered
    assert is_same_file(other, two) and (two / STEP).read_bytes() == LARGE


@pytest.fixture
def two_stored(fake_bundle: FakeBundle, tmp_path: Path) -> list[str]:
    """Addresses of two bundles that have the transformer in common."""
    sources = [
        fake_bundle(tmp_path / name, {"step.weights": LARGE, "vae.weights": name.encode()})
        for name in ("full", "light")
    ]
    return [push(source, str(tmp_path / "store"))[1] for source in sources]


def test_a_pulled_folder_shares_and_fetches_the_rest(two_stored: list[str], tmp_path: Path) -> None:
    one, two = tmp_path / "here" / "one", tmp_path / "here" / "two"
    first, second = pull(two_stored[0], one), pull(two_stored[1], two)
    assert (first.shared_bytes, first.fetched_bytes) == (0, len(LARGE) + len(b"full"))
    assert (second.shared_bytes, second.fetched_bytes) == (len(LARGE), len(b"light"))
    assert second.kept_bytes == 0
    assert is_same_file(one, two) and not is_same_file(one, two, "vae.weights")
    shutil.rmtree(one)
    open_bundle(two)


def test_a_folder_shares_with_an_archive_that_was_pulled(
    two_stored: list[str], tmp_path: Path
) -> None:
    pack(tmp_path / "full", tmp_path / "full.tar.zst")
    one, two = tmp_path / "here" / "one", tmp_path / "here" / "two"
    pull(str(tmp_path / "full.tar.zst"), one)
    assert pull(two_stored[1], two).shared_bytes == len(LARGE)
    assert is_same_file(one, two)


def test_what_is_altered_beside_a_pull_is_fetched(two_stored: list[str], tmp_path: Path) -> None:
    one, two = tmp_path / "here" / "one", tmp_path / "here" / "two"
    pull(two_stored[0], one)
    altered = LARGE[:-1] + b"\0"
    (one / STEP).write_bytes(altered)
    second = pull(two_stored[1], two)
    assert second.shared_bytes == 0 and second.fetched_bytes == len(LARGE) + len(b"light")
    assert (two / STEP).read_bytes() == LARGE and (one / STEP).read_bytes() == altered
    # And what it shared is no way into another bundle when that is pulled again.
    again = pull(two_stored[0], one)
    assert again.shared_bytes == len(LARGE)
    assert is_same_file(one, two)


def test_the_command_says_what_is_shared(
    first: Path, other_window: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("build", "--onnx", other_window, "--out", tmp_path / "b", "--share-with")
    assert main([str(part) for part in (*arguments, first)]) == 0
    assert "shared), " in capsys.readouterr().out
    assert main([str(part) for part in (*arguments, tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_keys_are_of_each_component(golden_export: Path, tiny_config: ModelConfig) -> None:
    record = read_export(golden_export)
    from longlive_trt.engines.compiler import BuildOptions
    from longlive_trt.engines.registry import compiler_named
    from longlive_trt.precision import precision_named

    fp16 = precision_named("fp16")
    on_gpu = compiler_named("onnxruntime", BuildOptions(gpu="sm90"), fp16, record.config)
    values = {"vae": {"kind": "taehv"}, "rollout": {"window_frames": 9, "steps": [1000]}}
    other = configure({**json.loads(json.dumps({"name": "x"})), **values}, origin="test")
    own = configure({"name": "y"}, origin="test")
    assert on_gpu.decisive(own, "transformer") == on_gpu.decisive(other, "transformer")
    assert on_gpu.decisive(own, "vae") != on_gpu.decisive(other, "vae")
    with pytest.raises(UsageError):
        build(golden_export, Path("/proc/x"), "fp32")


def test_matrices_that_can_be_exchanged_come_along(
    golden_export: Path, other_window: Path, tmp_path: Path
) -> None:
    """With engines that have them apart, and not with others."""
    apart, folder = BuildOptions(lora_ready=True), tmp_path / "bundles"
    build(golden_export, folder / "plain", "fp32")
    build(golden_export, folder / "one", "fp32", options=apart)
    result = build(other_window, folder / "other", "fp32", options=apart)
    assert not is_same_file(folder / "plain", folder / "one", "step.onnx")
    assert result.shared_bytes > 0 and is_same_file(folder / "one", folder / "other", MATRICES_NAME)
    one, other = (MatricesFile.open(folder / name) for name in ("one", "other"))
    assert one.shapes == other.shapes != {}
    manifests = [open_bundle(folder / name).manifest for name in ("one", "other")]
    assert manifests[0].graphs == manifests[1].graphs


def test_a_gpu_s_engines_with_matrices_apart_are_others(
    golden_export: Path, tmp_path: Path
) -> None:
    sizes = []
    for name in ("plain", "apart", "again"):
        options = BuildOptions(gpu="sm90", lora_ready=name != "plain")
        result = build(golden_export, tmp_path / name, "bf16", options=options)
        sizes.append(result.shared_bytes)
    assert sizes[1] == 0 and sizes[2] > 0
    one, other = (MatricesFile.open(tmp_path / name) for name in ("apart", "again"))
    assert one.shapes == other.shapes != {} and one.layouts == other.layouts != {}
