"""Many blocks of one video in debug mode: flat memory, steady times, and nothing that must not be.

    python -m benchmarks.soak BUNDLE --blocks 1000 --out docs/results/soak_h200.json

Every block after the first eight runs in debug mode: an allocation, a free, a wait of the host or a
copy on the device beside the commit ends the run. Pictures are taken one block behind, as
`generate` does. Noise is drawn once and repeated, so that times are those of the GPU.
Needs a bundle for a GPU. With absolute positions a video ends after 341 blocks; another follows.
"""

import json
import platform
import time
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.harness import (
    command,
    parser,
    percentiles,
    random_states,
    rounded,
    seeded_noise,
    write_report,
)
from longlive_trt.configs import ModelConfig
from longlive_trt.configs.schema import ROPE_TABLE_FRAMES
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.noise import BlockNoise
from longlive_trt.runtime.session import Block, Session

WARM_UP = 10


class RepeatedNoise:
    def __init__(self, config: ModelConfig) -> None:
        noise = seeded_noise(config)
        self._drawn = [noise.block(index) for index in range(4)]

    def block(self, index: int) -> BlockNoise:
        return self._drawn[index % len(self._drawn)]


def measure(folder: Path, blocks: int, decode: bool) -> dict[str, object]:
    bundle = open_bundle(folder)
    config = bundle.config
    noise = RepeatedNoise(config)
    longest = ROPE_TABLE_FRAMES // config.rollout.frames_per_block
    intervals_ms: list[float] = []
    used_bytes: list[int] = []
    with Engines(bundle) as engines:
        gpu = engines.gpu
        states = random_states(config, np.random.default_rng(0))
        context = engines.contexts(1).of_states(states)
        while len(intervals_ms) < blocks:
            wanted = min(longest - WARM_UP, blocks - len(intervals_ms))
            frames = (wanted + WARM_UP) * config.rollout.frames_per_block
            with engines.session(
                config, noise, total_frames=frames, decode=decode, debug=True
            ) as session:
                session.switch_prompt(context)
                for number, interval_ms in enumerate(run(session, wanted + WARM_UP)):
                    if number < WARM_UP:
                        continue
                    intervals_ms.append(interval_ms)
                    memory = gpu.memory()
                    used_bytes.append(memory.total_bytes - memory.free_bytes)
        counts = dict(gpu.ledger.counts)
        name = gpu.facts.name
    return {
        "command": command(),
        "gpu": name,
        "python": platform.python_version(),
        "bundle_key": bundle.manifest.key,
        "precision": bundle.manifest.precision,
        "decoded": decode,
        "blocks": len(intervals_ms),
        "forbidden_events": 0,
        "events_in_all": counts,
        "interval_ms": percentiles(intervals_ms, digits=2) | {"max": round(max(intervals_ms), 2)},
        "gpu_memory_bytes": {
            "after_warm_up": used_bytes[0],
            "at_the_end": used_bytes[-1],
            "values_seen": dict(Counter(used_bytes).most_common(8)),
        },
        "series_ms": rounded(intervals_ms, digits=2),
    }


def run(session: Session, blocks: int) -> list[float]:
    """Milliseconds between the pictures (or latents) of successive blocks."""
    intervals, waiting, last = [], session.step(), time.perf_counter()
    for _ in range(blocks - 1):
        following = session.step()
        take(session, waiting)
        now = time.perf_counter()
        intervals.append((now - last) * 1e3)
        waiting, last = following, now
    take(session, waiting)
    intervals.append((time.perf_counter() - last) * 1e3)
    return intervals


def take(session: Session, block: Block) -> None:
    if session.decoder is not None:
        block.pixels()
    else:
        _ = block.latents


def main() -> None:
    options = parser(__doc__)
    options.add_argument("bundle", type=Path)
    options.add_argument("--blocks", type=int, default=1000)
    options.add_argument("--no-decode", action="store_true")
    chosen = options.parse_args()
    result = measure(chosen.bundle, chosen.blocks, not chosen.no_decode)
    write_report(result, chosen.out)
    print(json.dumps({**result, "series_ms": "..."}, indent=1))


if __name__ == "__main__":
    main()
