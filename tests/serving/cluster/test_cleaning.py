"""What goes from the store, and that nothing goes of a session that lives."""

import os
import time
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from longlive_trt.serving.cluster.store.cleaning import Cleaned, Cleaner
from longlive_trt.serving.cluster.store.registry import FORMAT, Kept, News, Registry, Status, deed
from longlive_trt.serving.cluster.videos.orders import Order, Orders

DAY_S = 24 * 3600.0
NOW_S = time.time()


class Store:
    """A folder with sessions, states and videos of any age."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry, self.orders = Registry(str(folder)), Orders(str(folder))

    def session(
        self,
        name: str,
        status: Status = "running",
        *,
        host: str = "gone",
        days: float,
        states: tuple[str, ...] = (),
        fence: int = 1,
    ) -> str:
        claim = deed(name, fence, host, "0" * 64, "key", 5.0)
        written_s = NOW_S - days * DAY_S
        assert self.registry.claim(type(claim)(**{**claim.__dict__, "claimed_s": written_s}))
        kept = tuple(Kept(state, 9, 0) for state in states)
        news = News(FORMAT, status, 1, "exact", 0, 0, (), None, kept, None, written_s)
        self.registry.tell(name, fence, news)
        for state in states:
            self.state(state, days)
        return name

    def state(self, name: str, days: float) -> str:
        for suffix in (".state", ".json"):
            self.file(f"states/{name}{suffix}", days)
        return name

    def file(self, name: str, days: float) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        os.utime(path, (NOW_S - days * DAY_S,) * 2)
        return path

    def order(self, days: float) -> str:
        order = Order(
            prompt="x",
            seed=1,
            switch="exact",
            seconds=1,
            frames=16,
            model="m",
            size="64x48",
            created_s=NOW_S - days * DAY_S,
        )
        self.orders.write(order)
        return order.id

    def clean(self, hosts: tuple[str, ...] = ("alive",)) -> Cleaned:
        return Cleaner(str(self.folder), 7, lambda: hosts).clean()

    @property
    def names(self) -> set[str]:
        """Of sessions, states and videos."""
        return {path.name.partition(".")[0] for path in self.folder.glob("*/*")}


def state(number: int) -> str:
    return f"{number:032x}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_what_is_over_goes_after_some_days(store: Store) -> None:
    store.session("over-old-1", "ended", days=8, states=(state(1),))
    store.session("over-young", "ended", days=6, states=(state(2),))
    assert store.clean() == Cleaned(sessions=1, states=1)
    assert store.names == {"over-young", state(2)}
    assert store.clean() == Cleaned()


def test_nothing_of_a_living_session_goes(store: Store) -> None:
    """Whatever its age: its host is there, or may be back, or somebody may come back to it."""
    store.session("runs-long-", host="alive", days=400, states=(state(1), state(2)))
    store.session("lost-young", host="gone", days=6, states=(state(3),))
    store.session("moves-now-", "moving", host="gone", days=1, states=(state(4),))
    before = {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}
    assert store.clean() == Cleaned()
    assert {path: path.read_bytes() for path in before} == before


def test_a_session_that_everybody_left_goes(store: Store) -> None:
    store.session("lost-old-1", host="gone", days=8, states=(state(1),))
    assert store.clean() == Cleaned(sessions=1, states=1)
    assert store.names == set()


def test_states_of_owners_before_the_newest_go_and_their_numbers_stay(store: Store) -> None:
    store.session("moved-long", host="gone", days=9, states=(state(1), state(2)))
    store.session("moved-long", host="alive", days=8, states=(state(2),), fence=2)
    assert store.clean() == Cleaned(states=1)
    assert store.names == {"moved-long", state(2)}
    assert len(store.registry.files("moved-long")) == 4
    assert store.registry.is_superseded("moved-long", 1)


def test_an_owner_that_has_told_nothing_yet_lives_by_the_news_before_it(store: Store) -> None:
    store.session("moved-now-", host="gone", days=9, states=(state(1),))
    assert store.registry.claim(deed("moved-now-", 2, "alive", "0" * 64, "key", 5.0))
    assert store.clean() == Cleaned()
    assert store.names == {"moved-now-", state(1)}


def test_states_that_callers_saved_go_too(store: Store) -> None:
    store.state(state(1), days=8)
    store.state(state(2), days=6)
    store.file(f"states/{state(3)}.state", days=8)
    assert store.clean() == Cleaned(states=2)
    assert store.names == {state(2)}


def test_videos_go_with_what_made_them(store: Store) -> None:
    old, young, queued, waits = (store.order(days) for days in (8, 6, 8, 1))
    store.session(old, "ended", days=8)
    store.session(young, "ended", days=6)
    for video in (old, young):
        store.file(f"videos/{video}/content.mp4", days=8)
    assert store.clean() == Cleaned(sessions=1, videos=2)
    assert store.clean() == Cleaned()
    assert set(store.orders.ids()) == {young, waits} and queued not in store.names
    assert store.orders.content_bytes(young) == 1


def test_a_session_that_cannot_be_read_keeps_all_states(store: Store) -> None:
    store.session("damaged-01", host="alive", days=8, states=(state(1),))
    (store.folder / "sessions" / "damaged-01" / "00000001.news.json").write_text("{")
    store.state(state(2), days=8)
    assert store.clean() == Cleaned()
    assert store.names == {"damaged-01", state(1), state(2)}


def test_leftovers_of_starts_and_news_without_an_owner(store: Store) -> None:
    store.file("probes/0123", days=2)
    store.file("probes/4567", days=0.5)
    store.file("sessions/forgotten1/00000001.news.json", days=8)
    store.file("sessions/forgotten2/00000001.news.json", days=6)
    assert store.clean() == Cleaned(sessions=1, others=1)
    assert store.names == {"4567", "forgotten2"}


def test_one_gateway_cleans_at_a_time(tmp_path: Path) -> None:
    def cleaner(now_s: float) -> Cleaner:
        return Cleaner(str(tmp_path), 7, lambda: ["host"], now=lambda: now_s)

    assert [cleaner(5.0).take_turn() for _ in range(3)] == [True, False, False]
    assert cleaner(4000.0).take_turn()
    assert not Cleaner(str(tmp_path), 7, list).knows_hosts


def test_a_store_in_memory_knows_how_old_its_files_are() -> None:
    url = "memory://cleaning"
    registry = Registry(url)
    claim = deed("lost-old-1", 1, "gone", "0" * 64, "key", 5.0)
    assert registry.claim(claim)
    later = Cleaner(url, 7, lambda: ["host"], now=lambda: time.time() + 8 * DAY_S)
    assert later.clean() == Cleaned(sessions=1)
    assert registry.newest("lost-old-1") is None
