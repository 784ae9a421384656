"""Bundles and torch in one process and in turns, so that their ratios are of the same minutes.

    python -m benchmarks.against_torch --bundle BF16 --bundle FP8 --out ratios.json
    python -m benchmarks.against_torch --bundle FP8 --decoder full --decoder light --out ratios.json
    python -m benchmarks.against_torch --bundle TINY --rounds 2 --no-compile      # on a CPU

In every round each contestant makes three things, one after the other: a block of the transformer
(denoising passes and the clean pass), a block of the VAE, and a whole block (both in a row). Who
begins moves on from round to round, so each runs as often after each other one, as warm and under
the same power limit. Each is timed alone, by the host's clock, from an idle GPU until the latents,
or the pictures, are on the host.

Torch is ``baseline_torch.py``'s: our own modules in bfloat16 with random weights and cuDNN's
attention, a full window, the model's own geometry, and decodes with the full decoder. It holds its
noise; a bundle's session draws and uploads it, as `generate` does. Torch attends to a prompt's
padding as upstream does, our kernels to one token that stands for it. Ratios are torch's time by
the bundle's: 1.5 is half as fast again.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmarks.baseline_torch import (
    WARM_UP_BLOCKS,
    Draw,
    TransformerRollout,
    VaeRollout,
    attention_of,
    time_limit,
)
from benchmarks.harness import (
    command,
    parser,
    percentiles,
    random_states,
    rounded,
    seeded_noise,
    write_report,
)
from longlive_trt.basics import Closing
from longlive_trt.configs import ModelConfig, VaeConfig
from longlive_trt.contract import LATENTS
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.loader import DeviceChoice
from longlive_trt.export.models.transformer import Transformer
from longlive_trt.export.models.vae import VaeDecoder
from longlive_trt.plugins.cuda.nvml import GpuReading, Sampler, open_gpu
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.bench.lane import BenchSettings, longest_session
from longlive_trt.runtime.bench.measurement import check_measurable
from longlive_trt.runtime.bench.prompts import RANDOM_TOKENS
from longlive_trt.runtime.decoding.choice import DECODERS, BundledDecoder, decoder_named
from longlive_trt.runtime.memory.base import Buffer, HostMemory, Memory
from longlive_trt.runtime.memory.cuda import CudaMemory
from longlive_trt.runtime.session import Session

PARTS = ("transformer", "vae", "block")
OUR_WARM_UP_BLOCKS = 10
"""Fill the window, reserve all memory, capture every pass."""

Work = Callable[[], object]
"""Returns once its result is on the host."""


@dataclass
class Contestant:
    name: str
    facts: Mapping[str, Any]
    parts: Mapping[str, Work]
    warm_up_s: float = 0.0
    series_ms: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})

    def warm_up(self, blocks: int) -> None:
        started = time.perf_counter()
        for _ in range(blocks):
            for work in self.parts.values():
                work()
        self.warm_up_s = round(time.perf_counter() - started, 1)
        print(f"{self.name}: warm after {self.warm_up_s} s", file=sys.stderr)

    def take_turn(self) -> None:
        for part, work in self.parts.items():
            _finish()
            started = time.perf_counter()
            work()
            _finish()
            self.series_ms[part].append((time.perf_counter() - started) * 1e3)


class OurVideo(Closing):
    """One session for latents alone, one with pictures, and a decoder by itself."""

    def __init__(
        self,
        bundle: Bundle,
        decoder: BundledDecoder,
        device: DeviceChoice,
        seed: int,
        tokens: int = RANDOM_TOKENS,
    ) -> None:
        """``tokens``: of the prompt."""
        self._config, self._chosen = bundle.config, decoder
        self._seed, self._tokens = seed, tokens
        self._stack = ExitStack()
        self._engines = self._stack.enter_context(Engines(bundle, device))
        self._latents_only, self._whole = (self._session(decode=which) for which in (False, True))
        self._decoder = self._engines.decoder(1, decoder.name)
        self._stack.callback(self._decoder.close)
        self._latents = self._some_latents()

    def transformer(self) -> None:
        _ = self._latents_only.step().latents

    def vae(self) -> None:
        self._decoder.start(self._latents["latents"]).result()

    def block(self) -> None:
        self._whole.step().pixels()

    def close(self) -> None:
        self._stack.close()

    def _session(self, *, decode: bool) -> Session:
        config, blocks = self._config, longest_session(self._config)
        noise = seeded_noise(config, self._seed)
        total = None if blocks is None else blocks * config.rollout.frames_per_block
        session = self._engines.session(
            config, noise, total_frames=total, decode=decode, decoder=self._chosen.name
        )
        self._stack.enter_context(session)
        states = random_states(config, np.random.default_rng(self._seed), self._tokens)
        session.switch_prompt(self._engines.contexts(1).of_states(states))
        return session

    def _some_latents(self) -> dict[str, Any]:
        memory: Memory = HostMemory()
        if self._engines.on_gpu:
            memory = CudaMemory(self._engines.stream("transformer"))
            self._stack.callback(memory.close)
        _, following = self._chosen.graphs
        spec = self._engines.get(following, "measuring").inputs[LATENTS]
        frames = self._config.rollout.frames_per_block
        latents = memory.reserve({"latents": Buffer.of(spec, batch=1, latent_frames=frames)}, "")
        shape = latents["latents"].shape
        values = np.random.default_rng(self._seed).standard_normal(shape, np.float32)
        memory.write(latents["latents"], values)
        memory.settle()
        return latents


class TorchVideo:
    def __init__(self, transformer: TransformerRollout, vae: VaeRollout) -> None:
        self._transformer, self._vae = transformer, vae
        self._pinned: dict[torch.Size, torch.Tensor] = {}

    def transformer(self) -> None:
        self._to_host(self._transformer.run_block())

    def vae(self) -> None:
        self._to_host(self._vae.run_block())

    def block(self) -> None:
        self._transformer.run_block()
        self.vae()

    def _to_host(self, result: torch.Tensor) -> torch.Tensor:
        """Through pinned memory and out of it, as a session's results come."""
        shape = result.shape
        if result.device.type == "cpu":
            return result
        if shape not in self._pinned:
            self._pinned[shape] = torch.empty(shape, dtype=result.dtype, pin_memory=True)
        on_host = self._pinned[shape].copy_(result, non_blocking=True)
        _finish()
        return on_host.clone()


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ours(
    bundle: Bundle, decoder: str | None, options: argparse.Namespace, stack: ExitStack
) -> Contestant:
    started, chosen = time.perf_counter(), decoder_named(bundle, decoder)
    asked = options.device, options.seed, options.prompt_tokens
    video = stack.enter_context(OurVideo(bundle, chosen, *asked))
    manifest = bundle.manifest
    facts = {
        "bundle": bundle.folder.name,
        "key": manifest.key,
        "precision": manifest.precision,
        "decoder": chosen.name,
        "engine": f"{manifest.engine.kind} {manifest.engine.version} for {manifest.engine.target}",
        "options": manifest.options,
        "open_s": round(time.perf_counter() - started, 1),
    }
    parts = {part: getattr(video, part) for part in PARTS}
    name = bundle.folder.name
    return Contestant(name if decoder is None else f"{name}, {decoder} decoder", facts, parts)


