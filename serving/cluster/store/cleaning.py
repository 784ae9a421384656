"""What goes from the store by itself: whatever nobody can come back to, after some days.

A session is over once its news say so. One that nobody ended is given up when nothing was heard of
it for as long, which is longer than its token counts and than any two saves are apart, and when its
host is not one of the fleet's any more. Its states go with it, and so do states that no session's
newest news name: those that callers saved, and those of owners before the newest. Of a session that
lives nothing goes, not even how its owners are numbered.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from longlive_trt.engines.bundles.stores import Store
from longlive_trt.errors import LongLiveError
from longlive_trt.serving.cluster.store.registry import PROBES, Deed, News, Registry, is_session_id
from longlive_trt.serving.cluster.store.states import STATES, state_names
from longlive_trt.serving.cluster.videos.orders import Orders, is_video_id

logger = logging.getLogger(__name__)

ROUND_S = 3600.0
_DAY_S = 24 * 3600.0
_ROUNDS = "rounds"


@dataclass
class Cleaned:
    sessions: int = 0
    states: int = 0
    videos: int = 0
    others: int = 0


class Cleaner:
    """Every call waits for the store: not to be made on an event loop."""

    def __init__(
        self,
        url: str,
        keep_days: float,
        hosts: Callable[[], Iterable[str]],
        now: Callable[[], float] = time.time,
    ) -> None:
        """``hosts`` are those of the fleet at this moment."""
        self._store, self._registry, self._orders = Store(url), Registry(url), Orders(url)
        self._keep_s, self._hosts, self._now = keep_days * _DAY_S, hosts, now

    @property
    def knows_hosts(self) -> bool:
        """A gateway that has just begun does not."""
        return any(True for _ in self._hosts())

    def take_turn(self) -> bool:
        """Whether this round is ours: of all gateways one cleans."""
        number = int(self._now() // ROUND_S)
        return self._store.create(f"{_ROUNDS}/{number}", b"")

    def clean(self) -> Cleaned:
        cleaned, named, hosts = Cleaned(), set[str](), set(self._hosts())
        for session in filter(is_session_id, self._registry.sessions()):
            try:
                deed, news = self._standing(session)
            except LongLiveError as error:
                # Nobody knows which states are its own: none goes.
                logger.warning("not cleaned", extra={"session": session, "why": str(error)})
                return cleaned
            if self._is_gone(session, deed, news, hosts):
                self._forget(session, cleaned)
            elif news is not None:
                named |= {kept.id for kept in news.states}
        self._forget_orders(cleaned)
        self._forget_states(named, cleaned)
        self._forget_others(cleaned)
        return cleaned

    def _standing(self, session: str) -> tuple[Deed | None, News | None]:
        deed = self._registry.newest(session)
        return deed, None if deed is None else self._registry.news(session, deed.fence)

    def _is_gone(self, session: str, deed: Deed | None, news: News | None, hosts: set[str]) -> bool:
        if deed is None:
            return self._is_old(self._written_s(self._registry.files(session)))
        if not self._is_old(max(deed.claimed_s, news.written_s if news is not None else 0.0)):
            return False
        is_over = news is not None and news.status == "ended"
        return is_over or deed.host not in hosts

    def _forget(self, session: str, cleaned: Cleaned) -> None:
        self._registry.forget(session)
        cleaned.sessions += 1
        if is_video_id(session):
            self._orders.delete(session)
            cleaned.videos += 1

    def _forget_orders(self, cleaned: Cleaned) -> None:
        """Those that no host ever took."""
        for video in self._orders.ids():
            order = self._orders.read(video)
            is_old = order is None or self._is_old(order.created_s)
            if is_old and self._registry.newest(video) is None:
                self._orders.delete(video)
                cleaned.videos += 1

    def _forget_states(self, named: set[str], cleaned: Cleaned) -> None:
        found = {name.partition(".")[0] for name in self._store.names(STATES)}
        for state in sorted(found - named):
            names = state_names(state)
            if self._is_old(self._written_s(names)):
                for name in names:
                    self._store.delete(name)
                cleaned.states += 1

    def _forget_others(self, cleaned: Cleaned) -> None:
        """What a start or a round left."""
        for folder in (PROBES, _ROUNDS):
            for name in self._store.names(folder):
                written_s = self._store.written_s(f"{folder}/{name}")
                if written_s is not None and self._now() - written_s > _DAY_S:
                    self._store.delete(f"{folder}/{name}")
                    cleaned.others += 1

    def _written_s(self, names: Iterable[str]) -> float:
        """The newest of some files."""
        return max((self._store.written_s(name) or 0.0 for name in names), default=0.0)

    def _is_old(self, heard_s: float) -> bool:
        return self._now() - heard_s > self._keep_s


async def clean_forever(cleaner: Cleaner) -> None:
    """Every gateway asks whether it is its turn."""
    while True:
        await asyncio.sleep(ROUND_S * random.uniform(0.5, 1.0))  # noqa: S311
        try:
            if cleaner.knows_hosts and await asyncio.to_thread(cleaner.take_turn):
                cleaned = await asyncio.to_thread(cleaner.clean)
                logger.info("store cleaned", extra=asdict(cleaned))
        except (LongLiveError, OSError) as error:
            logger.warning("store not cleaned", extra={"why": str(error)})
