"""Prompts into contexts: what is computed, what is kept, and what is told."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.prompting.encoder import PromptContexts, PromptEncoder
from longlive_trt.runtime.prompting.tokenizer import PromptTokenizer


@pytest.fixture(scope="module")
def engines(tiny_bundle: Path) -> Iterator[Engines]:
    with Engines(open_bundle(tiny_bundle)) as engines:
        yield engines


class CountingEngine:
    def __init__(self, engine: Any) -> None:
        self._engine, self.bound = engine, 0
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def bind(self, *arguments: Any) -> Any:
        self.bound += 1
        return self._engine.bind(*arguments)


def encoder_of(engines: Engines, **options: Any) -> tuple[PromptEncoder, CountingEngine]:
    text = CountingEngine(engines.get("text", "testing"))
    tokenizer = PromptTokenizer.load(engines.bundle.tokenizer, 64)
    return PromptEncoder(tokenizer, text, engines.contexts(1), **options), text  # type: ignore[arg-type]


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_contexts_have_keys_and_values_of_every_layer(engines: Engines) -> None:
    encoder, _ = encoder_of(engines)
    context = encoder.context_of("a cat")
    assert set(context) == {f"context_{part}.{layer}" for part in "kv" for layer in range(2)}
    assert {array.shape for array in context.values()} == {(1, 64, 2, 128)}
    assert not same(context, encoder.context_of("a dog"))


def test_a_prompt_is_encoded_once(engines: Engines) -> None:
    encoder, text = encoder_of(engines)
    first = encoder.context_of("a cat")
    encoder.context_of("a dog")
    assert encoder.context_of("a cat") is first
    assert text.bound == 2


def test_the_ones_asked_for_last_stay_within_the_budget(engines: Engines) -> None:
    size = engines.contexts(1).size_bytes
    encoder, text = encoder_of(engines, budget_bytes=2 * size)
    for prompt in ("a", "b", "a", "c"):
        encoder.context_of(prompt)
    assert text.bound == 3
    encoder.context_of("a")
    assert text.bound == 3
    encoder.context_of("b")
    assert text.bound == 4


def test_one_context_is_kept_whatever_the_budget(engines: Engines) -> None:
    encoder, text = encoder_of(engines, budget_bytes=0)
    assert same(encoder.context_of("a"), encoder.context_of("a"))
    assert text.bound == 1


def test_a_cut_prompt_is_told_once(engines: Engines) -> None:
    told: list[tuple[str, str]] = []
    encoder, _ = encoder_of(engines, on_truncation=lambda *told_of: told.append(told_of))
    long = "x" * 100
    for prompt in ("short", long, long):
        encoder.context_of(prompt)
    assert told == [(long, "x" * 63)]


def test_what_is_cut_off_has_no_influence(engines: Engines) -> None:
    encoder, _ = encoder_of(engines)
    one, other = (encoder.context_of("x" * 63 + rest) for rest in ("yy", "zzz"))
    assert same(one, other)


def test_one_row_of_states_serves_the_whole_batch(engines: Engines) -> None:
    prompt = engines.get("prompt", "testing")
    states = np.random.default_rng(0).standard_normal((1, 64, 64), np.float32)
    pair = PromptContexts(prompt, 2).of_states(states)
    single = PromptContexts(prompt, 1).of_states(states)
    for name, array in pair.items():
        assert array.shape[0] == 2
        np.testing.assert_allclose(array, np.repeat(single[name], 2, 0), rtol=1e-4, atol=1e-5)
