"""What each way to change the prompt takes, block by block; docs/switching.md shows it for a GPU.

    python -m benchmarks.switch_times BUNDLE --out docs/results/switch_times_h200.json
    python -m benchmarks.switch_modes --table        # takes that file into the page

A block under the old prompt comes before every switch, so that what a switch adds is told from
blocks of the same moment. Blocks come one after the other: nothing hides behind another block.
"""

import platform
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import (
    command,
    parser,
    random_states,
    rounded,
    seeded_noise,
    write_report,
)
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.runtime.bench.lane import blocks_to_fill, longest_session
from longlive_trt.runtime.bench.timing import TRANSFORMER, Position, TimedEngines
from longlive_trt.runtime.prompting.switches import Change, Mixer, SwitchMode
from longlive_trt.runtime.session import Session

REPEATS = {"exact": 9, "partial": 9, "none": 9, "blend:2": 5, "blend:4": 3, "blend:8": 2}
"""A blend has as many blocks to measure as it is long."""
WARM_UP_BLOCKS = 10
RECACHES_TO_WARM_UP = 2
"""The first reserves memory, the second captures the pass."""
PARTS = {"transformer": (TRANSFORMER,), "contexts": ("prompt",)}


@dataclass(frozen=True)
class Stretch:
    """One block: which of the recorder's times are its own, and the host's."""

    before: Position
    after: Position
    wall_ms: float


class Video:
    def __init__(self, engines: TimedEngines, session: Session, seed: int) -> None:
        self._engines, self._session = engines, session
        self._random = np.random.default_rng(seed)
        self._mixer = Mixer(engines.contexts(1))
        self._shown = self._new_states()
        self._take(self._mixer.change_to(self._shown, "none"))

    def plain(self) -> Stretch:
        return self._block(None)

    def switch(self, mode: SwitchMode) -> Iterator[Stretch]:
        """Every block that the change of prompt has a part in."""
        before, self._shown = self._shown, self._new_states()
        yield self._block(lambda: self._change(mode, before))
        while self._mixer.blend is not None:
            yield self._block(self._mixer.go_on)

    def _change(self, mode: SwitchMode, before: Any) -> Change:
        if mode.blend_blocks is None:
            return self._mixer.change_to(self._shown, mode.recache)
        return self._mixer.begin(lambda: before, lambda: self._shown, mode.blend_blocks)

    def _block(self, change: Any) -> Stretch:
        recorder, started = self._engines.recorder, time.perf_counter()
        before = recorder.position()
        if change is not None:
            self._take(change())
        with recorder.timing(TRANSFORMER):
            block = self._session.step()
        _ = block.latents
        return Stretch(before, recorder.position(), (time.perf_counter() - started) * 1e3)

    def _take(self, change: Change) -> None:
        self._session.switch_prompt(change.context, change.recache)

    def _new_states(self) -> Any:
        return random_states(self._engines.bundle.config, self._random)


def measure(engines: TimedEngines, repeats: dict[str, int]) -> dict[str, Any]:
    config, blocks = engines.bundle.config, longest_session(engines.bundle.config)
    frames = None if blocks is None else blocks * config.rollout.frames_per_block
    noise = seeded_noise(config)
    plain: dict[str, list[Stretch]] = defaultdict(list)
    changed: dict[str, list[Stretch]] = defaultdict(list)
    with engines.session(config, noise, total_frames=frames, decode=False) as session:
        video = Video(engines, session, seed=0)
        for _ in range(max(WARM_UP_BLOCKS, blocks_to_fill(session.ring.layout))):
            video.plain()
        for mode, count in repeats.items():
            way = SwitchMode.parse(mode)
            warm_up = 0 if way.recache == "none" else RECACHES_TO_WARM_UP
            for number in range(-warm_up, count):
                alone = video.plain()
                blocks_of_it = list(video.switch(way))
                if number >= 0:
                    plain[mode].append(alone)
                    changed[mode] += blocks_of_it
    durations = engines.recorder.durations_ms()

    def series(stretches: Sequence[Stretch], part: str) -> list[float]:
        if part == "wall":
            return [stretch.wall_ms for stretch in stretches]
        return [
            sum(sum(durations.between(s.before, s.after, label)) for label in PARTS[part])
            for s in stretches
        ]

    return {
        mode: {
            "switches": repeats[mode],
            "blocks": len(changed[mode]),
            **{
                f"added_{part}_ms": added(series(changed[mode], part), series(plain[mode], part))
                for part in (*PARTS, "wall")
            },
            "plain_transformer_ms": rounded(series(plain[mode], "transformer")),
            "transformer_ms": rounded(series(changed[mode], "transformer")),
            "contexts_ms": rounded(series(changed[mode], "contexts")),
            "wall_ms": rounded(series(changed[mode], "wall")),
        }
        for mode in repeats
    }


def added(changed: Sequence[float], plain: Sequence[float]) -> float:
    """To each block, by the medians."""
    return round(float(np.median(changed) - np.median(plain)), 3)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("bundle", type=Path)
    options.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options.add_argument("--once", action="store_true", help="each switch once, to see it work")
    chosen = options.parse_args()
    bundle = open_bundle(chosen.bundle)
    started = time.perf_counter()
    with TimedEngines(bundle, chosen.device) as engines:
        modes = measure(engines, dict.fromkeys(REPEATS, 1) if chosen.once else REPEATS)
        where = engines.gpu.facts.name if engines.on_gpu else platform.machine()
    for mode, row in modes.items():
        parts = (f"{key[6:-3]} {row[key]:+.2f}" for key in row if key.startswith("added"))
        print(f"{mode:8s} adds to each of {row['blocks']} blocks, in ms: {', '.join(parts)}")
    report = {
        "command": command(),
        "machine": where,
        "model": bundle.config.name,
        "precision": bundle.manifest.precision,
        "bundle_key": bundle.manifest.key,
        "duration_s": round(time.perf_counter() - started, 1),
        "modes": modes,
    }
    write_report(report, chosen.out)


if __name__ == "__main__":
    main()
