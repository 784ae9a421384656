"""What each way to change the prompt takes, block by block; docs/switching.md shows it for a GPU.

    python benchmarks/switch_times.py BUNDLE --out docs/results/switch_times_h200.json
    python benchmarks/switch_modes.py --table        # takes that file into the page

A block under the old prompt comes before every switch, so that what a switch adds is told from
blocks of the same moment. Blocks come one after the other: nothing hides behind another block.
"""

import argparse
import platform
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.runtime.bench.lane import blocks_to_fill, longest_session
from longlive_trt.runtime.bench.record import to_json
from longlive_trt.runtime.bench.timing import TRANSFORMER, Position, TimedEngines
from longlive_trt.runtime.noise import SeededNoise
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
    shape = (1, config.rollout.frames_per_block, *config.latent_shape)
    noise = SeededNoise(0, shape, len(config.rollout.steps))
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


def rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--once", action="store_true", help="each switch once, to see it work")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    started = time.perf_counter()
    with TimedEngines(bundle, options.device) as timed:
        modes = measure(timed, dict.fromkeys(REPEATS, 1) if options.once else REPEATS)
        engines = timed.engines
        where = engines.gpu.facts.name if engines.on_gpu else platform.machine()
    for mode, row in modes.items():
        told = (f"{key[6:-3]} {row[key]:+.2f}" for key in row if key.startswith("added"))
        print(f"{mode:8s} adds to each of {row['blocks']} blocks, in ms: {', '.join(told)}")
    report = {
        "command": shlex.join(["python", "benchmarks/switch_times.py", *sys.argv[1:]]),
        "machine": where,
        "model": bundle.config.name,
        "precision": bundle.manifest.precision,
        "bundle_key": bundle.manifest.key,
        "duration_s": round(time.perf_counter() - started, 1),
        "modes": modes,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(to_json(report), encoding="utf-8")


if __name__ == "__main__":
    main()
