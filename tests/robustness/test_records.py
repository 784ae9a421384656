"""A fleet's records in its store: whatever became of one, it is read whole or refused in a line."""

import json
import random
from pathlib import Path

import pytest

from longlive_trt.errors import LongLiveError
from longlive_trt.serving.cluster.store.registry import Deed, Kept, News, Registry, deed
from tests.robustness.support.mutating import changed_bytes, changed_structure

SESSION = "session-0001"
NEWS = News(
    *(1, "running", 7, "exact", 0, 2),
    cues=((1, 0, "a cat"), (2, 3, "a dog")),
    end=9,
    states=(Kept("state-1", 12, 0),),
    message="moved",
)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(str(tmp_path / "store"))
    assert registry.claim(deed(SESSION, 1, "host-1", "ab" * 32, "key", 1.5))
    registry.tell(SESSION, 1, NEWS)
    return registry


@pytest.mark.parametrize("kind", [Deed, News])
def test_changed_records(kind: type, registry: Registry, tmp_path: Path) -> None:
    name = "owner" if kind is Deed else "news"
    path = tmp_path / "store" / "sessions" / SESSION / f"00000001.{name}.json"
    sound = path.read_bytes()
    refused = 0
    for seed in range(400):
        chance = random.Random(seed)
        if chance.random() < 0.7:
            path.write_text(json.dumps(changed_structure(json.loads(sound), chance)))
        else:
            path.write_bytes(changed_bytes(sound, chance))
        try:
            record = registry.newest(SESSION) if kind is Deed else registry.news(SESSION, 1)
            assert isinstance(record, kind), seed
            if isinstance(record, News):
                record.placed()
                record.usable_state(0)
        except LongLiveError as error:
            refused += 1
            assert str(path) in str(error) and str(error).isprintable(), seed
    assert refused > 100
