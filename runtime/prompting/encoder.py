"""Prompts into the transformer's cross-attention keys and values, kept while they fit."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import numpy as np

from longlive_trt.basics import Array, Closing
from longlive_trt.contract import CONTEXT_K, CONTEXT_TOKENS, CONTEXT_V, IDS, MASK, TEXT_STATES
from longlive_trt.engines.base import Engine
from longlive_trt.runtime.memory.base import Buffer, HostMemory, Memory, buffers, named, size_bytes
from longlive_trt.runtime.prompting.padding import TOKENS, tokens_of_states
from longlive_trt.runtime.prompting.tokenizer import PromptTokenizer, TokenizedPrompt
from longlive_trt.runtime.transformer import Context

logger = logging.getLogger(__name__)

DEFAULT_BUDGET_BYTES = 1 << 30

OnTokens = Callable[[str, TokenizedPrompt], None]
"""(prompt, its tokens)"""


def untold(_prompt: str, _tokens: TokenizedPrompt) -> None:
    """For prompts that nobody wrote."""


class PromptContexts(Closing):
    """The prompt graph: text states to keys and values."""

    def __init__(self, engine: Engine, batch: int, memory: Memory | None = None) -> None:
        self._engine, self._batch = engine, batch
        self.memory = memory or HostMemory()
        outputs = named(engine.outputs, CONTEXT_K, CONTEXT_V)
        self._buffers = buffers(outputs, batch=batch)
        self._states = self.memory.reserve(
            {TEXT_STATES: Buffer.of(engine.inputs[TEXT_STATES], batch=batch)}, "text states"
        )
        self.one_at_a_time = threading.RLock()
        """Prompts that are encoded beside the rest share the memory and, on a GPU, the stream."""

    @property
    def size_bytes(self) -> int:
        """Of one context."""
        return size_bytes(self._buffers.values())

    def of_states(self, states: Array) -> Context:
        """Text states [1 or B, text_len, text_dim]; one row serves the whole batch."""
        tensor = self._states[TEXT_STATES]
        with self.one_at_a_time:
            self.memory.write(tensor, np.broadcast_to(states, tensor.shape))
            context = self.memory.reserve({**self._buffers, CONTEXT_TOKENS: TOKENS}, "a prompt")
            self.memory.write(context[CONTEXT_TOKENS], tokens_of_states(states))
            made = {name: context[name] for name in self._buffers}
            self._engine.bind(self._states, made).run()
            self.memory.settle()
        return context

    def close(self) -> None:
        """Give all contexts back; no session may be about to take one."""
        self.memory.close()


class PromptReader:
    """Text to text states: the tokenizer, and the text encoder."""

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        text: Engine,
        memory: Memory,
        on_tokens: OnTokens = untold,
    ) -> None:
        """``on_tokens`` is told of every prompt that is read, and what of it."""
        self._tokenizer, self._text, self._memory = tokenizer, text, memory
        self._on_tokens = on_tokens

    def states_of(self, prompt: str) -> Array:
        """[1, text_len, text_dim], on the host, where they are small."""
        tokens = self._tokenizer.encode(prompt)
        self._on_tokens(prompt, tokens)
        memory, text = self._memory, self._text
        inputs = memory.reserve(buffers(text.inputs.values(), batch=1), "a prompt's tokens")
        outputs = memory.reserve(buffers(text.outputs.values(), batch=1), "a prompt's states")
        memory.write(inputs[IDS], tokens.ids[None])
        memory.write(inputs[MASK], tokens.mask[None])
        text.bind(inputs, outputs).run()
        return memory.fetch(outputs[TEXT_STATES]).result()


Encoded = tuple[Array, Context]
"""A prompt's text states, and its context."""


class PromptEncoder:
    """Text to contexts. Those asked for last stay, up to a budget of bytes."""

    def __init__(
        self,
        open_reader: Callable[[], PromptReader],
        contexts: PromptContexts,
        *,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
        beside: bool = False,
    ) -> None:
        """``open_reader`` is called when the first prompt comes: text encoders are large.

        ``beside``: prompts that will be asked for may be encoded on a thread, meanwhile.
        """
        self._open_reader, self.contexts = open_reader, contexts
        self._budget_bytes = budget_bytes
        self._thread = ThreadPoolExecutor(1, "prompts") if beside else None
        self._kept: OrderedDict[str, Encoded] = OrderedDict()
        self._coming: dict[str, Future[Encoded]] = {}
        self._changing = threading.RLock()
        """Prompts may be announced by other threads than the one that takes them."""
        self.is_closed = False

    @cached_property
    def _reader(self) -> PromptReader:
        return self._open_reader()

    def load(self) -> None:
        """Load the text encoder now."""
        _ = self._reader

    def prepare(self, prompt: str) -> None:
        """Encode a prompt that is expected, where that holds nothing else up."""
        if self._thread is None:
            return
        with self._changing:
            self._keep_finished()
            if prompt not in self._kept and prompt not in self._coming:
                self._coming[prompt] = self._thread.submit(self._encode, prompt)

    def context_of(self, prompt: str) -> Context:
        return self._encoded(prompt)[1]

    def states_of(self, prompt: str) -> Array:
        """Text states [1, text_len, text_dim]."""
        return self._encoded(prompt)[0]

    def forget(self) -> None:
        """The transformer's matrices are others now: every context is made anew."""
        with self._changing:
            coming, self._coming = self._coming, {}
            self._kept.clear()
        for future in coming.values():
            future.cancel()
        # One that has begun is over before the next one is asked for.
        with self.contexts.one_at_a_time:
            self._kept.clear()

    def close(self) -> None:
        """Finish what is being encoded, and forget everything."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._coming.clear()
        self._kept.clear()
        self.contexts.close()
        self.is_closed = True

    def _encoded(self, prompt: str) -> Encoded:
        self.prepare(prompt)
        with self._changing:
            encoded, coming = self._kept.get(prompt), self._coming.get(prompt)
        try:
            if encoded is None:
                encoded = coming.result() if coming else self._encode(prompt)
            with self._changing:
                self._keep(prompt, encoded)
        finally:
            # Of one that failed, too: the next time it is tried again.
            self._coming.pop(prompt, None)
        return encoded

    def _encode(self, prompt: str) -> Encoded:
        with self.contexts.one_at_a_time:
            states = self._reader.states_of(prompt)
            return states, self.contexts.of_states(states)

    def _keep_finished(self) -> None:
        """What was announced and never asked for takes its place among those that are kept."""
        for prompt, coming in list(self._coming.items()):
            # A failure is for whoever asks for the prompt.
            if coming.done() and coming.exception() is None:
                self._keep(prompt, coming.result())
                self._coming.pop(prompt, None)

    def _keep(self, prompt: str, encoded: Encoded) -> None:
        self._kept[prompt] = encoded
        self._kept.move_to_end(prompt)
        while len(self._kept) > max(1, self._budget_bytes // self.contexts.size_bytes):
            self._kept.popitem(last=False)
