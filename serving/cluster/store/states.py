"""Saved states in the fleet's store: saved by one host, fetched by another."""

import re
import threading
from collections import Counter
from pathlib import Path

from longlive_trt.engines.bundles.stores import Store
from longlive_trt.serving.live.kept.states import States
from longlive_trt.serving.live.recipe import SavedVideo
from longlive_trt.serving.problems import ProblemError
from longlive_trt.serving.settings import Limits

STATES = "states"
_REMEMBERED = 1000
_ID = re.compile(r"[0-9a-f]{32}")


class FleetStates(States):
    """The folder holds what is on its way; everything else is in the store."""

    def __init__(self, folder: Path, limits: Limits, store: Store) -> None:
        super().__init__(folder, most=limits.states, most_bytes=limits.states_bytes)
        self._store = store
        self._readers = Counter[str]()
        self._lock = threading.Lock()
        self.last_bytes = 0
        self.blocks: dict[str, int] = {}
        """Of states that were just saved: the first block that is to be made after each."""

    def keep(self, saved: SavedVideo) -> str:
        """Its id, once it is in the store; the list beside it makes it whole, and goes last."""
        saved.write()
        beside = saved.path.with_suffix(".json")
        try:
            self.last_bytes = saved.path.stat().st_size
            self._store.put(saved.path, _name(saved.path.name))
            self._store.put(beside, _name(beside.name))
        finally:
            saved.path.unlink(missing_ok=True)
            beside.unlink(missing_ok=True)
        self.blocks[saved.path.stem] = saved.block
        if len(self.blocks) > _REMEMBERED:
            del self.blocks[next(iter(self.blocks))]
        return saved.path.stem

    def fetch(self, state_id: str) -> None:
        """Bring a state here, for :meth:`find`."""
        paths = self._paths(state_id)
        with self._lock:
            self._readers[state_id] += 1
        is_here = False
        try:
            is_here = all(self._store.fetch(_name(path.name), path) for path in paths)
        finally:
            if not is_here:
                self.drop(state_id)
        if not is_here:
            raise ProblemError(
                "not_found", "There is no such saved state in the store, or it was too old."
            )

    def drop(self, state_id: str) -> None:
        """What was fetched: a video that was opened has read it. Others may have yet to."""
        with self._lock:
            self._readers[state_id] -= 1
            if self._readers[state_id] > 0:
                return
            del self._readers[state_id]
            for path in self._paths(state_id):
                path.unlink(missing_ok=True)

    def delete(self, state_id: str) -> None:
        """From the store."""
        for name in state_names(state_id):
            self._store.delete(name)

    def _paths(self, state_id: str) -> tuple[Path, Path]:
        if _ID.fullmatch(state_id) is None:
            raise ProblemError("not_found", "That is not the id of a saved state.")
        state = self._folder / f"{state_id}.state"
        return state, state.with_suffix(".json")


def state_names(state_id: str) -> tuple[str, str]:
    """In the store, in the order in which they go: no half of a state is to count as whole."""
    return _name(f"{state_id}.json"), _name(f"{state_id}.state")


def _name(file: str) -> str:
    return f"{STATES}/{file}"
