"""The settings that are tried, by the group of the log that they stand in."""

from typing import Any

from benchmarks.quality.lab import REFERENCE, Trial
from benchmarks.quality.ways import IDEAS, in_torch
from longlive_trt.configs import load_preset, shipped_presets

FIRST_FOUR = "rollout.first_steps=[1000, 750, 500, 250]"


def _steps(name: str, title: str, *steps: int, more: tuple[str, ...] = ()) -> Trial:
    return Trial(name, title, overrides=(f"rollout.steps={list(steps)}", *more))


def _rollout(name: str, title: str, **changes: Any) -> Trial:
    return Trial(name, title, overrides=tuple(f"rollout.{k}={v}" for k, v in changes.items()))


STEPS = (
    _steps("steps-1", "1 step", 1000),
    _steps("steps-2", "2 steps", 1000, 500),
    _steps("steps-3", "3 steps", 1000, 750, 500),
    _steps("steps-2-late", "2 steps, the second later: 1000, 250", 1000, 250),
    _steps("steps-2-early", "2 steps, the second earlier: 1000, 750", 1000, 750),
    _steps("steps-3-uneven", "3 steps, uneven: 1000, 750, 250", 1000, 750, 250),
    _steps("steps-3-even", "3 steps, even: 1000, 667, 333", 1000, 667, 333),
    _steps("steps-5", "5 steps: 1000, 800, 600, 400, 200", 1000, 800, 600, 400, 200),
    _steps("steps-6", "6 steps: 1000, 833, ..., 167", 1000, 833, 667, 500, 333, 167),
)
OPENING = (
    _steps("first-4-then-3", "4 steps in the first block, then 3", 1000, 750, 500,
           more=(FIRST_FOUR,)),
    _steps("first-4-then-2", "4 steps in the first block, then 2", 1000, 500, more=(FIRST_FOUR,)),
    _steps("first-4-then-1", "4 steps in the first block, then 1", 1000, more=(FIRST_FOUR,)),
)  # fmt: skip
WINDOWS = (
    _rollout("window-6", "window 6: the sink and the block alone", window_frames=6),
    _rollout("window-9", "window 9", window_frames=9),
    _rollout("window-15", "window 15", window_frames=15),
    _rollout("window-21", "window 21", window_frames=21),
    _rollout("sink-0", "sink 0, window 12", sink_frames=0),
    _rollout("sink-1", "sink 1, window 12", sink_frames=1),
    _rollout("moving-sink", "a switch replaces the sink", global_sink="false"),
)
SWITCHES = (
    Trial("switch-partial", "`partial`", switch="partial"),
    Trial("switch-none", "`none`", switch="none"),
    Trial("switch-blend-2", "`blend:2`", switch="blend:2"),
    Trial("switch-blend-4", "`blend:4`", switch="blend:4"),
)
COMBINED = (
    Trial("light", "the light decoder", decoder="light"),
    Trial("light-steps-2", "the light decoder, 2 steps", decoder="light",
          overrides=("rollout.steps=[1000, 500]",)),
    Trial("light-steps-1", "the light decoder, 1 step", decoder="light",
          overrides=("rollout.steps=[1000]",)),
    _steps("steps-2-window-9", "2 steps, window 9", 1000, 500, more=("rollout.window_frames=9",)),
)  # fmt: skip
_IN_TORCH = {name: Trial(name, title, idea=in_torch(name, way)) for name, title, way in IDEAS}


def _named(*beginnings: str) -> tuple[Trial, ...]:
    return tuple(trial for name, trial in _IN_TORCH.items() if name.startswith(beginnings))


GROUPS: dict[str, tuple[Trial, ...]] = {
    "steps": STEPS,
    "opening": OPENING,
    "windows": WINDOWS,
    "switches": SWITCHES,
    "combined": COMBINED,
    "cache": _named("pooled", "cache"),
    "attention": _named("near", "merged"),
    "passes": _named("exit", "coarse", "preview"),
}


def presets() -> tuple[Trial, ...]:
    """Of which the demo's own bundle can make the videos."""
    shipped = [name for name in shipped_presets() if load_preset(name).build.precision is None]
    return tuple(Trial(name, name, preset=name) for name in shipped)


def every() -> dict[str, Trial]:
    listed = (REFERENCE, *presets(), *(trial for group in GROUPS.values() for trial in group))
    return {trial.name: trial for trial in listed}


def chosen(names: str | None) -> list[Trial]:
    known = every()
    wanted = list(known) if names is None else names.split(",")
    wanted = [name for part in wanted for name in _members(part)]
    if unknown := [name for name in wanted if name not in known]:
        raise SystemExit(
            f"--trials {','.join(unknown)}: no such trial; there are {', '.join(known)}, and the "
            f"groups presets, {', '.join(GROUPS)}"
        )
    return [known[name] for name in dict.fromkeys(wanted)]


def _members(name: str) -> list[str]:
    if name == "presets":
        return [trial.name for trial in presets()]
    return [trial.name for trial in GROUPS[name]] if name in GROUPS else [name]
