"""What is shipped of the demo's export, and what it is put together to."""

import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from longlive_trt.demo.assembly import GRAPHS, assemble
from longlive_trt.demo.geometry import MODEL_FILE, model_config
from longlive_trt.demo.shipped import write_sums
from longlive_trt.errors import CheckpointError
from longlive_trt.exports import check_hashes, read_export
from longlive_trt.files import sha256_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "onnx"
    made.mkdir()
    return made


def test_the_shipped_graphs_are_those_of_the_model() -> None:
    record = read_export(GRAPHS)
    check_hashes(GRAPHS, record)
    assert record.config == model_config()
    decoder, encoder = {"vae_first", "vae_next"}, {"encode_first", "encode_next"}
    light = {"light_vae_first", "light_vae_next"}
    assert record.graphs.keys() == {"step", "prompt", "text"} | decoder | light | encoder
    assert "tokenizer.json" in record.files


def test_what_is_shipped_says_nothing_of_the_machine_it_was_made_on() -> None:
    here = str(Path(__file__).resolve().parents[2]).encode()
    for path in GRAPHS.iterdir():
        assert here not in path.read_bytes() and b"site-packages" not in path.read_bytes()


def test_an_export_is_whole(folder: Path, demo_weights: Path) -> None:
    assemble(folder, weights=demo_weights)
    record = read_export(folder)
    check_hashes(folder, record)
    assert {path.name for path in folder.iterdir()} == {*record.files, "export.json"}
    sums = {path.stem: sha256_file(path) for path in demo_weights.glob("*.safetensors")}
    assert record.checkpoints == {**sums, "vae_encoder": sums["vae"]}


def test_weights_of_another_model_are_refused(
    folder: Path, tmp_path: Path, demo_weights: Path
) -> None:
    other = shutil.copytree(demo_weights, tmp_path / "other")
    tensors = load_file(other / "vae.safetensors")
    tensors["conv2.bias"] = np.zeros(3, np.float16)
    save_file(tensors, other / "vae.safetensors")
    write_sums(other)
    with pytest.raises(CheckpointError, match=r"conv2\.bias is \[3\], and the graphs"):
        assemble(folder, weights=other)


def test_altered_weights_are_refused(folder: Path, tmp_path: Path, demo_weights: Path) -> None:
    other = shutil.copytree(demo_weights, tmp_path / "other")
    with (other / "transformer.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with pytest.raises(CheckpointError, match=r"transformer\.safetensors: not the weights that"):
        assemble(folder, weights=other)


@pytest.mark.exhaustive
def test_it_is_what_the_export_writes(folder: Path, tmp_path: Path, demo_weights: Path) -> None:
    """If this fails after a change of the export: python -m longlive_trt.making.demo"""
    from longlive_trt.making.exporting import export

    assemble(folder, weights=demo_weights)
    record = read_export(folder)
    sources = {path.stem: path for path in demo_weights.glob("*.safetensors")}
    fresh = tmp_path / "fresh"
    export(MODEL_FILE, fresh, tokenizer=GRAPHS / "tokenizer.json", check=False, **sources)
    exported = read_export(fresh)
    assert exported.graphs == record.graphs
    # Another version of the exporter may spell the same graph in another way.
    same = record.versions == {name: version(name) for name in record.versions}
    names = record.files if same else [name for name in record.files if "weights" in name]
    assert {n: exported.files[n] for n in names} == {n: record.files[n] for n in names}
