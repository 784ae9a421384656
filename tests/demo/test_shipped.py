from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from longlive_trt.demo.geometry import WEIGHTS
from longlive_trt.demo.shipped import SUMS, weights_path, write_sums
from longlive_trt.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "net.safetensors")
    write_sums(tmp_path)
    return tmp_path


def test_whole_weights_are_found(folder: Path) -> None:
    assert load_file(weights_path("net", folder))["a"].tolist() == [1, 1, 1]


def test_altered_weights_are_refused(folder: Path) -> None:
    save_file({"a": np.zeros(3, np.float32)}, folder / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"net\.safetensors: not the weights that"):
        weights_path("net", folder)


def test_missing_weights_are_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"other\.safetensors: no such weights"):
        weights_path("other", folder)


def test_every_shipped_file_matches_its_hash() -> None:
    names = [Path(line.split()[1]).stem for line in (WEIGHTS / SUMS).read_text().splitlines()]
    assert "vae" in names
    assert [weights_path(name).stem for name in names] == names
