from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longlive_trt.demo.shipped import weights, write_sums
from longlive_trt.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(3)}, tmp_path / "net.safetensors")
    write_sums(tmp_path)
    return tmp_path


def test_whole_weights_are_read(folder: Path) -> None:
    assert torch.equal(weights("net", folder)["a"], torch.ones(3))


def test_altered_weights_are_refused(folder: Path) -> None:
    save_file({"a": torch.zeros(3)}, folder / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"net\.safetensors: not the weights that"):
        weights("net", folder)


def test_missing_weights_are_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"other\.safetensors: no such weights"):
        weights("other", folder)


def test_every_shipped_file_matches_its_hash() -> None:
    assert weights("vae")
