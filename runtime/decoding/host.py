"""The VAE as a stream: latent frames in, pictures out, with every convolution's memory kept."""

from abc import ABC, abstractmethod
from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from longlive_trt.basics import Array
from longlive_trt.contract import (
    BATCH,
    HISTORY,
    LATENT_FRAMES,
    LATENTS,
    PIXELS,
    latent_sizes,
    next_of,
)
from longlive_trt.engines.base import Binding, Engine, TensorSpec
from longlive_trt.runtime.memory.base import (
    Buffer,
    HostMemory,
    Memory,
    Pending,
    Span,
    Tensor,
    buffers,
    named,
)


class Part(Protocol):
    """Some of a block's pictures."""

    def result(self) -> Array:
        """Waits for them."""
        ...


class Decoding(Protocol):
    """A block's pictures in the making."""

    @property
    def parts(self) -> Sequence[Part]:
        """In the order in which they come."""
        ...

    def result(self) -> Array:
        """All pictures; waits for them."""
        ...

    def release(self) -> None:
        """Wait, or let the transformer wait, until the block's latents are no longer read."""
        ...


@dataclass(frozen=True)
class DecoderSnapshot:
    latent_frames: int
    caches: Mapping[str, Tensor]


class Decoder(Protocol):
    @property
    def latent_frames(self) -> int:
        """So many were decoded."""
        ...

    def start(self, latents: Tensor, *, is_awaited: bool = False) -> Decoding:
        """Decode the frames that follow beside whatever the caller does next.

        Where somebody waits for them (``is_awaited``), the first frame's pictures come by
        themselves, even if that takes longer in all.
        """
        ...

    def begin(self) -> None:
        """What comes next begins another video."""
        ...

    def settle(self) -> None: ...

    @property
    def caches(self) -> Mapping[str, Tensor]:
        """What the next latent frame reads."""
        ...

    def saved(self) -> Mapping[str, Array]:
        """The values of that; waits for them."""
        ...

    def restore(self, latent_frames: int, caches: Mapping[str, Array]) -> None:
        """From values that were saved."""
        ...

    def snapshot(self) -> DecoderSnapshot: ...

    def reinstate(self, snapshot: DecoderSnapshot) -> None: ...

    def close(self) -> None: ...


class RememberingDecoder(ABC):
    """What a decoder remembers, kept and put back."""

    _memory: Memory
    latent_frames: int

    @property
    @abstractmethod
    def caches(self) -> Mapping[str, Tensor]:
        """What the next latent frame reads."""

    def saved(self) -> Mapping[str, Array]:
        return {name: self._memory.fetch(cache).result() for name, cache in self.caches.items()}

    def begin(self) -> None:
        """What comes next begins another video."""
        self.latent_frames = 0

    def restore(self, latent_frames: int, caches: Mapping[str, Array]) -> None:
        self.latent_frames = latent_frames
        for name, cache in self.caches.items():
            self._memory.write(cache, caches[name])

    def snapshot(self) -> DecoderSnapshot:
        return DecoderSnapshot(self.latent_frames, self._memory.clone(self.caches, "a checkpoint"))

    def reinstate(self, snapshot: DecoderSnapshot) -> None:
        self.latent_frames = snapshot.latent_frames
        for name, cache in self.caches.items():
            whole = [Span(0, 0, cache.shape[1])]
            self._memory.copy([(cache, snapshot.caches[name])], whole)


