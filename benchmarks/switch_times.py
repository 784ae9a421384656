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
    rounded,
    seeded_noise,
    write_report,
)
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.runtime.bench.lane import blocks_to_fill, longest_session
from longlive_trt.runtime.bench.timing import TRANSFORMER, Position, TimedEngines
from longlive_trt.runtime.prompting.switches import SwitchMode
from longlive_trt.runtime.prompting.track import PromptTrack, RecordedPrompts
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
    def __init__(self, timed: TimedEngines, session: Session, seed: int) -> None:
        self._recorder, self._session = timed.recorder, session
        self._text = timed.engines.bundle.config.transformer
        self._random = np.random.default_rng(seed)
        self._states: dict[str, Any] = {}
        prompts = RecordedPrompts(timed.engines.contexts(1), self._states)
        self._track = PromptTrack(prompts, mode=SwitchMode("none"))
        self._ask(None)

    def plain(self) -> Stretch:
        return self._block()

    def switch(self, mode: SwitchMode) -> Iterator[Stretch]:
        """Every block that the change of prompt has a part in."""
        self._ask(mode)
        yield self._block()
        while self._track.blend is not None:
            yield self._block()

    def _ask(self, mode: SwitchMode | None) -> None:
        shape = (1, self._text.text_len, self._text.text_dim)
        name = f"prompt {len(self._states)}"
        self._states[name] = self._random.standard_normal(shape, np.float32)
        self._track.ask(name, mode)

    def _block(self) -> Stretch:
        started, before = time.perf_counter(), self._recorder.position()
        change = self._track.due(self._session.ring.next_frame)
        if change is not None:
            self._session.switch_prompt(*change)
        with self._recorder.timing(TRANSFORMER):
            block = self._session.step()
        _ = block.latents
        return Stretch(before, self._recorder.position(), (time.perf_counter() - started) * 1e3)


def measure(timed: TimedEngines, repeats: dict[str, int]) -> dict[str, Any]:
    engines = timed.engines
    config, blocks = engines.bundle.config, longest_session(engines.bundle.config)
    frames = None if blocks is None else blocks * config.rollout.frames_per_block
    noise = seeded_noise(config)
    plain: dict[str, list[Stretch]] = defaultdict(list)
    changed: dict[str, list[Stretch]] = defaultdict(list)
    with engines.session(config, noise, total_frames=frames, decode=False) as session:
        video = Video(timed, session, seed=0)
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
    durations = timed.recorder.durations_ms()

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
    with TimedEngines(bundle, chosen.device) as timed:
        modes = measure(timed, dict.fromkeys(REPEATS, 1) if chosen.once else REPEATS)
        engines = timed.engines
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
