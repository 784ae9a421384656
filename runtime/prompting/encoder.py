"""Prompts into the transformer's cross-attention keys and values, kept while they fit."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from longlive_trt.basics import Array, Closing
from longlive_trt.contract import CONTEXT_K, CONTEXT_V, IDS, MASK, TEXT_STATES
from longlive_trt.engines.base import Engine
from longlive_trt.runtime.memory.base import Buffer, HostMemory, Memory, buffers, named, size_bytes
from longlive_trt.runtime.prompting.tokenizer import PromptTokenizer, TokenizedPrompt
from longlive_trt.runtime.transformer import Context

logger = logging.getLogger(__name__)

DEFAULT_BUDGET_BYTES = 1 << 30


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
            context = self.memory.reserve(self._buffers, "a prompt")
            self._engine.bind(self._states, context).run()
            self.memory.settle()
        return context

    def close(self) -> None:
        """Give all contexts back; no session may be about to take one."""
        self.memory.close()


@dataclass(frozen=True)
class EncodedPrompt:
    states: Array
    """On the host, where they are small: what prompts are mixed from."""
    context: Context


class PromptEncoder:
    """Text to contexts. Those asked for last stay, up to a budget of bytes."""

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        text: Engine,
        contexts: PromptContexts,
        *,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
        on_truncation: Callable[[str, str], None] = lambda _prompt, _kept: None,
        beside: bool = False,
    ) -> None:
        """``beside``: prompts that will be asked for may be encoded on a thread, meanwhile."""
        self._tokenizer, self._text, self.contexts = tokenizer, text, contexts
        self._budget_bytes = budget_bytes
        self._on_truncation = on_truncation
        self._kept: OrderedDict[str, EncodedPrompt] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "prompts") if beside else None
        self._coming: dict[str, Future[EncodedPrompt]] = {}
        self.is_closed = False

    def prepare(self, prompt: str) -> None:
        """Encode a prompt that is expected, where that holds nothing else up."""
        if self._thread and prompt not in self._kept and prompt not in self._coming:
            self._coming[prompt] = self._thread.submit(self._encode, prompt)

    def close(self) -> None:
        """Finish what is being encoded, and forget everything."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._coming.clear()
        self._kept.clear()
        self.contexts.close()
        self.is_closed = True

    def context_of(self, prompt: str) -> Context:
        return self._encoded(prompt).context

    def states_of(self, prompt: str) -> Array:
        """Text states [1, text_len, text_dim]."""
        return self._encoded(prompt).states

    def _encoded(self, prompt: str) -> EncodedPrompt:
        if prompt not in self._kept:
            self.prepare(prompt)
            coming = self._coming.pop(prompt, None)
            self._kept[prompt] = coming.result() if coming else self._encode(prompt)
        self._kept.move_to_end(prompt)
        while len(self._kept) > max(1, self._budget_bytes // self.contexts.size_bytes):
            self._kept.popitem(last=False)
        return self._kept[prompt]

    def _encode(self, prompt: str) -> EncodedPrompt:
        tokens = self._tokenizer.encode(prompt)
        if tokens.truncated_at is not None:
            self._on_truncation(prompt, tokens.truncated_at)
        with self.contexts.one_at_a_time:
            states = self._states_of(tokens)
            return EncodedPrompt(states, self.contexts.of_states(states))

    def _states_of(self, tokens: TokenizedPrompt) -> Array:
        memory, text = self.contexts.memory, self._text
        given = memory.reserve(buffers(text.inputs.values(), batch=1), "a prompt's tokens")
        states = memory.reserve(buffers(text.outputs.values(), batch=1), "a prompt's states")
        memory.write(given[IDS], tokens.ids[None])
        memory.write(given[MASK], tokens.mask[None])
        text.bind(given, states).run()
        return memory.fetch(states[TEXT_STATES]).result()
