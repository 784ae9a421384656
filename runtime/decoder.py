"""The VAE as a stream: latent frames in, pictures out, with every convolution's memory kept."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from ..engines.base import Array, Binding, Engine
from .memory import allocate, named


class VaeStream:
    """Decodes one latent frame at a time, so the result does not depend on how they arrive."""

    def __init__(
        self,
        first: Engine,
        following: Engine,
        batch: int,
        output: Literal["pixels", "frames"] = "pixels",
    ) -> None:
        self._output = output
        cache_specs = named(following.inputs, "cache")
        # One set is read while the other is written.
        self._caches = [allocate(cache_specs, batch=batch) for _ in range(2)]
        latents = following.inputs["latents"]
        self._latent = np.zeros(latents.sized(batch=batch, latent_frames=1), latents.dtype)
        self._first_picture = self._picture(first, batch)
        self._next_picture = self._picture(following, batch)
        self._first = self._bind(first, self._first_picture, None, self._caches[0])
        self._following = [
            self._bind(following, self._next_picture, self._caches[i], self._caches[1 - i])
            for i in range(2)
        ]
        self.latent_frames = 0

    def decode(self, latents: Array) -> Array:
        """Latents [B, n, C, h, w] that follow the ones before; frames [B, m, ...] of your own."""
        pieces = []
        for index in range(latents.shape[1]):
            self._latent[...] = latents[:, index : index + 1]
            pieces.append(self._decode_frame().copy())
        return np.concatenate(pieces, axis=1)

    @property
    def caches(self) -> Mapping[str, Array]:
        """What the next latent frame reads."""
        return self._caches[(self.latent_frames - 1) % 2]

    def restore(self, latent_frames: int, caches: Mapping[str, Array]) -> None:
        self.latent_frames = latent_frames
        for name, cache in self.caches.items():
            cache[...] = caches[name]

    def _decode_frame(self) -> Array:
        frame = self.latent_frames
        binding = self._following[(frame - 1) % 2] if frame else self._first
        binding.run()
        self.latent_frames += 1
        return self._next_picture if frame else self._first_picture

    def _picture(self, engine: Engine, batch: int) -> Array:
        spec = engine.outputs[self._output]
        return np.zeros(spec.sized(batch=batch, latent_frames=1), spec.dtype)

    def _bind(
        self,
        engine: Engine,
        picture: Array,
        caches: Mapping[str, Array] | None,
        renewed: Mapping[str, Array],
    ) -> Binding:
        outputs = {name.replace("cache", "cache_next"): array for name, array in renewed.items()}
        return engine.bind(
            {"latents": self._latent, **(caches or {})}, {self._output: picture, **outputs}
        )
