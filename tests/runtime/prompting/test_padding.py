import numpy as np
import pytest

from longlive_trt.runtime.prompting.padding import tokens_of_keys, tokens_of_states

PLACES = 8


def states(*own: int) -> np.ndarray:
    """Of prompts with so many tokens."""
    values = np.random.default_rng(0).standard_normal((len(own), PLACES, 3), np.float32)
    for row, count in zip(values, own, strict=True):
        row[count:] = 0
    return values


@pytest.mark.parametrize(
    ("own", "told_apart"), [((3,), 4), ((7,), 8), ((8,), 8), ((0,), 1), ((2, 5), 6), ((0, 0), 1)]
)
def test_one_token_stands_for_the_padding(own: tuple[int, ...], told_apart: int) -> None:
    prompt = states(*own)
    assert tokens_of_states(prompt).tolist() == [[told_apart]]
    # Whatever is made of each token: keys of two heads, and values.
    keys = np.repeat(prompt[:, :, None] + 1, 2, axis=2)
    assert tokens_of_keys(keys, keys * 2).tolist() == [[told_apart]]


def test_a_token_without_a_trace_inside_a_prompt_is_none_of_the_padding() -> None:
    prompt = states(5)
    prompt[:, 2] = 0
    assert tokens_of_states(prompt).tolist() == [[6]]


def test_keys_and_values_are_told_apart_by_either() -> None:
    keys = np.zeros((1, PLACES, 2, 3), np.float16)
    values = keys.copy()
    values[0, 4, 1, 2] = 1
    assert tokens_of_keys(keys, values).tolist() == [[6]]
    assert tokens_of_keys(values, keys).tolist() == [[6]]
