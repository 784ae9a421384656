"""What videos of the demo model show of what their prompts say, by the demo's own measurements."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import numpy as np

from longlive_trt.configs import ModelConfig
from longlive_trt.quality.metrics.similarity import Pixels

DEMO = "demo"
SIZE = (96, 160)
"""Height and width of the demo's pictures, which its measurements are made for."""

Shows = Mapping[str, str]
"""Values by attribute, such as ``{"place": "sea"}``."""


def is_demo(config: ModelConfig) -> bool:
    return config.name == DEMO and config.video_size == SIZE


def can_judge() -> bool:
    return find_spec("torch") is not None


def judged(pictures: Pixels) -> dict[str, str]:
    """Every attribute's value in pictures [n, height, width, 3] that show one scene."""
    import torch

    from longlive_trt.demo.adherence.judge import judged as judge
    from longlive_trt.demo.scenes import ATTRIBUTES

    found = judge(torch.from_numpy(np.ascontiguousarray(pictures)))
    return {name: ATTRIBUTES[name][value] for name, value in found.items()}


def share_shown(pairs: Sequence[tuple[Shows, Shows]]) -> float | None:
    """Of all attributes that are stated, those that are shown; pairs of (stated, shown)."""
    asked = [shown[name] == value for stated, shown in pairs for name, value in stated.items()]
    return sum(asked) / len(asked) if asked else None


def shares_by_attribute(pairs: Sequence[tuple[Shows, Shows]]) -> dict[str, float]:
    names = dict.fromkeys(name for stated, _ in pairs for name in stated)
    shares = {}
    for name in names:
        own = [({name: stated[name]}, shown) for stated, shown in pairs if name in stated]
        share = share_shown(own)
        assert share is not None
        shares[name] = share
    return shares
