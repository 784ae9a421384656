"""One video on one GPU, and on two of which the other decodes: the same bits, and how fast.

    python -m benchmarks.two_gpus BUNDLE --out docs/results/two_gpus_h200.json

The same noise and prompt both ways. Pictures of the first blocks are compared; then come blocks
that overlap, as `generate` makes them: the time from the pictures of one to those of the next.
Engines are opened anew for each way, and cuDNN may then choose another kernel for a convolution:
pictures may differ by a level or two.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from benchmarks.soak import run
from longlive_trt.basics import Array
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.loader import DEVICES, DeviceChoice
from longlive_trt.runtime.assembly import Engines

WARM_UP = 10
LEVELS = 2
"""Of 255: more is an error."""


@dataclass(frozen=True)
class Video:
    gpus: list[str]
    pictures: Array
    intervals_ms: list[float]

    def report(self) -> dict[str, Any]:
        levels = percentiles(self.intervals_ms, digits=2)
        return {
            "gpus": self.gpus,
            "interval_ms": levels | {"max": round(max(self.intervals_ms), 2)},
            "series_ms": rounded(self.intervals_ms, digits=2),
        }


def make_video(
    bundle: Bundle, device: DeviceChoice, decode_device: str | None, compared: int, blocks: int
) -> Video:
    config = bundle.config
    frames = (compared + WARM_UP + blocks) * config.rollout.frames_per_block
    states = random_states(config, np.random.default_rng(0))
    with Engines(bundle, device, decode_device=decode_device) as engines:
        context = engines.contexts(1).of_states(states)
        with engines.session(config, seeded_noise(config), total_frames=frames) as session:
            session.switch_prompt(context)
            pictures = [session.step().pixels() for _ in range(compared)]
            intervals_ms = run(session, WARM_UP + blocks)[WARM_UP:]
        gpus = [engines.gpu, *([engines.decode_gpu] if engines.decode_gpu else [])]
    return Video([gpu.facts.name for gpu in gpus], np.concatenate(pictures, axis=1), intervals_ms)


def largest_difference(one: Array, other: Array) -> int:
    return max(
        int(np.abs(a.astype(np.int16) - b).max())
        for a, b in zip(one.swapaxes(0, 1), other.swapaxes(0, 1), strict=True)
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("bundle", type=Path)
    options.add_argument("--device", choices=DEVICES, default="auto")
    options.add_argument("--decode-device", default="cuda:1", metavar="cuda:N")
    options.add_argument("--compared", type=int, default=12, help="blocks whose pictures are")
    options.add_argument("--blocks", type=int, default=100, help="that are timed")
    given = options.parse_args()
    bundle = open_bundle(given.bundle)
    one, two = (
        make_video(bundle, given.device, elsewhere, given.compared, given.blocks)
        for elsewhere in (None, given.decode_device)
    )
    difference = largest_difference(one.pictures, two.pictures)
    ways = {"one": one.report(), "two": two.report()}
    report = {
        "command": command(),
        "bundle_key": bundle.manifest.key,
        "precision": bundle.manifest.precision,
        "compared_blocks": given.compared,
        "same_bits": difference == 0,
        "largest_difference": difference,
        **ways,
    }
    write_report(report, given.out)
    medians = {f"{name}_ms": way["interval_ms"]["p50"] for name, way in ways.items()}
    print(json.dumps({"largest_difference": difference, **medians}))
    if difference > LEVELS:
        raise SystemExit(f"pictures differ by {difference} of 255 between one GPU and two")


if __name__ == "__main__":
    main()
