"""Clips that the demo's world draws of the scenes that prompts state."""

from collections.abc import Mapping, Sequence

import numpy as np

from longlive_trt.quality.metrics.similarity import Pixels

_TRIES = 64
"""Scenes that are drawn at once; some of them fit what is stated."""


def world_clips(
    shows: Mapping[str, str], starts_s: Sequence[float], pictures: int, seed: int
) -> list[Pixels]:
    """One clip for each of the seconds of a scene; what is not stated of it is drawn."""
    import torch

    from longlive_trt.demo.scenes import Scenes
    from longlive_trt.demo.world.clips import NEVER, render_clips

    row, land = _scene(shows, seed)
    scenes = Scenes.of([row] * len(starts_s), [land] * len(starts_s), "cpu")
    never, start = torch.full((len(scenes),), NEVER), 20 + torch.tensor(starts_s) + 0.8 * land
    clips = render_clips(scenes, scenes, never, pictures, start=start)
    return list(np.asarray(clips.numpy()))


def _scene(shows: Mapping[str, str], seed: int) -> tuple[dict[str, int], float]:
    """The scene's attributes by their numbers, and where in the land it lies."""
    from longlive_trt.demo.scenes import ATTRIBUTES, SceneSource, fits

    scenes = SceneSource(seed).scenes(_TRIES)
    stated = {name: ATTRIBUTES[name].index(value) for name, value in shows.items()}
    rows = [{**row, **stated} for row in scenes.rows()]
    which = next((n for n, row in enumerate(rows) if fits(row["place"], row["traveler"])), 0)
    return rows[which], float(scenes.seed[which])
