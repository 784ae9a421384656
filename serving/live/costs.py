"""How long things take here, learned while they are done."""

import threading
from dataclasses import dataclass, field

_WEIGHT = 0.3


@dataclass
class Costs:
    """Moving averages in seconds, by stage; safe for several threads."""

    _averages: dict[str, float] = field(default_factory=dict)
    _guesses: dict[str, float] = field(default_factory=dict)
    _latest: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def observe(self, stage: str, seconds: float) -> None:
        with self._lock:
            before = self._averages.get(stage, seconds)
            self._averages[stage] = before + _WEIGHT * (seconds - before)
            self._latest[stage] = seconds

    def guess(self, stage: str, seconds: float) -> None:
        """What counts until it is observed: a video's first block takes longer than any other."""
        with self._lock:
            self._guesses[stage] = self._latest[stage] = seconds

    def of(self, stage: str, default: float = 0.0) -> float:
        with self._lock:
            return self._averages.get(stage, self._guesses.get(stage, default))

    def latest(self) -> dict[str, float]:
        with self._lock:
            return dict(self._latest)

    def switch_s(self) -> float:
        """From a new prompt to its first block's pictures."""
        return self.turn_s(is_switch=True) + self.of("decode")

    def turn_s(self, *, is_switch: bool) -> float:
        """Until the next block can begin; before any switch was seen, half a block is added."""
        block_s = self.block_s()
        return block_s + (self.of("recache", block_s / 2) if is_switch else 0.0)

    def block_s(self) -> float:
        """Of a block without a new prompt."""
        return self.of("cycle", 0.3)
