"""The manifest answers for every byte, and says what the engines really hold."""

import json
from pathlib import Path
from shutil import copytree

import pytest

from longlive_trt.engines.bundles.bundle import MANIFEST_NAME, open_bundle
from longlive_trt.errors import BundleError, UsageError


@pytest.fixture
def bundle(golden_bundle_fp16: Path, tmp_path: Path) -> Path:
    return copytree(golden_bundle_fp16, tmp_path / "bundle")


def test_tensors_have_the_types_of_the_built_precision(bundle: Path) -> None:
    step = open_bundle(bundle).manifest.graphs["step"]
    types = {tensor.name: tensor.dtype for tensor in (*step.inputs, *step.outputs)}
    assert types["latents"] == types["k_cache.0"] == types["latents_next"] == "float16"
    assert types["timestep"] == types["sigma"] == "float"
    assert types["frame_index"] == "int64"


@pytest.mark.parametrize("name", ["step.onnx", "step.weights", "prompt.onnx"])
def test_an_altered_file_is_named_with_both_hashes(bundle: Path, name: str) -> None:
    path = bundle / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    expected = listed_sha256(bundle, name)
    with pytest.raises(BundleError, match=rf"{name}.*altered.*expected {expected}"):
        open_bundle(bundle)


def test_a_cut_file_is_named_with_both_sizes(bundle: Path) -> None:
    path = bundle / "step.weights"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=rf"step.weights: {size - 1} bytes, expected {size}"):
        open_bundle(bundle)


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "prompt.weights").unlink()
    with pytest.raises(BundleError, match=r"prompt\.weights: missing"):
        open_bundle(bundle)


def test_a_link_is_not_a_file(bundle: Path, tmp_path: Path) -> None:
    path = bundle / "step.onnx"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"step\.onnx: missing"):
        open_bundle(bundle)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(UsageError, match=f"no {MANIFEST_NAME} inside"):
        open_bundle(tmp_path)


def test_a_component_that_was_never_exported_says_what_adds_it(bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"making a video needs the vae.*--vae"):
        open_bundle(bundle).require("vae_first", "making a video")


def listed_sha256(bundle: Path, name: str) -> str:
    values = json.loads((bundle / MANIFEST_NAME).read_text(encoding="utf-8"))
    sha256: str = values["files"][name]["sha256"]
    return sha256
