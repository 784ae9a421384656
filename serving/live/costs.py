"""How long things take here, learned while they are done."""

import threading
from dataclasses import dataclass, field

_WEIGHT = 0.3


@dataclass
class Costs:
    """Moving averages in seconds, by stage; safe for several threads."""

    _averages: dict[str, float] = field(default_factory=dict)
    _latest: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def observe(self, stage: str, seconds: float) -> None:
        with self._lock:
            before = self._averages.get(stage, seconds)
            self._averages[stage] = before + _WEIGHT * (seconds - before)
            self._latest[stage] = seconds

    def of(self, stage: str, default: float = 0.0) -> float:
        with self._lock:
            return self._averages.get(stage, default)

    def latest(self) -> dict[str, float]:
        with self._lock:
            return dict(self._latest)

    def switch_s(self) -> float:
        """From a new prompt to its first block's pictures."""
        return self.of("recache") + self.block_s() + self.of("decode") / 2

    def block_s(self) -> float:
        """Until the next one can begin."""
        return self.of("cycle", 0.3)
