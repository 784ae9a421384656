"""Text states of the calibration prompts."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from longlive_trt.configs import ModelConfig
from longlive_trt.export.checkpoints.weights import Weights, fill
from longlive_trt.export.models.text_encoder import TextEncoder
from longlive_trt.export.torch_types import TORCH_TYPES


class TextStates(Protocol):
    @property
    def kind(self) -> str: ...

    def of(self, prompts: Sequence[str]) -> list[Tensor]:
        """[1, text_len, text_dim] for every prompt, rows past its end zero."""
        ...


class SyntheticTexts:
    """For a model without a text encoder: normal noise that depends on the prompt's words."""

    kind = "synthetic"

    def __init__(self, config: ModelConfig) -> None:
        self._shape = (config.transformer.text_len, config.transformer.text_dim)

    def of(self, prompts: Sequence[str]) -> list[Tensor]:
        return [self._states(prompt) for prompt in prompts]

    def _states(self, prompt: str) -> Tensor:
        rows, columns = self._shape
        seed = hashlib.sha256(prompt.encode()).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(seed, "little")))
        states = np.zeros((1, rows, columns), np.float32)
        # About one token a word and its punctuation, as real tokenizers have.
        used = min(rows, 1 + len(prompt.split()) * 4 // 3)
        states[:, :used] = generator.standard_normal((1, used, columns), dtype=np.float32)
        return torch.from_numpy(states)


Tokenize = Callable[[str], tuple[np.ndarray, np.ndarray]]
"""A prompt's ids and mask, each [text_len]."""


class EncodedTexts:
    """The model's own text encoder. It is loaded, used and gone before the rollouts begin."""

    kind = "encoder"

    def __init__(
        self, config: ModelConfig, weights: Weights, tokenize: Tokenize, compute: str, device: str
    ) -> None:
        self._config, self._weights, self._tokenize = config, weights, tokenize
        self._dtype, self._device = TORCH_TYPES[compute], device

    @torch.no_grad()
    def of(self, prompts: Sequence[str]) -> list[Tensor]:
        encoder = self._load()
        return [self._encode(encoder, prompt) for prompt in prompts]

    def _encode(self, encoder: TextEncoder, prompt: str) -> Tensor:
        ids, mask = (torch.from_numpy(a)[None].to(self._device) for a in self._tokenize(prompt))
        with torch.device(self._device):
            states: Tensor = encoder(ids, mask)
        return states.cpu()

    def _load(self) -> TextEncoder:
        assert self._config.text_encoder is not None
        with torch.device("meta"):
            encoder = TextEncoder(self._config.text_encoder)
        encoder.to(self._dtype).to_empty(device=self._device).requires_grad_(False)
        fill(encoder, self._weights)
        return encoder.eval()
