"""Owners by number: one for each, and what comes after counts."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from longlive_trt.engines.bundles import stores
from longlive_trt.engines.bundles.stores import Store
from longlive_trt.errors import BundleError, UsageError
from longlive_trt.serving.cluster.store.registry import FORMAT, Kept, News, Registry, Status, deed

SESSION = "abcDEF12_-"


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}"


def news(status: Status = "running", **values: object) -> News:
    facts: dict[str, object] = {"seed": 1, "switch": "exact", "restarts": 0, "epoch": 0, "cues": ()}
    return News(FORMAT, status, **{**facts, **values})  # type: ignore[arg-type]


def test_a_number_has_one_owner(url: str) -> None:
    registry = Registry(url)
    registry.require_exclusive()
    claims = [deed(SESSION, 1, f"host-{number}", "0" * 64, "key", 5.0) for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(Registry(url).claim, claims))
    assert won.count(True) == 1
    assert registry.newest(SESSION) == claims[won.index(True)]
    assert not registry.is_superseded(SESSION, 1)
    second = deed(SESSION, 2, "host-9", "0" * 64, "key", 5.0)
    assert registry.claim(second) and registry.claim(second)
    assert registry.newest(SESSION) == second and registry.is_superseded(SESSION, 1)


def test_a_new_owner_begins_with_the_newest_news_before_it(url: str) -> None:
    registry = Registry(url)
    assert registry.newest(SESSION) is None and registry.news(SESSION, 3) is None
    registry.tell(SESSION, 1, news(states=kept(("old", 0, 0))))
    registry.tell(
        SESSION, 2, news(states=kept(("new", 9, 0), ("older", 0, 0)), cues=((1, 0, "ä"),))
    )
    found = registry.news(SESSION, 4)
    assert found is not None and found.state == "new" and found.placed()[0].prompt == "ä"
    # What an owner writes that lost its session is not read.
    registry.tell(SESSION, 4, news(states=kept(("newest", 9, 0))))
    registry.tell(SESSION, 3, news(states=kept(("from the dead", 9, 0))))
    latest = registry.news(SESSION, 4)
    assert latest is not None and latest.state == "newest"
    assert registry.sessions() == [SESSION]
    registry.forget(SESSION)
    assert registry.news(SESSION, 4) is None


def kept(*states: tuple[str, int, int]) -> tuple[Kept, ...]:
    return tuple(Kept(*one) for one in states)


def test_which_state_a_session_goes_on_from() -> None:
    two = news(states=kept(("new", 90, 0), ("old", 60, 0)))
    assert two.usable_state() == "new" and two.usable_state(90) == "new"
    # The newest is of pictures that the viewer did not get.
    assert two.usable_state(89) == "old"
    # A gap costs less than hours that are made again; what is young is made again.
    assert two.usable_state(10) == "old"
    assert news(states=kept(("new", 90, 0))).usable_state(10) is None
    assert news().usable_state() is None
    # The video began anew since.
    assert news(states=kept(("s", 9, 0)), restarts=1).usable_state() is None
    assert news(states=kept(("s", 9, 1), ("t", 9, 0)), restarts=1).usable_state(0) is None


@pytest.mark.parametrize("session", ["../../etc", "a/b", "", "short", "x" * 65, "ä" * 10])
def test_ids_never_become_paths(tmp_path: Path, session: str) -> None:
    with pytest.raises(UsageError, match="not the id of a session"):
        Registry(str(tmp_path)).newest(session)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 1}', '{"format": "one"}', '{"format": 2}']
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "sessions" / SESSION
    folder.mkdir(parents=True)
    (folder / "00000001.owner.json").write_text(text)
    with pytest.raises(BundleError, match=r"00000001\.owner\.json.*begin it anew"):
        Registry(str(tmp_path)).newest(SESSION)


def test_a_store_that_lets_two_create_one_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "create", lambda *_: True)
    with pytest.raises(UsageError, match="sessions could have two owners"):
        Registry(str(tmp_path)).require_exclusive()


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file"):
        Registry(str(tmp_path / "file")).require_exclusive()
    with pytest.raises(UsageError, match="over HTTP"):
        Registry("https://example.invalid/store").require_exclusive()


def test_what_is_not_there_is_no_cause_of_itself(url: str) -> None:
    """It would be a circle, and with its frames all that they hold would wait for a collector."""

    def attempt() -> None:
        raise FileNotFoundError(2, "No such file or directory")

    with pytest.raises(FileNotFoundError) as caught:
        Store(url).patiently("name", attempt)
    assert caught.value.__cause__ is None


def test_a_lost_answer_is_no_lost_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file was created, the word of it was not heard, and the second try finds it there."""
    registry = Registry("memory://lost-answer")
    monkeypatch.setattr(stores, "RETRY_DELAYS_S", (0.0,))
    create = Store.create

    def twice(store: Store, name: str, data: bytes) -> bool:
        create(store, name, data)
        return create(store, name, data)

    monkeypatch.setattr(Store, "create", twice)
    assert registry.claim(deed(SESSION, 1, "host", "0" * 64, "key", 5.0))


def test_files_are_fetched_whole_or_not_at_all(url: str, tmp_path: Path) -> None:
    store, here = Store(url), tmp_path / "here"
    here.write_bytes(b"state")
    store.put(here, "states/one")
    assert store.fetch("states/one", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"state"
    assert not store.fetch("states/two", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    store.delete("states/one")
    store.delete("states/one")
    assert not store.fetch("states/one", tmp_path / "none")
