"""Random changes of every format, by the thousand: LONGLIVE_MUTATIONS says how many in all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.robustness.support.formats import FORMATS
from tests.robustness.support.samples import Samples

ROOT = Path(__file__).resolve().parents[2]
COUNT = int(os.environ.get("LONGLIVE_MUTATIONS", "700"))
SEED = int(os.environ.get("LONGLIVE_MUTATIONS_SEED", "0"))


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FORMATS)
def test_mutations(name: str, samples: Samples) -> None:
    each = -(-COUNT // len(FORMATS))
    arguments = [str(samples.bundle.parent), name, str(SEED), str(each)]
    process = subprocess.run(
        [sys.executable, "-m", "tests.robustness.support.mutator", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-6000:] + process.stderr[-3000:]
