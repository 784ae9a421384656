"""What each way to change the prompt changes in the video, and what it computes.

    python -m benchmarks.switch_modes            # measures, and writes both files
    python -m benchmarks.switch_modes --table    # docs/switching.md alone

Effects are measured on small models with random weights, costs are counted at full geometry.
Milliseconds come from a GPU: ``benchmarks/switch_times.py``.
"""

import json
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.harness import RESULTS, ROOT, command, parser, replace_table, write_report
from longlive_trt.basics import Array
from longlive_trt.configs import LatentConfig, ModelConfig, TransformerConfig
from longlive_trt.configs.replay import Replay
from longlive_trt.engines.build import build
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.ort import cpu as onnxruntime
from longlive_trt.export.components import Sources
from longlive_trt.export.exporter import export
from longlive_trt.precision import precision_named
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.bench.flops import BlockFlops, pass_flops
from longlive_trt.runtime.noise import ReplayNoise
from longlive_trt.runtime.prompting.switches import SwitchMode
from longlive_trt.runtime.prompting.track import (
    PromptTrack,
    RecordedPrompts,
    replay_cues,
    replay_states,
)
from longlive_trt.runtime.ring import Ring, RingLayout
from longlive_trt.runtime.session import Checkpoint, Session
from longlive_trt.runtime.verify import generated_replay, relative_error

RESULT = RESULTS / "switch_modes.json"
TIMES = RESULTS / "switch_times_h200.json"
PAGE = ROOT / "docs" / "switching.md"

BLOCKS, SWITCH_BLOCK = 16, 8
SHOWN_BLOCKS = (1, 2, 4, 8)
"""After the switch, counted from 1."""
MODES = ("exact", "partial", "none", "blend:2", "blend:4", "blend:8")
NO_SWITCH = "no switch at all"
NOT_MEASURED = "not measured yet"
MODELS = {
    "2 layers": TransformerConfig(
        dim=256, heads=2, layers=2, ffn_dim=512, text_len=16, text_dim=64
    ),
    "12 layers": TransformerConfig(
        dim=128, heads=2, layers=12, ffn_dim=256, text_len=16, text_dim=64
    ),
}

Effects = dict[str, list[float]]
"""By mode: how far the blocks are from those after an exact switch."""


def main() -> None:
    options = parser(__doc__, out=False)
    options.add_argument("--weights", type=int, default=3, help="random models of each kind")
    options.add_argument("--videos", type=int, default=3, help="noises and prompts for each model")
    options.add_argument("--table", action="store_true", help="measure nothing")
    chosen = options.parse_args()
    if not chosen.table:
        started = time.monotonic()
        result = measure(chosen.weights, chosen.videos)
        result["duration_s"] = round(time.monotonic() - started, 1)
        write_report(result, RESULT)
    write_tables(json.loads(RESULT.read_text(encoding="utf-8")))


def measure(weights: int, videos: int) -> dict[str, Any]:
    return {
        "command": command(),
        "blocks": BLOCKS,
        "switch_block": SWITCH_BLOCK,
        "shown_blocks": SHOWN_BLOCKS,
        "models": weights,
        "videos_per_model": videos,
        "effects": {name: effects_of(name, weights, videos) for name in MODELS},
        "geometry": ModelConfig().name,
        "block_tflop": BlockFlops.of(ModelConfig()).transformer.total / 1e12,
        "costs": costs(ModelConfig()),
        "engine": f"onnxruntime {onnxruntime.version()}, fp32",
        "machine": f"{platform.machine()}, CPU",
    }


# ---- effects ---------------------------------------------------------------------------------


def effects_of(name: str, weights: int, videos: int) -> dict[str, dict[str, list[float]]]:
    config = ModelConfig(
        name="switching", transformer=MODELS[name], latent=LatentConfig(height=8, width=12)
    )
    each = []
    for seed in range(weights):
        with TemporaryDirectory() as folder, Engines(make_bundle(config, seed, folder)) as engines:
            each += [effects_in(engines, 100 * seed + video) for video in range(videos)]
        print(f"{name}: {seed + 1} of {weights}")
    return {mode: summary([effects[mode] for effects in each]) for mode in each[0]}


def summary(rows: list[list[float]]) -> dict[str, list[float]]:
    return {
        "mean": np.mean(rows, axis=0).tolist(),
        "smallest": np.min(rows, axis=0).tolist(),
        "largest": np.max(rows, axis=0).tolist(),
    }


def make_bundle(config: ModelConfig, seed: int, folder: str) -> Bundle:
    exported, bundle = Path(folder) / "export", Path(folder) / "bundle"
    export(config, Sources(random_seed=seed), exported, precision_named("fp32"))
    build(exported, bundle, "fp32")
    return open_bundle(bundle)