class VaeStream(RememberingDecoder):
    """Decodes one latent frame at a time, so the result does not depend on how they arrive."""

    def __init__(
        self,
        first: Engine,
        following: Engine,
        batch: int,
        output: str = PIXELS,
        memory: Memory | None = None,
        *,
        latents: tuple[int, int] = (0, 0),
        in_place: Collection[str] = (),
    ) -> None:
        """``latents``: their height and width, for engines that take any. ``in_place``: histories
        that may be renewed where they lie."""
        self._output = output
        sizes = {BATCH: batch, LATENT_FRAMES: 1, **latent_sizes(*latents)}
        self._memory = memory or HostMemory()
        cache_specs = named(following.inputs, HISTORY)
        self._caches = histories(self._memory, cache_specs, in_place, sizes)
        own = {LATENTS: Buffer.of(following.inputs[LATENTS], **sizes)}
        for name, engine in (("first", first), ("following", following)):
            own[name] = Buffer.of(engine.outputs[output], **sizes)
        self._tensors = self._memory.reserve(own, "the decoder's pictures")
        self._first = self._bind(first, "first", None, self._caches[0])
        self._following = [
            self._bind(following, "following", self._caches[i], self._caches[1 - i])
            for i in range(2)
        ]
        self.latent_frames = 0

    def decode(self, latents: Array) -> Array:
        """Latents [B, n, C, h, w] that follow the ones before; frames [B, m, ...] of your own."""
        pieces = []
        for index in range(latents.shape[1]):
            self._memory.write(self._tensors[LATENTS], latents[:, index : index + 1])
            pieces.append(self._decode_frame().result())
        return np.concatenate(pieces, axis=1)

    @property
    def caches(self) -> Mapping[str, Tensor]:
        """What the next latent frame reads."""
        return self._caches[(self.latent_frames - 1) % 2]

    def close(self) -> None:
        self._memory.close()

    def _decode_frame(self) -> Pending:
        frame = self.latent_frames
        binding = self._following[(frame - 1) % 2] if frame else self._first
        binding.run()
        self.latent_frames += 1
        return self._memory.fetch(self._tensors["following" if frame else "first"])

    def _bind(
        self,
        engine: Engine,
        picture: str,
        caches: Mapping[str, Tensor] | None,
        renewed: Mapping[str, Tensor],
    ) -> Binding:
        outputs = {next_of(name): array for name, array in renewed.items()}
        return engine.bind(
            {LATENTS: self._tensors[LATENTS], **(caches or {})},
            {self._output: self._tensors[picture], **outputs},
        )


def histories(
    memory: Memory, specs: Sequence[TensorSpec], in_place: Collection[str], sizes: Mapping[str, int]
) -> list[Mapping[str, Tensor]]:
    """Two sets, of which one is read while the other is written; both have what is in place."""
    all_of_them = memory.reserve(buffers(specs, **sizes), "the decoder's memory of past frames")
    others = [spec for spec in specs if spec.name not in in_place]
    if not others:
        return [all_of_them, all_of_them]
    twice = memory.reserve(buffers(others, **sizes), "the decoder's memory of past frames")
    return [all_of_them, ChainMap(twice, all_of_them)]


@dataclass(frozen=True)
class _Threaded:
    """By latent frame."""

    parts: "Sequence[Future[Array]]"

    def result(self) -> Array:
        return joined(part.result() for part in self.parts)

    def release(self) -> None:
        wait(self.parts)


def joined(parts: Iterable[Array]) -> Array:
    """The pictures of a whole block."""
    first, *others = parts
    return np.concatenate([first, *others], axis=1) if others else first


class FrameStream(Protocol):
    """Decodes while its caller waits."""

    @property
    def latent_frames(self) -> int: ...

    @property
    def caches(self) -> Mapping[str, Tensor]: ...

    def decode(self, latents: Array) -> Array:
        """Latents [B, n, C, h, w] that follow the ones before; frames [B, m, ...] of your own."""
        ...

    def begin(self) -> None: ...

    def saved(self) -> Mapping[str, Array]: ...

    def restore(self, latent_frames: int, caches: Mapping[str, Array]) -> None: ...

    def snapshot(self) -> DecoderSnapshot: ...

    def reinstate(self, snapshot: DecoderSnapshot) -> None: ...

    def close(self) -> None: ...


class ThreadedDecoder:
    """A stream that decodes on a thread of its own."""

    def __init__(self, stream: FrameStream) -> None:
        self._stream = stream
        self._thread = ThreadPoolExecutor(1, "decode")

    @property
    def latent_frames(self) -> int:
        return self._stream.latent_frames

    @property
    def caches(self) -> Mapping[str, Tensor]:
        return self._stream.caches

    def saved(self) -> Mapping[str, Array]:
        return self._stream.saved()

    def begin(self) -> None:
        self.settle()
        self._stream.begin()

    def restore(self, latent_frames: int, caches: Mapping[str, Array]) -> None:
        self._stream.restore(latent_frames, caches)

    def snapshot(self) -> DecoderSnapshot:
        self.settle()
        return self._stream.snapshot()

    def reinstate(self, snapshot: DecoderSnapshot) -> None:
        self.settle()
        self._stream.reinstate(snapshot)

    def start(self, latents: Tensor, *, is_awaited: bool = False) -> _Threaded:
        """Each frame's pictures come by themselves in any case."""
        del is_awaited
        decode, frames = self._stream.decode, range(latents.shape[1])
        submit = self._thread.submit
        return _Threaded([submit(decode, latents[:, frame : frame + 1]) for frame in frames])

    def settle(self) -> None:
        self._thread.submit(lambda: None).result()

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
