import random

import pytest

from longlive_trt.demo.captions import caption
from longlive_trt.demo.scenes import SceneSource
from longlive_trt.demo.vocabulary import speaks_of_the_world, what_it_knows


def test_captions_speak_of_the_world() -> None:
    rng = random.Random(1)
    assert all(speaks_of_the_world(caption(row, rng)) for row in SceneSource(1).scenes(100).rows())


@pytest.mark.parametrize("prompt", ["a zebra plays the piano", "", "over and out", "12345"])
def test_other_prompts_do_not(prompt: str) -> None:
    assert not speaks_of_the_world(prompt)


def test_one_line_names_everything() -> None:
    line = what_it_knows()
    assert "\n" not in line
    for word in ("desert", "sunset", "snow", "balloon", "purple", "left", "fast"):
        assert word in line
