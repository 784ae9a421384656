"""Prompts into the transformer's cross-attention keys and values, kept while they fit."""

import logging
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from ..engines.base import Array, Engine
from .memory import allocate, named, total_bytes
from .tokenizer import PromptTokenizer
from .transformer import Context

logger = logging.getLogger(__name__)

DEFAULT_BUDGET_BYTES = 1 << 30


class PromptContexts:
    """The prompt graph: text states to keys and values."""

    def __init__(self, engine: Engine, batch: int) -> None:
        self._engine, self._batch = engine, batch

    def of_states(self, states: Array) -> Context:
        """Text states [1 or B, text_len, text_dim]; one row serves the whole batch."""
        spec = self._engine.inputs["text_states"]
        shape = spec.sized(batch=self._batch)
        given = np.ascontiguousarray(np.broadcast_to(states, shape), spec.dtype)
        outputs = named(self._engine.outputs, "context_k", "context_v")
        context = allocate(outputs, batch=self._batch)
        self._engine.bind({"text_states": given}, context).run()
        return context


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
    ) -> None:
        self._tokenizer, self._text, self._contexts = tokenizer, text, contexts
        self._budget_bytes = budget_bytes
        self._on_truncation = on_truncation
        self._kept: OrderedDict[str, Context] = OrderedDict()

    def context_of(self, prompt: str) -> Context:
        if prompt not in self._kept:
            self._kept[prompt] = self._encode(prompt)
        self._kept.move_to_end(prompt)
        while (
            len(self._kept) > 1 and sum(map(total_bytes, self._kept.values())) > self._budget_bytes
        ):
            self._kept.popitem(last=False)
        return self._kept[prompt]

    def _encode(self, prompt: str) -> Context:
        tokens = self._tokenizer.encode(prompt)
        if tokens.truncated_at is not None:
            self._on_truncation(prompt, tokens.truncated_at)
        states = allocate(self._text.outputs.values(), batch=1)
        self._text.bind({"ids": tokens.ids[None], "mask": tokens.mask[None]}, states).run()
        return self._contexts.of_states(states["text_states"])
