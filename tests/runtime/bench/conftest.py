"""What tests of the bench's results share."""

from pathlib import Path

import pytest

from longlive_trt.configs import load_config
from longlive_trt.engines.bundles.bundle import Bundle
from tests.runtime.bench.samples import bundle_of


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return bundle_of(load_config("tiny"), tmp_path / "bundle")
