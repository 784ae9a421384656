import numpy as np
import pytest

from longlive_trt.runtime.memory.copying import copied


@pytest.mark.parametrize("shape", [(0,), (3, 5), (12, 480, 832, 3), (7, 331, 499, 3)])
def test_a_copy_is_the_callers_own(shape: tuple[int, ...]) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    copy = copied(pictures)
    assert copy.shape == shape and np.array_equal(copy, pictures)
    assert not np.shares_memory(copy, pictures)
