"""How fast our own torch models make a block: what compiled engines are compared with.

    python -m benchmarks.baseline_torch [--out docs/results/baseline_torch_h200.json]
    python -m benchmarks.baseline_torch --config tiny --device cpu --blocks 2

The modules are those that `export` traces, in bfloat16 with random weights, driven as a rollout in
its steady state: a full window, four denoising passes and the clean pass, then the VAE over the
block's latent frames. It is a fair baseline rather than a copy of any code: keys go straight to
their place beside the cached ones (no concatenation, no clone), attention is cuDNN's, cuDNN may
choose its convolutions by trial, and rotary embedding multiplies by float32 tables made beforehand
instead of computing in float64, which changes results by no more than rounding. Blocks are queued
without waiting for each other; times are those of CUDA events. ``against_torch.py`` lets bundles
take turns with it.
"""

import math
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.harness import command, parser, percentiles, rounded, write_report
from longlive_trt.configs import ModelConfig, VaeConfig, load_config
from longlive_trt.configs.schedule import Pass, Schedule
from longlive_trt.export.models.transformer import (
    Block,
    KeyValue,
    Transformer,
    full_attention,
    rope_table,
    sinusoid,
)
from longlive_trt.export.models.vae import VaeDecoder, to_pixels

DTYPE = torch.bfloat16
WARM_UP_BLOCKS = 3

Rotate = Callable[[Tensor, Tensor], Tensor]


def rotate_complex(x: Tensor, table: Tensor) -> Tensor:
    """The fewest kernels when each operation is one."""
    pairs: Tensor = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)


def rotate_real(x: Tensor, table: Tensor) -> Tensor:
    """Becomes a single kernel when it is compiled."""
    cos, sin = table.unbind(-1)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


def run_layer(
    block: Block,
    x: Tensor,
    time_values: Tensor,
    keys: Tensor,
    values: Tensor,
    context: KeyValue,
    table: Tensor,
    rotate: Rotate,
) -> Tensor:
    """The block's own keys and values go to the end of the window's."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own = slice(keys.shape[1] - k.shape[1], None)
        keys[:, own], values[:, own] = rotate(k, table), v
        return full_attention(rotate(q, table), keys, values)

    result: Tensor = block(x, time_values, attend, lambda q: full_attention(q, *context))
    return result


class TransformerRollout:
    """Every block finds a full window and takes the same place in it: that changes no time."""

    def __init__(self, config: ModelConfig, model: Transformer, seed: int) -> None:
        self._model, self._config, self._schedule = model, config, Schedule.of(config.rollout)
        rollout, size = config.rollout, config.transformer
        self._frames = rollout.frames_per_block
        window = rollout.window_frames * config.tokens_per_frame
        draw = Draw(seed, next(model.parameters()).device)
        kept = (1, window, size.heads, size.head_dim)
        self._memory = [(draw.normal(kept), draw.normal(kept)) for _ in range(size.layers)]
        states = draw.normal((1, size.text_len, size.text_dim))
        self._context = model.prompt(states)
        self._noise = draw.normal((1, self._frames, *config.latent_shape))
        self._features = {
            level.timestep: sinusoid(level.timestep, size.freq_dim).to(self._noise)
            for level in (*self._schedule.passes, self._schedule.clean)
        }
        self._tables = self._rope_tables()
        self._layer, self._rotate = run_layer, rotate_complex

    def use_compiled(self) -> None:
        """Layer by layer: one compilation serves all of them."""
        self._layer, self._rotate = torch.compile(run_layer), rotate_real

    def run_block(self) -> Tensor:
        x = self._noise
        for level in self._schedule.passes:
            x = self._next(x, self._flow(x, level), level)
        self._flow(x, self._schedule.clean)
        return x

    def _next(self, x: Tensor, flow: Tensor, level: Pass) -> Tensor:
        denoised = x.float() - level.sigma * flow.float()
        return torch.lerp(denoised, self._noise.float(), level.sigma_next).to(x.dtype)

    def _flow(self, latents: Tensor, level: Pass) -> Tensor:
        model = self._model
        time_values = model.time_embedding(self._features[level.timestep])
        block_time = model.time_projection(time_values).unflatten(-1, (6, -1))
        x, table = model.patchify(latents), self._tables[self._rotate]
        for block, memory, context in zip(model.blocks, self._memory, self._context, strict=True):
            assert isinstance(block, Block)
            x = self._layer(block, x, block_time, *memory, context, table, self._rotate)
        return model.unpatchify(model.head(x, time_values), latents)

    def _rope_tables(self) -> dict[Rotate, Tensor]:
        """The positions of a window's last block; which they are does not matter to the time."""
        last = self._config.rollout.window_frames
        frames = torch.arange(last - self._frames, last)
        angles = rope_table(frames, self._config.token_grid, self._config.transformer.head_dim)
        cos, sin = (
            part[:, None].float().to(self._noise.device) for part in (angles.cos(), angles.sin())
        )
        return {rotate_complex: torch.complex(cos, sin), rotate_real: torch.stack([cos, sin], -1)}