def torch_eager(config: ModelConfig, model: Transformer, draw: Draw, seed: int) -> Contestant:
    video = TorchVideo(
        TransformerRollout(config, model, seed), VaeRollout(config, _vae(config, draw), seed)
    )
    return _of_torch("torch eager", video)


def torch_compiled(config: ModelConfig, model: Transformer, draw: Draw, seed: int) -> Contestant:
    transformer, vae_model = TransformerRollout(config, model, seed), _vae(config, draw)
    transformer.use_compiled()
    vae = VaeRollout(config, vae_model, seed)
    vae.use_channels_last(vae_model)
    vae.use_compiled()
    return _of_torch("torch compiled", TorchVideo(transformer, vae))


def _of_torch(name: str, video: TorchVideo) -> Contestant:
    parts = {part: getattr(video, part) for part in PARTS}
    facts = {"precision": "bf16", "attention": "cuDNN" if torch.cuda.is_available() else "torch's"}
    return Contestant(name, facts, parts)


def _vae(config: ModelConfig, draw: Draw) -> VaeDecoder:
    vae_config = config.vae
    assert isinstance(vae_config, VaeConfig)
    vae: VaeDecoder = draw.fill(lambda: VaeDecoder(vae_config), draw.device)
    return vae


def open_bundles(options: argparse.Namespace) -> list[Bundle]:
    bundles = [open_bundle(folder) for folder in options.bundle]
    # Every session makes one long video.
    blocks = options.warm_up + options.rounds
    check_measurable(bundles, BenchSettings(device=options.device, warmup=blocks))
    for bundle in bundles:
        for decoder in options.decoder:
            decoder_named(bundle, decoder)
    return bundles


def contestants(
    bundles: Sequence[Bundle], options: argparse.Namespace, stack: ExitStack
) -> Iterator[Contestant]:
    """Warm, all of them."""
    for bundle in bundles:
        for decoder in options.decoder:
            contestant = ours(bundle, decoder, options, stack)
            contestant.warm_up(options.warm_up)
            yield contestant
    if options.no_torch:
        return
    config, device = bundles[0].config, torch_device(options.device)
    warm_up_blocks = min(WARM_UP_BLOCKS, options.warm_up)
    draw = Draw(options.seed, device)
    model = draw.fill(lambda: Transformer(config.transformer), device)
    eager = torch_eager(config, model, draw, options.seed)
    eager.warm_up(warm_up_blocks)
    yield eager
    if options.no_compile:
        return
    try:
        with time_limit(options.compile_limit_s):
            compiled = torch_compiled(config, model, draw, options.seed)
            compiled.warm_up(warm_up_blocks)
    except Exception as error:  # torch's compilers raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"torch compiled is left out: {reason}", file=sys.stderr)
        return
    yield compiled


def torch_device(wanted: DeviceChoice) -> torch.device:
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def machine_name(wanted: DeviceChoice) -> str:
    on_gpu = torch_device(wanted).type == "cuda"
    return torch.cuda.get_device_name() if on_gpu else platform.machine()


