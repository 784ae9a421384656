"""Pictures into latents, by the VAE's encoder: a latent frame at a time, with its memory kept."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.contract import HISTORY, LATENTS, PIXELS, next_of
from longlive_trt.engines.base import Binding, Engine
from longlive_trt.runtime.memory.base import Buffer, HostMemory, Memory, Tensor, buffers, named


class EncoderStream:
    """Whole clips: the first picture is a latent frame, then every few pictures are one."""

    def __init__(self, first: Engine, following: Engine, memory: Memory | None = None) -> None:
        self._memory = memory or HostMemory()
        specs = named(following.inputs, HISTORY)
        caches = [
            self._memory.reserve(buffers(specs, batch=1), "the encoder's memory") for _ in range(2)
        ]
        self._tensors = self._memory.reserve(
            {
                "first": Buffer.of(first.inputs[PIXELS], batch=1),
                "following": Buffer.of(following.inputs[PIXELS], batch=1),
                LATENTS: Buffer.of(first.outputs[LATENTS], batch=1),
            },
            "a clip's pictures",
        )
        self._first = self._bind(first, "first", {}, caches[0])
        self._following = [
            self._bind(following, "following", caches[i], caches[1 - i]) for i in range(2)
        ]

    def encode(self, pictures: Iterable[Array]) -> Array:
        """1 + n * ``temporal_factor`` pictures [H, W, 3] into latents [1, 1 + n, C, h, w].

        What is no whole latent frame at the end is left out.
        """
        rest = iter(pictures)
        made = [
            self._encode("first", chunk, self._first)
            for chunk in self._chunks(islice(rest, 1), "first")
        ]
        for number, chunk in enumerate(self._chunks(rest, "following")):
            made.append(self._encode("following", chunk, self._following[number % 2]))
        return np.concatenate(made, axis=1)

    def _chunks(self, pictures: Iterator[Array], kind: str) -> Iterator[Array]:
        size = self._tensors[kind].shape[1]
        while len(chunk := list(islice(pictures, size))) == size:
            yield np.stack(chunk)

    def _encode(self, name: str, pictures: Array, binding: Binding) -> Array:
        self._memory.write(self._tensors[name], pictures[None])
        binding.run()
        return self._memory.fetch(self._tensors[LATENTS]).result()

    def _bind(
        self,
        engine: Engine,
        pictures: str,
        caches: Mapping[str, Tensor],
        renewed: Mapping[str, Tensor],
    ) -> Binding:
        outputs = {next_of(name): tensor for name, tensor in renewed.items()}
        inputs = {PIXELS: self._tensors[pictures], **caches}
        return engine.bind(inputs, {LATENTS: self._tensors[LATENTS], **outputs})