def effects_in(engines: Engines, seed: int) -> Effects:
    """One video that takes the same switch in every way."""
    config = engines.bundle.config
    replay = generated_replay(config, [], BLOCKS, seed)
    assert replay.schedule[1].frame == SWITCH_BLOCK * config.rollout.frames_per_block
    noise = ReplayNoise(replay, config.rollout.frames_per_block)
    with engines.session(config, noise, total_frames=replay.frames, decode=False) as session:
        contexts = engines.contexts(1)
        session.switch_prompt(contexts.of_states(replay.prompts[0]))
        for _ in range(SWITCH_BLOCK):
            session.step()
        video = Video(engines, session, session.checkpoint(), replay)
        exact = video.after("exact")
        ways = {mode: video.after(mode) for mode in MODES[1:]}
        ways[NO_SWITCH] = video.without_switch()
    return {
        mode: [relative_error(blocks[n - 1], exact[n - 1]) for n in SHOWN_BLOCKS]
        for mode, blocks in ways.items()
    }


@dataclass(frozen=True)
class Video:
    """As it stands before the switch."""

    engines: Engines
    session: Session
    checkpoint: Checkpoint
    replay: Replay

    def after(self, mode: str) -> list[Array]:
        return list(self._blocks(self.replay, SwitchMode.parse(mode)))

    def without_switch(self) -> list[Array]:
        staying = replace(self.replay, schedule=self.replay.schedule[:1])
        return list(self._blocks(staying, SwitchMode.parse("exact")))

    def _blocks(self, replay: Replay, mode: SwitchMode) -> Iterator[Array]:
        block = self.engines.bundle.config.rollout.frames_per_block
        prompts = RecordedPrompts(self.engines.contexts(1), replay_states(replay))
        track = PromptTrack(prompts, replay_cues(replay, block), mode)
        self.session.rollback(self.checkpoint)
        for number in range(BLOCKS):
            change = track.due(number * block)
            if number >= SWITCH_BLOCK:
                if change is not None:
                    self.session.switch_prompt(*change)
                yield self.session.step().latents


# ---- costs -----------------------------------------------------------------------------------


def costs(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """Of a switch in a video whose window has long been full, beside its text encoding."""
    return {mode: cost_of(config, mode) for mode in MODES}


def cost_of(config: ModelConfig, mode: str) -> dict[str, Any]:
    way, layout = SwitchMode.parse(mode), RingLayout.of(config, config.rollout.window_frames)
    queries = keys = 0
    if way.recache != "none":
        ring = Ring(layout, next_frame=layout.window * layout.block)
        plan = ring.recache_plan(way.recache)
        queries, keys = len(plan.frames), len(plan.frames) + plan.sink_frames
    tokens, contexts = config.tokens_per_frame, way.blend_blocks or 1
    return {
        "query_tokens": queries * tokens,
        "key_tokens": keys * tokens,
        "recache_tflop": pass_flops(config, queries, keys) / 1e12,
        "contexts": contexts,
        "contexts_tflop": contexts * context_flops(config) / 1e12,
    }


def context_flops(config: ModelConfig) -> int:
    """Text states to cross-attention keys and values of every layer."""
    model = config.transformer
    per_row = model.text_dim * model.dim + (1 + 2 * model.layers) * model.dim**2
    return 2 * model.text_len * per_row


# ---- the page --------------------------------------------------------------------------------


def write_tables(result: dict[str, Any]) -> None:
    for name, effects in result["effects"].items():
        replace_table(PAGE, f"effects, {name}", effect_rows(effects))
    replace_table(PAGE, "costs", cost_rows(result["costs"], result["block_tflop"]))


def effect_rows(effects: dict[str, dict[str, list[float]]]) -> list[str]:
    heads = [f"block {number}" for number in SHOWN_BLOCKS]
    rows = [f"| against exact | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for mode, errors in effects.items():
        label = mode if mode == NO_SWITCH else f"`{mode}`"
        means = " | ".join(f"{error:.1e}" for error in errors["mean"])
        rows.append(f"| {label} | {means} |")
    return rows


def cost_rows(costs: dict[str, dict[str, Any]], block_tflop: float) -> list[str]:
    heads = ["mode", "queries", "keys", "re-cache, TFLOP", "share of a block's passes"]
    heads += ["prompts' keys and values, TFLOP", "H200: added to a block, ms"]
    heads += ["H200: keys and values, ms"]
    rows, measured = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"], measured_ms()
    for mode, cost in costs.items():
        recache = cost["recache_tflop"]
        cells = [f"`{mode}`", f"{cost['query_tokens']:,}", f"{cost['key_tokens']:,}"]
        cells += [f"{recache:.1f}", f"{recache / block_tflop:.0%}"]
        cells += [f"{cost['contexts_tflop']:.2f}", *measured.get(mode, [NOT_MEASURED] * 2)]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def measured_ms() -> dict[str, list[str]]:
    if not TIMES.is_file():
        return {}
    modes = json.loads(TIMES.read_text(encoding="utf-8"))["modes"]
    return {
        mode: [in_ms(row, "transformer"), contexts_ms(mode, row)] for mode, row in modes.items()
    }


def in_ms(row: dict[str, Any], part: str) -> str:
    return f"{row[f'added_{part}_ms']:.1f}"


def contexts_ms(mode: str, row: dict[str, Any]) -> str:
    blocks = SwitchMode.parse(mode).blend_blocks
    each = in_ms(row, "contexts")
    return each if blocks is None else f"{blocks} x {each}"


if __name__ == "__main__":
    main()
