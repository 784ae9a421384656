"""The processes of a Ray that this one started: what they hold, and how busy they are."""

from collections.abc import Iterator
from contextlib import suppress

import psutil

ROLES = ("Gateway", "Host", "ProxyActor", "ServeController")


def memory_mib() -> dict[str, dict[str, float]]:
    """By role and process: what is its own. Pages of files come and go with the machine's memory,
    and so does what it shares with Ray's store.
    """
    found: dict[str, dict[str, float]] = {role: {} for role in ROLES}
    for role, process in _all():
        with suppress(psutil.Error):
            memory = process.memory_info()
            found[role][str(process.pid)] = round((memory.rss - memory.shared) / 2**20, 1)
    return found


class Busyness:
    """From when it is made."""

    def __init__(self) -> None:
        self._before = {process.pid: _seconds(process) for _, process in _all()}

    def shares(self, seconds: float) -> dict[str, list[float]]:
        """Of a core, by role, one for each process that was there all the time."""
        found: dict[str, list[float]] = {role: [] for role in ROLES}
        for role, process in _all():
            if process.pid in self._before:
                used = _seconds(process) - self._before[process.pid]
                found[role].append(round(used / seconds, 3))
        return {role: sorted(shares) for role, shares in found.items()}


def _all() -> Iterator[tuple[str, psutil.Process]]:
    """They are called after what they do at the moment."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            role = next((role for role in ROLES if f":{role}" in line), None)
            if line.startswith("ray::") and role is not None:
                yield role, process


def _seconds(process: psutil.Process) -> float:
    with suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0
