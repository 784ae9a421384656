"""Prompts into contexts: what is computed, what is kept, and what is told."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longlive_trt.contract import CONTEXT_TOKENS
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.errors import EngineError
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.memory.base import HostMemory
from longlive_trt.runtime.prompting.encoder import (
    OnTokens,
    PromptContexts,
    PromptEncoder,
    PromptReader,
    untold,
)
from longlive_trt.runtime.prompting.tokenizer import PromptTokenizer

TEXT_LEN = 5
"""Four bytes of a prompt, and the end mark."""


@pytest.fixture(scope="module")
def engines(video_bundle: Path) -> Iterator[Engines]:
    with Engines(open_bundle(video_bundle)) as engines:
        yield engines


class CountingEngine:
    def __init__(self, engine: Any) -> None:
        self._engine, self.bound = engine, 0
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def bind(self, *arguments: Any) -> Any:
        self.bound += 1
        return self._engine.bind(*arguments)


def encoder_of(
    engines: Engines,
    on_tokens: OnTokens = untold,
    **options: Any,
) -> tuple[PromptEncoder, CountingEngine]:
    text: Any = CountingEngine(engines.get("text", "testing"))
    contexts = engines.contexts(1)
    tokenizer = PromptTokenizer.load(engines.bundle.tokenizer, TEXT_LEN)
    reader = PromptReader(tokenizer, text, contexts.memory, on_tokens)
    return PromptEncoder(lambda: reader, contexts, **options), text


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_contexts_have_keys_and_values_of_every_layer(engines: Engines) -> None:
    encoder, _ = encoder_of(engines)
    context = encoder.context_of("a cat")
    tokens = context["context_tokens"]
    parts = {f"context_{part}.{layer}" for part in "kv" for layer in range(2)}
    assert set(context) == {*parts, "context_tokens"}
    assert {context[name].shape for name in parts} == {(1, TEXT_LEN, 3, 12)}
    # Four of the prompt and the end mark; a shorter one has padding, which a token stands for.
    assert tokens == TEXT_LEN and encoder.context_of("a")["context_tokens"] == 3
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
    told: list[tuple[str, str | None]] = []
    encoder, _ = encoder_of(engines, lambda *read: told.append((read[0], read[1].truncated_at)))
    long = "x" * 100
    for prompt in ("four", long, long):
        encoder.context_of(prompt)
    assert told == [("four", None), (long, "xxxx")]


def test_what_is_cut_off_has_no_influence(engines: Engines) -> None:
    encoder, _ = encoder_of(engines)
    one, other = (encoder.context_of("x" * 4 + rest) for rest in ("yy", "zzz"))
    assert same(one, other)


def test_one_row_of_states_serves_the_whole_batch(engines: Engines) -> None:
    prompt = engines.get("prompt", "testing")
    states = np.random.default_rng(0).standard_normal((1, TEXT_LEN, 12), np.float32)
    pair = PromptContexts(prompt, 2).of_states(states)
    single = PromptContexts(prompt, 1).of_states(states)
    assert pair.pop(CONTEXT_TOKENS) == single[CONTEXT_TOKENS] == TEXT_LEN
    for name, array in pair.items():
        assert array.shape[0] == 2
        np.testing.assert_allclose(array, np.repeat(single[name], 2, 0), rtol=1e-4, atol=1e-5)


def test_nothing_is_loaded_before_the_first_prompt(engines: Engines) -> None:
    opened: list[bool] = []

    def open_reader() -> PromptReader:
        opened.append(True)
        tokenizer = PromptTokenizer.load(engines.bundle.tokenizer, TEXT_LEN)
        return PromptReader(tokenizer, engines.get("text", "testing"), HostMemory())

    encoder = PromptEncoder(open_reader, engines.contexts(1))
    assert not opened
    encoder.load()
    for prompt in ("a", "b"):
        encoder.context_of(prompt)
    assert len(opened) == 1


# ---- prompts that are announced --------------------------------------------------------------


@pytest.fixture
def beside(engines: Engines) -> Iterator[tuple[PromptEncoder, CountingEngine]]:
    """With room for three contexts."""
    size = engines.contexts(1).size_bytes
    encoder, text = encoder_of(engines, budget_bytes=3 * size, beside=True)
    yield encoder, text
    encoder.close()


def idle(encoder: PromptEncoder) -> None:
    assert encoder._thread is not None
    encoder._thread.submit(lambda: None).result()


def test_an_announced_prompt_is_encoded_once(beside: tuple[PromptEncoder, CountingEngine]) -> None:
    encoder, text = beside
    encoder.prepare("a")
    encoder.prepare("a")
    idle(encoder)
    assert text.bound == 1
    first = encoder.context_of("a")
    encoder.prepare("a")
    assert encoder.context_of("a") is first
    assert text.bound == 1


def test_what_was_announced_and_never_asked_for_takes_a_place_as_any_other(
    beside: tuple[PromptEncoder, CountingEngine],
) -> None:
    """However many prompts somebody tries, they take no more memory than the budget."""
    encoder, text = beside
    for number in range(20):
        encoder.prepare(f"prompt {number}")
        idle(encoder)
    assert len(encoder._kept) + len(encoder._coming) <= 4
    encoder.context_of("prompt 19")
    assert text.bound == 20


def test_a_prompt_that_failed_is_tried_again(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, _ = encoder_of(engines, beside=True)
    with monkeypatch.context() as patch:

        def fail(*_: object) -> Any:
            raise EngineError("a test")

        patch.setattr(PromptReader, "states_of", fail)
        with pytest.raises(EngineError, match="a test"):
            encoder.context_of("a")
        encoder.prepare("b")
        idle(encoder)
    encoder.prepare("c")
    with pytest.raises(EngineError, match="a test"):
        encoder.context_of("b")
    for prompt in ("a", "b"):
        assert encoder.context_of(prompt)
    encoder.close()
