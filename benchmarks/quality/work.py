"""What a setting computes and keeps, counted, as shares of what the model as it is does.

Work is that of a block in the steady state (``runtime/bench/flops.py``), passes and decoder. The
cache is what later blocks see: keys and values. Neither is a time; those are measured where a
setting is a preset (``speeds``).
"""

from dataclasses import dataclass, replace

from benchmarks.quality.lab import FULL, REFERENCE, Trial
from benchmarks.quality.ways import (
    CoarseFirst,
    EarlyExit,
    InTorch,
    MergedQueries,
    NearSighted,
    Pooled,
    Preview,
    RoundedCache,
)
from longlive_trt.configs import ModelConfig, TaehvConfig, load_config, load_preset
from longlive_trt.demo.geometry import model_config
from longlive_trt.runtime.bench.flops import pass_work, vae_flops
from longlive_trt.runtime.presets import runtime_config

LARGE = "longlive-1.3b"
_CACHE_BYTES = {"demo": 4, LARGE: 2}
"""Of a number, as each is built where nothing is said."""


@dataclass(frozen=True)
class Share:
    """In percent."""

    work: float
    cache: float


def shares(trial: Trial) -> tuple[Share, Share]:
    """Of the demo, and of the 1.3B model."""
    demo, large = model_config(), load_config(LARGE)
    large = replace(large, rollout=replace(large.rollout, rope=demo.rollout.rope))
    return _share(trial, demo, "demo"), _share(trial, large, LARGE)


def work_cell(trial: Trial) -> str:
    demo, large = shares(trial)
    return f"{demo.work:.0f} / {large.work:.0f}"


def cache_cell(trial: Trial) -> str:
    demo, large = (f"{share.cache:.0f}" for share in shares(trial))
    return demo if demo == large else f"{demo} / {large}"


def _share(trial: Trial, base: ModelConfig, model: str) -> Share:
    own, whole = _block(trial, base), _block(REFERENCE, base)
    kept, all_kept = (_cached(t, base, _CACHE_BYTES[model]) for t in (trial, REFERENCE))
    return Share(100 * own / whole, 100 * kept / all_kept)


def _block(trial: Trial, base: ModelConfig) -> float:
    config = runtime_config(base, trial.preset, trial.overrides)
    passes, step = len(config.rollout.steps) + 1, _Pass.of(config)
    changed = _changed(trial.idea, step, config) if isinstance(trial.idea, InTorch) else 0.0
    return passes * step.work + changed + _decoder(trial, base)


def _decoder(trial: Trial, base: ModelConfig) -> int:
    preset = load_preset(trial.preset).build.decoder if trial.preset else None
    is_full = (trial.decoder or preset or FULL) == FULL
    decoder = base.vae if is_full else base.light_vae or TaehvConfig()
    return vae_flops(base, base.rollout.frames_per_block, decoder)


@dataclass(frozen=True)
class _Pass:
    """Of a block's own frames against a full window."""

    config: ModelConfig
    own: float
    """Latent frames."""
    seen: float
    """Latent frames, its own among them."""

    @classmethod
    def of(cls, config: ModelConfig) -> "_Pass":
        return cls(config, config.rollout.frames_per_block, config.rollout.window_frames)

    @property
    def work(self) -> float:
        return pass_work(self.config, 1, 0).total * self.own + self.attention(self.seen)

    def attention(self, frames: float) -> float:
        """All queries against so many frames."""
        model, tokens = self.config.transformer, self.config.tokens_per_frame
        return 4 * model.layers * model.dim * self.own * tokens * frames * tokens


def _changed(idea: InTorch, step: _Pass, config: ModelConfig) -> float:
    """What an idea adds to a block's passes: less than nothing."""
    passes, way = len(config.rollout.steps) + 1, idea.way
    if idea.rollout is CoarseFirst:
        # A quarter of the tokens, against a past of whole frames.
        small = replace(step, own=step.own / 4, seen=step.seen - step.own * 3 / 4)
        return small.work - step.work
    if issubclass(idea.rollout, Preview):
        small = _Pass.of(Preview.configured(config))
        return passes * (small.work - step.work)
    if isinstance(way, EarlyExit):
        return -way.steps * way.skipped / config.transformer.layers * step.work
    return -passes * _less_attention(way, step)


def _less_attention(way: object, step: _Pass) -> float:
    sink, past = step.config.rollout.sink_frames, _past(step.config)
    if isinstance(way, Pooled):
        return step.attention(past - past / _pooled(way))
    if isinstance(way, NearSighted):
        return way.share * step.attention(past + (0 if way.with_sink else sink))
    return way.share * step.attention(step.seen) if isinstance(way, MergedQueries) else 0.0


def _past(config: ModelConfig) -> int:
    """Frames between the sink and the block."""
    rollout = config.rollout
    return rollout.window_frames - rollout.sink_frames - rollout.frames_per_block


def _pooled(way: Pooled) -> int:
    return way.frames * way.rows * way.columns


def _cached(trial: Trial, base: ModelConfig, item_bytes: int) -> float:
    config = runtime_config(base, trial.preset, trial.overrides)
    frames, sink, past = config.rollout.window_frames, config.rollout.sink_frames, _past(config)
    idea = trial.idea if isinstance(trial.idea, InTorch) else None
    way = idea.way if idea else None
    if idea and issubclass(idea.rollout, Preview):
        return frames * item_bytes / 4
    if isinstance(way, RoundedCache):
        return frames
    if isinstance(way, Pooled):
        return (frames - past + past / _pooled(way)) * item_bytes
    if isinstance(way, NearSighted):
        unseen = frames - sink if way.with_sink else frames
        return (frames - way.share * unseen) * item_bytes
    return frames * item_bytes
