"""What the runtime costs beside the engines it drives, and how fast a bundle runs on this CPU.

    python benchmarks/runtime_overhead.py BUNDLE [--blocks 100] [--out docs/results/...json]

Every engine call is timed; what is left of a block's wall time is the runtime's own.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from longlive_trt.engines import onnxruntime
from longlive_trt.engines.base import Array, Binding, Engine
from longlive_trt.engines.bundle import open_bundle
from longlive_trt.engines.loader import load_engine
from longlive_trt.runtime.decoder import VaeStream
from longlive_trt.runtime.noise import SeededNoise
from longlive_trt.runtime.prompts import PromptContexts
from longlive_trt.runtime.session import Session

WARM_UP_BLOCKS = 10


@dataclass
class Clock:
    engine_s: float = 0.0


@dataclass
class TimedBinding:
    inner: Binding
    clock: Clock

    def run(self) -> None:
        started = time.perf_counter()
        self.inner.run()
        self.clock.engine_s += time.perf_counter() - started


@dataclass
class TimedEngine:
    """An engine whose runs are added up."""

    inner: Engine
    clock: Clock = field(default_factory=Clock)

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> TimedBinding:
        return TimedBinding(self.inner.bind(inputs, outputs), self.clock)


def summary(seconds: list[float]) -> dict[str, float]:
    values = np.array(seconds)
    return {
        "p50": float(np.percentile(values, 50)),
        "p90": float(np.percentile(values, 90)),
        "p99": float(np.percentile(values, 99)),
    }


def measure(folder: Path, blocks: int) -> dict[str, object]:
    bundle = open_bundle(folder)
    config = bundle.config
    step = TimedEngine(load_engine(bundle, "step"))
    text = config.transformer
    states = np.random.default_rng(0).standard_normal((1, text.text_len, text.text_dim))
    context = PromptContexts(load_engine(bundle, "prompt"), 1).of_states(states.astype(np.float32))
    shape = (1, config.rollout.frames_per_block, *config.latent_shape)
    noise = SeededNoise(0, shape, len(config.rollout.steps))
    frames = config.rollout.frames_per_block * config.temporal_factor

    walls, outside, latents = [], [], []
    with Session(step, config, noise) as session:
        session.switch_prompt(context)
        for block in range(WARM_UP_BLOCKS + blocks):
            step.clock.engine_s, started = 0.0, time.perf_counter()
            made = session.step()
            wall = time.perf_counter() - started
            if block >= WARM_UP_BLOCKS:
                walls.append(wall)
                outside.append((wall - step.clock.engine_s) / wall)
                latents.append(made.latents)
    result: dict[str, object] = {
        "transformer_block_s": summary(walls),
        "share_outside_engine_calls": summary(outside),
        "transformer_video_frames_per_s": frames / float(np.median(walls)),
    }
    if bundle.has("vae_next"):
        result |= measure_vae(bundle, latents[: max(10, blocks // 4)], frames)
        result |= measure_end_to_end(bundle, context, noise, max(10, blocks // 4), frames)
    return result


def engines_for_vae(bundle: object) -> tuple[TimedEngine, TimedEngine]:
    clock = Clock()
    return tuple(
        TimedEngine(load_engine(bundle, name), clock) for name in ("vae_first", "vae_next")
    )


def measure_vae(bundle: object, latents: list[Array], frames: int) -> dict[str, object]:
    engines = engines_for_vae(bundle)
    stream = VaeStream(*engines, 1)
    walls, outside = [], []
    for number, block in enumerate(latents):
        engines[0].clock.engine_s, started = 0.0, time.perf_counter()
        stream.decode(block)
        wall = time.perf_counter() - started
        if number:
            walls.append(wall)
            outside.append((wall - engines[0].clock.engine_s) / wall)
    return {
        "vae_block_s": summary(walls),
        "vae_share_outside_engine_calls": summary(outside),
        "vae_video_frames_per_s": frames / float(np.median(walls)),
    }


def measure_end_to_end(
    bundle: object, context: Mapping[str, Array], noise: SeededNoise, blocks: int, frames: int
) -> dict[str, object]:
    stream = VaeStream(*engines_for_vae(bundle), 1)
    with Session(load_engine(bundle, "step"), bundle.config, noise, decoder=stream) as session:
        session.switch_prompt(context)
        session.step().pixels()
        previous, started = session.step(), time.perf_counter()
        for _ in range(blocks):
            block = session.step()
            previous.pixels()
            previous = block
        previous.pixels()
        elapsed = time.perf_counter() - started
    return {"end_to_end_video_frames_per_s": frames * (blocks + 1) / elapsed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--blocks", type=int, default=100)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    report = {
        "command": " ".join(["python", *sys.argv]),
        "model": open_bundle(arguments.bundle).config.name,
        "precision": open_bundle(arguments.bundle).manifest.precision,
        "engine": f"onnxruntime {onnxruntime.version()}",
        "machine": f"{platform.machine()} CPU",
        "blocks": arguments.blocks,
        **measure(arguments.bundle, arguments.blocks),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
