"""What is measured on one video: brightness, motion, flicker, drift."""

import numpy as np
import pytest

from longlive_trt.quality.metrics.course import MEASURES, Course, relative_change


def video(*levels: float) -> np.ndarray:
    return np.stack([np.full((16, 24, 3), level, np.uint8) for level in levels])


def test_pictures_may_come_in_blocks_of_any_size() -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (12, 18, 26, 3), np.uint8)
    whole, parts = Course(), Course()
    whole.add(pictures)
    for start, end in ((0, 1), (1, 9), (9, 12)):
        parts.add(pictures[start:end])
    assert whole.values() == parts.values()
    assert {name: len(series) for name, series in whole.values().items()} == dict.fromkeys(
        MEASURES, 12
    )


def test_what_jumps_flickers_and_what_changes_steadily_does_not() -> None:
    steady, jumping = Course(), Course()
    steady.add(video(*range(0, 100, 10)))
    jumping.add(video(*([100, 110] * 5)))
    assert max(steady.flicker) == pytest.approx(0, abs=1e-3)
    assert jumping.flicker[2:] == pytest.approx([10] * 8, abs=1e-3)
    assert steady.motion[1:] == pytest.approx([10] * 9, abs=1e-3)


def test_sharpness_and_saturation() -> None:
    stripes = np.zeros((1, 8, 8, 3), np.uint8)
    stripes[:, :, ::2] = (90, 60, 30)
    course = Course()
    course.add(stripes)
    luma = 0.299 * 90 + 0.587 * 60 + 0.114 * 30
    assert course.sharpness == pytest.approx([luma], rel=1e-4)
    assert course.saturation == [30]


def test_the_end_is_compared_with_the_beginning() -> None:
    values = [0.0] * 2 + [10.0] * 4 + [50.0] * 3 + [12.0] * 4
    assert relative_change(values, 4, 2) == pytest.approx(0.2)
    assert relative_change(values, 6, 2) is None, "too short"
