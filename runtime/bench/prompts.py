"""Prompts that nobody has seen before, for measuring what it takes to change to one."""

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol

from longlive_trt.basics import Array
from longlive_trt.configs import ModelConfig
from longlive_trt.runtime.noise import SeededNoise
from longlive_trt.runtime.prompting.encoder import PromptContexts, PromptEncoder
from longlive_trt.runtime.transformer import Context

_TEXT = "Scene {}: a red fox walks through fresh snow."

RANDOM_TOKENS = 120
"""Of random prompts: some ninety words. Engines may read the padding behind them once."""


class NewPrompt(Protocol):
    def announce(self) -> None:
        """It will be asked for: encode it beside what is made meanwhile."""
        ...

    def context(self) -> Context:
        """Encodes it, or waits until that is done."""
        ...


class Prompts(Protocol):
    def numbered(self, number: int) -> NewPrompt: ...

    def close(self) -> None:
        """Finish what is being encoded."""
        ...


class TextPrompts:
    """Texts, which a text encoder encodes."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder

    def numbered(self, number: int) -> NewPrompt:
        return _Text(self._encoder, _TEXT.format(number))

    def close(self) -> None:
        self._encoder.close()


class _Text:
    def __init__(self, encoder: PromptEncoder, text: str) -> None:
        self.announce = partial(encoder.prepare, text)
        self.context = partial(encoder.context_of, text)


class RandomPrompts:
    """For bundles without a text encoder: only states to keys and values is left to be done."""

    def __init__(self, contexts: PromptContexts, config: ModelConfig, seed: int) -> None:
        self._contexts, self._seed = contexts, seed
        self._shape = (1, config.transformer.text_len, config.transformer.text_dim)
        self._thread = ThreadPoolExecutor(1, "prompts")

    def numbered(self, number: int) -> NewPrompt:
        states = SeededNoise(self._seed + number, self._shape, 1).block(0).initial
        states[:, RANDOM_TOKENS:] = 0
        return _States(self._contexts, states, self._thread)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


class _States:
    def __init__(self, contexts: PromptContexts, states: Array, thread: ThreadPoolExecutor) -> None:
        self._contexts, self._states, self._thread = contexts, states, thread
        self._coming: Future[Context] | None = None

    def announce(self) -> None:
        self._coming = self._thread.submit(self._contexts.of_states, self._states)

    def context(self) -> Context:
        return self._coming.result() if self._coming else self._contexts.of_states(self._states)
