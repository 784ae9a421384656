import pytest

from longlive_trt.demo.training.legs import Clock

READING_S = 0.1
"""Seconds that pass from one look at the clock to the next."""


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leg's seconds are those of a clock that every look moves: as many steps on any machine."""

    def elapsed_s(clock: Clock) -> float:
        looks = vars(clock)
        looks["looks"] = looks.get("looks", 0) + 1
        return READING_S * float(looks["looks"])

    monkeypatch.setattr(Clock, "elapsed_s", property(elapsed_s))
