"""What all tests of the runtime share."""

import gc
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from longlive_trt.engines.loader import load_engine
from longlive_trt.loading import load
from longlive_trt.runtime import assembly
from longlive_trt.runtime.pipeline import Pipeline


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models as small as these are slower on more threads than on one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "load_engine", partial(load_engine, threads=1))
        yield


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def pipeline(one_thread: None, video_bundle: Path) -> Iterator[Pipeline]:
    """Of an exported transformer, with quick stand-ins for the VAE and the text encoder."""
    with load(video_bundle) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def few_objects() -> Iterator[None]:
    """Collections of garbage look at new objects only: torch alone brings a million others."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
