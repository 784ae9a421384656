"""The settings that one bundle can change between while it makes a video."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from longlive_trt.configs import RolloutConfig, load_preset
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.errors import UsageError
from longlive_trt.runtime.plan import Plan
from longlive_trt.runtime.presets import runtime_config, served_presets
from longlive_trt.runtime.ring import RingLayout
from longlive_trt.runtime.transformer import Level

_PASS = 4
"""What a pass costs beside attention, in blocks that are attended: a rough figure."""


@dataclass(frozen=True)
class Rung:
    name: str
    level: Level
    cost: float


def ladder(bundle: Bundle, plan: Plan, name: str) -> list[Rung]:
    """The video's own settings, and the presets that are cheaper, in falling order of cost.

    They differ in steps and window alone, and make pictures as it does; ``name`` is what the
    video's own are called.
    """
    top = _rung(name, plan.config.rollout, plan)
    rungs = {top.level: top}
    for rung in sorted(_cheaper(bundle, plan, top), key=lambda rung: -rung.cost):
        rungs.setdefault(rung.level, rung)
    if len(rungs) == 1:
        raise UsageError(
            f"{bundle.folder}: no preset that this bundle can do is faster than {name}, so there "
            f"is nothing to step down to; begin with a better one, such as --preset balanced"
        )
    return list(rungs.values())


def _cheaper(bundle: Bundle, plan: Plan, top: Rung) -> Iterator[Rung]:
    own = plan.config.rollout
    for name in served_presets(bundle):
        if load_preset(name).build.decoder not in (None, plan.decoder):
            continue
        rollout = runtime_config(bundle.config, name).rollout
        changed = {"steps": rollout.steps, "window_frames": rollout.window_frames}
        if replace(own, **changed) != replace(rollout, first_steps=own.first_steps):  # type: ignore[arg-type]
            continue
        past = rollout.window_frames - rollout.sink_frames - rollout.frames_per_block
        fits = rollout.window_frames <= own.window_frames and len(rollout.steps) <= own.noises
        rung = _rung(name, rollout, plan)
        if fits and past % rollout.frames_per_block == 0 and rung.cost < top.cost:
            yield rung


def _rung(name: str, rollout: RolloutConfig, plan: Plan) -> Rung:
    layout = RingLayout.of(replace(plan.config, rollout=rollout), plan.total_frames)
    blocks = layout.window / layout.block
    cost = (len(rollout.steps) + 1) * (_PASS + blocks)
    return Rung(name, Level(rollout.steps, layout), cost)