def take_turns(taking_part: Sequence[Contestant], rounds: int) -> None:
    for number in range(rounds):
        first = number % len(taking_part)
        for contestant in (*taking_part[first:], *taking_part[:first]):
            contestant.take_turn()
    for contestant in taking_part:
        print(line(contestant), file=sys.stderr)


def line(contestant: Contestant) -> str:
    medians = (f"{part} {np.median(ms):.1f}" for part, ms in contestant.series_ms.items())
    return f"{contestant.name:16s} {', '.join(medians)} ms"


def statistics(series_ms: Sequence[float], frames: int) -> dict[str, Any]:
    levels = percentiles(series_ms, (10, 50, 90, 99))
    return {
        **levels,
        "max": round(max(series_ms), 3),
        "spread": round((levels["p90"] - levels["p10"]) / levels["p50"], 4),
        "video_frames_per_s": round(frames / levels["p50"] * 1e3, 3),
        "series_ms": rounded(series_ms),
    }


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, Any]:
    """Of the medians; and what the rounds say one by one, whose distance is the doubt."""
    by_round = [one / other for one, other in zip(slow, fast, strict=True)]
    return {
        "of_medians": round(float(np.median(slow) / np.median(fast)), 4),
        "by_round": percentiles(by_round, (10, 50, 90), digits=4),
    }


def ratios(taking_part: Sequence[Contestant]) -> dict[str, dict[str, Any]]:
    """Each torch against each of ours; and our first against our others."""
    bundles = [one for one in taking_part if "key" in one.facts]
    torches = [one for one in taking_part if "key" not in one.facts]
    pairs = [(one, other) for other in bundles for one in torches]
    pairs += [(bundles[0], other) for other in bundles[1:]]
    return {
        f"{slow.name} by {fast.name}": {
            part: ratio(slow.series_ms[part], fast.series_ms[part]) for part in PARTS
        }
        for slow, fast in pairs
    }


def course(readings: Sequence[GpuReading | None]) -> dict[str, Any] | None:
    rows = [asdict(reading) for reading in readings if reading is not None]
    if not rows:
        return None
    series = {name: [row[name] for row in rows if row[name] is not None] for name in rows[0]}
    return {
        name: {"min": min(values), "p50": float(np.median(values)), "max": max(values)}
        for name, values in series.items()
        if values
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    started = time.perf_counter()
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(attention_of(torch_device(options.device)))
        bundles = open_bundles(options)
        taking_part = list(contestants(bundles, options, stack))
        monitor = open_gpu() if torch_device(options.device).type == "cuda" else None
        if monitor is not None:
            stack.enter_context(monitor)
        with Sampler(lambda: monitor.read() if monitor else None, 0.25) as sampler:
            take_turns(taking_part, options.rounds)
    config = bundles[0].config
    frames = config.rollout.frames_per_block * config.temporal_factor
    return {
        "command": command(),
        "machine": machine_name(options.device),
        "versions": {
            "torch": torch.__version__,
            "cudnn": torch.backends.cudnn.version(),
            "onnxruntime": onnxruntime.__version__,
        },
        "model": config.name,
        "video_frames_per_block": frames,
        "passes_per_block": len(config.rollout.steps) + 1,
        "prompt_tokens": options.prompt_tokens,
        "rounds": options.rounds,
        "duration_s": round(time.perf_counter() - started, 1),
        "gpu": course(sampler.readings),
        "ratios": ratios(taking_part),
        "contestants": {
            one.name: {
                **one.facts,
                "warm_up_s": one.warm_up_s,
                "ms": {part: statistics(ms, frames) for part, ms in one.series_ms.items()},
            }
            for one in taking_part
        },
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--bundle", type=Path, action="append", required=True, metavar="FOLDER")
    options.add_argument("--decoder", choices=DECODERS, action="append", help="each of them")
    options.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options.add_argument("--rounds", type=int, default=30)
    options.add_argument("--warm-up", type=int, default=OUR_WARM_UP_BLOCKS, metavar="BLOCKS")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--prompt-tokens", type=int, default=RANDOM_TOKENS, metavar="N")
    options.add_argument("--no-compile", action="store_true", help="leave compiled torch out")
    options.add_argument("--no-torch", action="store_true", help="bundles alone")
    options.add_argument("--compile-limit-s", type=int, default=90, help="longer is given up")
    chosen = options.parse_args(arguments)
    chosen.decoder = chosen.decoder or [None]
    names = [folder.name for folder in chosen.bundle]
    if len(set(names)) < len(names):
        options.error(f"bundles of one name: {', '.join(names)}: nothing tells them apart")
    return chosen


def main() -> None:
    options = parse()
    torch.backends.cudnn.benchmark = True
    report = measure(options)
    for pair, parts in report["ratios"].items():
        medians = (f"{part} {parts[part]['of_medians']:.2f}" for part in PARTS)
        print(f"{pair}: {', '.join(medians)}")
    write_report(report, options.out)


if __name__ == "__main__":
    main()
