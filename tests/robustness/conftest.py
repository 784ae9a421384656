"""Samples of every format, and a folder of one's own for what a case makes of them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.robustness.support.samples import Samples, make_samples


@pytest.fixture(scope="session")
def samples(
    make_once: Callable[..., Path],
    video_bundle: Path,
    lora_ready_bundle: Callable[[str], Path],
    mini_bundle: Callable[[str], Path],
) -> Samples:
    export = mini_bundle("relative").with_name("mini-relative-export")
    adapted = lora_ready_bundle("fp32")
    return Samples.in_folder(
        make_once("samples", lambda path: make_samples(path, video_bundle, adapted, export))
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path
