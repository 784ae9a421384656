"""Half an hour of coming and going under a real Ray: 4 hosts of 2 slots, drains, and two kills.

    python -m benchmarks.fleet.churn --minutes 30 --out docs/results/fleet_churn_cpu.json

Viewers come, type, and leave at random; every two minutes a host is emptied and let in again, and
twice a host's process is killed. Every process's memory is read twice a minute. Hosts keep what
they recorded of a session for a quarter of an hour, so memory is to be flat from then on. With
``--speed 4 --kept-s 120`` videos and viewers are four times as fast and recordings go after two
minutes: what is flat after 30 minutes can be seen after 8.
"""

import asyncio
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from benchmarks.fleet.painter import Painter
from benchmarks.fleet.processes import ROLES, memory_mib
from benchmarks.fleet.stage import HOSTS, SLOTS, Trial
from benchmarks.fleet.viewer import Viewer
from benchmarks.harness import command, cpu_name, parser, percentiles, write_report
from longlive_trt.serving.cluster.on_ray.running import deploy, free_port, started
from longlive_trt.serving.cluster.placement import Scaling
from longlive_trt.serving.cluster.settings import FleetSettings
from longlive_trt.serving.settings import Settings

SAMPLE_EVERY_S = 30.0
DRAIN_EVERY_S = 120.0
_MARGIN_S = 60.0
"""After what is kept of the first sessions has gone."""
_FPS = 16
_COMERS = 9
"""One more than there are slots: somebody nearly always waits."""
_PATIENCE_S = 300.0


