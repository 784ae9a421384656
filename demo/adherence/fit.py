"""Measures the world's own clips, so that :mod:`scenery` knows what each combination looks like."""

import argparse
import logging

import numpy as np
import torch
from torch import Tensor

from longlive_trt.demo.adherence.scenery import FITTED, combinations, fitted, measured
from longlive_trt.demo.scenes import SceneSource
from longlive_trt.demo.world.clips import NEVER, render_clips

log = logging.getLogger(__name__)

_FRAMES = 3


def measurements(each: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points and labels of ``each`` clips of every combination."""
    points, labels = [], []
    source = SceneSource(seed)
    for label, scenery in enumerate(combinations()):
        scenes = source.scenes(each * 12)
        scenes = scenes.take((scenes.place == scenery.place).nonzero()[:each, 0])
        scenes.time.fill_(scenery.time)
        scenes.weather.fill_(scenery.weather)
        never = torch.full((len(scenes),), NEVER)
        points += [measured(clip) for clip in render_clips(scenes, scenes, never, _FRAMES)]
        labels += [label] * len(scenes)
        log.info("%d of %d combinations", label + 1, len(combinations()))
    return torch.stack(points), torch.tensor(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=24, help="clips of every combination")
    parser.add_argument("--seed", type=int, default=77)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parts = fitted(*measurements(arguments.each, arguments.seed))
    np.savez_compressed(FITTED, allow_pickle=False, **parts)


if __name__ == "__main__":
    main()