class VaeRollout:
    def __init__(self, config: ModelConfig, vae: VaeDecoder, seed: int) -> None:
        draw = Draw(seed, next(vae.parameters()).device)
        self._latents = draw.normal((1, config.rollout.frames_per_block, *config.latent_shape))
        shapes = vae.cache_shapes(config.latent.height, config.latent.width)
        self._caches = [draw.normal((1, *shape)) for shape in shapes]
        self._decode: Callable[..., tuple[Tensor, list[Tensor]]] = vae.decode_next

    def use_channels_last(self, vae: VaeDecoder) -> None:
        for module in vae.modules():
            if isinstance(module, nn.Conv3d):
                weight = module.weight.data
                module.weight.data = weight.contiguous(memory_format=torch.channels_last_3d)
        self._caches = [
            cache.contiguous(memory_format=torch.channels_last_3d) for cache in self._caches
        ]

    def use_compiled(self) -> None:
        self._decode = torch.compile(self._decode)

    def run_block(self) -> Tensor:
        frames, self._caches = self._decode(self._latents, self._caches)
        return to_pixels(frames)


class Draw:
    """Normal numbers made where they are needed."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)

    @property
    def device(self) -> torch.device:
        return self._generator.device

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self.device, dtype=DTYPE)

    @torch.no_grad()
    def fill(self, make: Callable[[], nn.Module], device: torch.device) -> Any:
        """A module with weights that keep activations near one."""
        with torch.device("meta"):
            module = make().to(DTYPE)
        module = module.to_empty(device=device).eval()
        for name, weight in module.named_parameters():
            is_matrix = name.endswith("weight") and weight.ndim > 1
            fan_in = math.prod(weight.shape[1:])
            weight.normal_(
                std=1 / math.sqrt(fan_in) if is_matrix else 0.02, generator=self._generator
            )
            if name.endswith("gamma") or (name.endswith("weight") and weight.ndim == 1):
                weight.add_(1)
        return module.requires_grad_(False)


class Clock(Protocol):
    def mark(self) -> None: ...

    def durations_ms(self) -> list[float]:
        """Between each mark and the next."""
        ...


class EventClock:
    def __init__(self) -> None:
        self._events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)

    def durations_ms(self) -> list[float]:
        torch.cuda.synchronize()
        pairs = zip(self._events, self._events[1:], strict=False)
        return [earlier.elapsed_time(later) for earlier, later in pairs]


class HostClock:
    def __init__(self) -> None:
        self._times_s: list[float] = []

    def mark(self) -> None:
        self._times_s.append(time.perf_counter())

    def durations_ms(self) -> list[float]:
        durations: list[float] = (np.diff(self._times_s) * 1e3).tolist()
        return durations


@dataclass(frozen=True)
class Bench:
    device: torch.device
    blocks: int
    compile_limit_s: int

    def measure(self, *parts: Callable[[], object]) -> list[list[float]]:
        """Milliseconds of each part in every block, the parts one after the other."""
        for _ in range(WARM_UP_BLOCKS):
            for part in parts:
                part()
        clock: Clock = EventClock() if self.device.type == "cuda" else HostClock()
        clock.mark()
        for _ in range(self.blocks):
            for part in parts:
                part()
                clock.mark()
        taken = clock.durations_ms()
        return [taken[number :: len(parts)] for number in range(len(parts))]

    def measure_compiled(
        self, switch: Callable[[], None], part: Callable[[], object]
    ) -> list[float] | str:
        """The same for one part once it is compiled, or why it could not be."""
        started = time.perf_counter()
        try:
            with time_limit(self.compile_limit_s):
                switch()
                for _ in range(WARM_UP_BLOCKS):
                    part()
                self._finish()
        except Exception as error:  # torch's compilers raise anything
            return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"compiled in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        return self.measure(part)[0]

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def expire(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def summary(series_ms: list[float] | str, frames: int) -> dict[str, Any]:
    if isinstance(series_ms, str):
        return {"failed": series_ms}
    levels = percentiles(series_ms)
    return {
        **levels,
        "max": round(max(series_ms), 3),
        "video_frames_per_s": round(frames / levels["p50"] * 1e3, 3),
        "series_ms": rounded(series_ms),
    }


def attention_of(device: torch.device) -> AbstractContextManager[None]:
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel(SDPBackend.CUDNN_ATTENTION)


def run(config: ModelConfig, bench: Bench, seed: int, *, compile_too: bool) -> dict[str, Any]:
    draw = Draw(seed, bench.device)
    transformer = TransformerRollout(
        config, draw.fill(lambda: Transformer(config.transformer), bench.device), seed
    )
    assert isinstance(config.vae, VaeConfig)
    vae_config = config.vae
    vae_model = draw.fill(lambda: VaeDecoder(vae_config), bench.device)
    vae = VaeRollout(config, vae_model, seed)
    results: dict[str, list[float] | str] = {}
    # Both parts of a block in turn, as a video needs them.
    transformer_ms, vae_ms = bench.measure(transformer.run_block, vae.run_block)
    results["transformer eager"], results["vae eager"] = transformer_ms, vae_ms
    results["block eager"] = [sum(pair) for pair in zip(transformer_ms, vae_ms, strict=True)]
    vae.use_channels_last(vae_model)
    (results["vae eager, channels last"],) = bench.measure(vae.run_block)
    if compile_too:
        results["transformer compiled"] = bench.measure_compiled(
            transformer.use_compiled, transformer.run_block
        )
        results["vae compiled, channels last"] = bench.measure_compiled(
            vae.use_compiled, vae.run_block
        )
    frames = config.rollout.frames_per_block * config.temporal_factor
    return {name: summary(series, frames) for name, series in results.items()}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--config", default="longlive-1.3b")
    options.add_argument("--device", default="cuda")
    options.add_argument("--blocks", type=int, default=20)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--no-compile", action="store_true")
    options.add_argument("--compile-limit-s", type=int, default=40, help="of each part")
    chosen = options.parse_args()
    device, config = torch.device(chosen.device), load_config(chosen.config)
    torch.backends.cudnn.benchmark = True
    bench = Bench(device, chosen.blocks, chosen.compile_limit_s)
    with torch.no_grad(), attention_of(device):
        results = run(config, bench, chosen.seed, compile_too=not chosen.no_compile)
    report = {
        "command": command(),
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "model": config.name,
        "precision": "bf16",
        "blocks": chosen.blocks,
        "warm_up_blocks": WARM_UP_BLOCKS,
        "passes_per_block": len(config.rollout.steps) + 1,
        "video_frames_per_block": config.rollout.frames_per_block * config.temporal_factor,
        "results": results,
    }
    for name, result in results.items():
        rate = {key: value for key, value in result.items() if key != "series_ms"}
        print(f"{name:28s} {rate}")
    write_report(report, chosen.out)


if __name__ == "__main__":
    main()
