"""One field after the other of every format, missing or of another kind."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.support import mutating
from tests.robustness.support.formats import FORMATS, Format
from tests.robustness.support.hostile import VALUES
from tests.robustness.support.running import fail_unless_clean, faults, inventory
from tests.robustness.support.samples import Samples

pytestmark = pytest.mark.exhaustive

_DEPTH = 3
_EACH = 20
"""Changes of a format that are tried here; random ones are in `make test-all`."""


def _changes(structure: Any) -> Iterator[tuple[str, Any]]:
    paths = [p for p in mutating.places(structure) if 0 < len(p) <= _DEPTH]
    values = list(VALUES.items())
    for number, path in enumerate(paths):
        name = ".".join(map(str, path))[:60]
        yield f"no {name}", mutating.removed(structure, path)
        kind, value = values[number % len(values)]
        yield f"{name} is {kind}", mutating.replaced(structure, path, copy.deepcopy(value))


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "archive"])
def test_changed_fields(name: str, samples: Samples, here: Path) -> None:
    format_ = FORMATS[name]
    structure = format_.read(format_.sample(samples))
    changes = list(_changes(structure))
    step = max(1, len(changes) // _EACH)
    before = inventory(samples.bundle.parent)
    found = []
    for number, (what, changed) in enumerate(changes[::step]):
        folder = here / str(number)
        folder.mkdir()
        found += [f"{what}: {fault}" for fault in _faults_of(format_, samples, folder, changed)]
    fail_unless_clean(found)
    assert inventory(samples.bundle.parent) == before


def _faults_of(format_: Format, samples: Samples, folder: Path, changed: Any) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        target = format_.prepare(samples, folder)
        format_.write(format_.sample(samples), changed, target)
        return faults(format_.command(samples, folder))