@dataclass
class Churn:
    trial: Trial
    minutes: float
    speed: float
    random: random.Random
    sessions: Counter[str] = field(default_factory=Counter)
    pauses_s: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    on_sample: Callable[[], None] = lambda: None
    begun: float = field(default_factory=time.monotonic)

    @property
    def now_s(self) -> float:
        return time.monotonic() - self.begun

    @property
    def is_over(self) -> bool:
        return self.now_s > self.minutes * 60

    async def run(self) -> None:
        await asyncio.gather(
            *(self._come_and_go(number) for number in range(_COMERS)),
            self._sample(),
            self._drain(),
            self._kill(),
        )

    async def _come_and_go(self, number: int) -> None:
        await asyncio.sleep(number)
        while not self.is_over:
            seed = self.random.randrange(1 << 31)
            viewer = Viewer(self.trial.port, seed, "a red car in the city")
            watching = asyncio.create_task(viewer.watch())
            try:
                await self._visit(viewer)
                await watching
            except TimeoutError:
                watching.cancel()
                self.faults["a session did not begin, or did not end"] += 1
            self._count(viewer)

    async def _visit(self, viewer: Viewer) -> None:
        asked = time.monotonic()
        await asyncio.wait_for(viewer.running.wait(), _PATIENCE_S)
        self.waits_s.append(time.monotonic() - asked)
        await self._use(viewer, self.random.uniform(5, 60) / self.speed)
        await viewer.stop()

    async def _use(self, viewer: Viewer, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and viewer.done is None:
            await asyncio.sleep(self.random.uniform(1, 6) / self.speed)
            try:
                await viewer.send("session.interaction", prompt=f"prompt {self.random.random()}")
            except Exception as error:  # the socket is between two gateways
                self.faults[type(error).__name__] += 1

    def _count(self, viewer: Viewer) -> None:
        done = viewer.done or {}
        self.sessions["begun"] += 1
        self.sessions[f"ended: {done.get('reason')}"] += 1
        self.sessions["moved"] += bool(viewer.seen.moves)
        self.sessions["moves"] += len(viewer.seen.moves)
        self.sessions["pictures lost"] += viewer.seen.gaps
        self.sessions["blocks"] += viewer.seen.blocks
        self.pauses_s += [move["after_s"] for move in viewer.seen.moves]
        self.faults.update(viewer.seen.faults)

    async def _sample(self) -> None:
        while not self.is_over:
            self.samples.append({"at_s": round(self.now_s), **memory_mib()})
            self.on_sample()
            await asyncio.sleep(SAMPLE_EVERY_S)

    async def _drain(self) -> None:
        while self.now_s + DRAIN_EVERY_S < self.minutes * 60:
            await asyncio.sleep(DRAIN_EVERY_S)
            host = self.random.choice(await self.trial.hosts())["name"]
            path = f"/v1/admin/hosts/{host}/drain"
            for part in (path, f"{path}?undo=true"):
                try:
                    await asyncio.to_thread(self.trial.ask, "POST", part)
                except OSError as error:
                    self.faults[f"drain: {error}"] += 1
                await asyncio.sleep(5)

    async def _kill(self) -> None:
        for part in (1 / 6, 1 / 3):
            await asyncio.sleep(max(0.0, part * self.minutes * 60 - self.now_s))
            host = self.random.choice(await self.trial.hosts())
            os.kill(int(host["node"].rpartition(":")[2]), signal.SIGKILL)
            self.kills += 1

    def report(self) -> dict[str, Any]:
        kept_s = self.trial.settings.kept_s
        settled = [one for one in self.samples if one["at_s"] >= kept_s + _MARGIN_S]
        return {
            "speed": self.speed,
            "kept_s": kept_s,
            "minutes": round(self.now_s / 60, 1),
            "kills": self.kills,
            "sessions": dict(self.sessions),
            "first_wait_s": percentiles(self.waits_s, (50, 95)) if self.waits_s else None,
            "move_pause_s": percentiles(self.pauses_s, (50, 95)) if self.pauses_s else None,
            "faults": dict(self.faults),
            "settled_s": kept_s + _MARGIN_S,
            "growth_mib": _growth(settled),
            "memory_mib": self.samples,
        }


def _growth(samples: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By role and process, the last third of the samples against the first: medians."""
    third = len(samples) // 3
    if not third:
        return {}
    grown: dict[str, dict[str, float]] = {}
    for role in ROLES:
        alive = set(samples[0][role]) & set(samples[-1][role])
        grown[role] = {
            pid: round(
                _median([one[role][pid] for one in samples[-third:] if pid in one[role]])
                - _median([one[role][pid] for one in samples[:third] if pid in one[role]]),
                1,
            )
            for pid in sorted(alive)
        }
    return grown


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=30)
    options.add_argument("--speed", type=float, default=1, help="of videos and their viewers")
    options.add_argument(
        "--kept-s", type=float, default=Settings.kept_s, help="how long recordings stay"
    )
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(sessions=SLOTS, kept_s=chosen.kept_s)
        load = partial(Painter, fps=round(_FPS * chosen.speed))
        fleet = FleetSettings(
            store=folder, save_every_s=5, scaling=Scaling(HOSTS, HOSTS), grace_s=60
        )
        port = free_port(replace(settings, port=0))
        with started(settings, fleet, port):
            deploy(settings, fleet, load)
            trial = Trial(port, settings, fleet, load, keep=False)
            churn = Churn(trial, chosen.minutes, chosen.speed, random.Random(1))  # noqa: S311
            churn.on_sample = lambda: write_report(_report(churn), chosen.out)
            asyncio.run(_run(churn))
        write_report(_report(churn), chosen.out)
        print(json.dumps({**_report(churn), "memory_mib": None}, indent=1))


def _report(churn: Churn) -> dict[str, Any]:
    return {
        "command": command(),
        "machine": cpu_name(),
        "model": "a painter in a model's place",
        "hosts": HOSTS,
        "slots_per_host": SLOTS,
        **churn.report(),
    }


async def _run(churn: Churn) -> None:
    await churn.trial.until(lambda hosts: len(hosts) == HOSTS, 60)
    churn.begun = time.monotonic()
    await churn.run()


if __name__ == "__main__":
    main()
