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

from longlive_trt.basics import Array
from longlive_trt.engines.base import Binding, Engine
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.loader import load_engine
from longlive_trt.engines.ort import cpu as onnxruntime
from longlive_trt.runtime.decoding.host import ThreadedDecoder, VaeStream
from longlive_trt.runtime.noise import SeededNoise
from longlive_trt.runtime.prompting.encoder import PromptContexts
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


@dataclass
class Part:
    """Wall time of one part of every block, and how much of it went by in engine calls."""

    wall_s: list[float] = field(default_factory=list)
    outside_s: list[float] = field(default_factory=list)

    def add(self, wall_s: float, engine_s: float) -> None:
        self.wall_s.append(wall_s)
        self.outside_s.append(wall_s - engine_s)

    def report(self, frames: int) -> dict[str, object]:
        return {
            "block_s": percentiles(self.wall_s),
            "outside_engine_calls_s": percentiles(self.outside_s),
            "share_outside_engine_calls": self.share(),
            "video_frames_per_s": frames / float(np.median(self.wall_s)),
        }

    def share(self) -> float:
        return float(np.median(self.outside_s) / np.median(self.wall_s))


def percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(values, p)) for p in (50, 90, 99)}


def measure(folder: Path, blocks: int) -> dict[str, object]:
    bundle = open_bundle(folder)
    config = bundle.config
    text = config.transformer
    states = np.random.default_rng(0).standard_normal((1, text.text_len, text.text_dim))
    context = PromptContexts(load_engine(bundle, "prompt"), 1).of_states(states.astype(np.float32))
    shape = (1, config.rollout.frames_per_block, *config.latent_shape)
    noise = SeededNoise(0, shape, len(config.rollout.steps))
    frames = config.rollout.frames_per_block * config.temporal_factor
    transformer, latents = measure_transformer(bundle, context, noise, blocks)
    vae = measure_vae(bundle, latents)
    outside = np.median(transformer.outside_s) + np.median(vae.outside_s)
    wall = np.median(transformer.wall_s) + np.median(vae.wall_s)
    return {
        "transformer": transformer.report(frames),
        "vae": vae.report(frames),
        "whole_block": {"share_outside_engine_calls": float(outside / wall)},
        "end_to_end": measure_end_to_end(bundle, context, noise, blocks, frames),
    }


def measure_transformer(
    bundle: Bundle, context: Mapping[str, Array], noise: SeededNoise, blocks: int
) -> tuple[Part, list[Array]]:
    step, part, latents = TimedEngine(load_engine(bundle, "step")), Part(), []
    with Session(step, bundle.config, noise) as session:
        session.switch_prompt(context)
        for block in range(WARM_UP_BLOCKS + blocks):
            step.clock.engine_s, started = 0.0, time.perf_counter()
            made = session.step()
            wall_s = time.perf_counter() - started
            if block >= WARM_UP_BLOCKS:
                part.add(wall_s, step.clock.engine_s)
                latents.append(made.latents)
    return part, latents


def engines_for_vae(bundle: Bundle) -> tuple[TimedEngine, TimedEngine]:
    clock = Clock()
    return tuple(
        TimedEngine(load_engine(bundle, name), clock) for name in ("vae_first", "vae_next")
    )


def measure_vae(bundle: Bundle, latents: list[Array]) -> Part:
    engines, part = engines_for_vae(bundle), Part()
    clock, stream = engines[0].clock, VaeStream(*engines, 1)
    for number, block in enumerate(latents):
        clock.engine_s, started = 0.0, time.perf_counter()
        stream.decode(block)
        if number:
            part.add(time.perf_counter() - started, clock.engine_s)
    return part


def measure_end_to_end(
    bundle: Bundle, context: Mapping[str, Array], noise: SeededNoise, blocks: int, frames: int
) -> dict[str, object]:
    decoder = ThreadedDecoder(VaeStream(*engines_for_vae(bundle), 1))
    step = load_engine(bundle, "step")
    with Session(step, bundle.config, noise, decoder=decoder) as session:
        session.switch_prompt(context)
        session.step().pixels()
        previous, started = session.step(), time.perf_counter()
        for _ in range(blocks):
            block = session.step()
            previous.pixels()
            previous = block
        previous.pixels()
        elapsed = time.perf_counter() - started
    return {"video_frames_per_s": frames * (blocks + 1) / elapsed}


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
