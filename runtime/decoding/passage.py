"""How a block's latents come to the stream that decodes them: where they lie, or from another GPU.

Blocks have two places in turn. The transformer goes over a place again once its latents are no
longer read.
"""

from collections.abc import Sequence
from typing import Protocol

from longlive_trt.plugins.cuda.streams import DeviceTensor, Event, Stream
from longlive_trt.runtime.memory.base import Buffer
from longlive_trt.runtime.memory.cuda import CudaMemory, bytes_of


class Passage(Protocol):
    def bring(self, latents: DeviceTensor, which: int) -> DeviceTensor:
        """What the decoding stream may read from now on."""
        ...

    def release(self, which: int) -> None:
        """Let the transformer wait until its latents are no longer read."""
        ...

    def close(self) -> None: ...


class SamePlace:
    """On the GPU that made them. ``read``: after the decoder's last reading of each place."""

    def __init__(self, transformer: Stream, decoding: Stream, read: Sequence[Event]) -> None:
        self._transformer, self._decoding, self._read = transformer, decoding, read
        self._made = transformer.gpu.event()

    def bring(self, latents: DeviceTensor, which: int) -> DeviceTensor:
        del which
        self._decoding.wait_for(self._transformer.record(self._made))
        return latents

    def release(self, which: int) -> None:
        self._transformer.wait_for(self._read[which])

    def close(self) -> None:
        self._made.close()


class BetweenGpus:
    """Over a stream of their own: the transformer waits for a copy, and for no decoding."""

    def __init__(
        self,
        streams: tuple[Stream, Stream, Stream],
        memory: CudaMemory,
        latents: Buffer,
        read: Sequence[Event],
    ) -> None:
        """``streams``: the transformer's, the decoder's, and that of what crosses, whose GPU is the
        decoder's. ``memory`` is the decoder's."""
        self._transformer, self._decoding, self._crossing = streams
        self._read, self._memory = read, memory
        places = {str(which): latents for which in range(2)}
        self._places = memory.reserve(places, "latents of the other GPU")
        self._made = self._transformer.gpu.event()
        self._crossed = [self._crossing.gpu.event() for _ in range(2)]
        # Clearing is queued on the decoding stream: the first copies come after it.
        for event in read:
            self._decoding.record(event)

    def bring(self, latents: DeviceTensor, which: int) -> DeviceTensor:
        crossing, place = self._crossing, self._places[str(which)]
        crossing.wait_for(self._transformer.record(self._made))
        crossing.wait_for(self._read[which])
        with crossing.gpu.ledger.allowing("copy on the device"):
            crossing.receive(
                place.pointer, self._transformer.gpu, latents.pointer, bytes_of(latents)
            )
        self._decoding.wait_for(crossing.record(self._crossed[which]))
        return self._memory.view(place, latents.shape)

    def release(self, which: int) -> None:
        self._transformer.wait_for(self._crossed[which])

    def close(self) -> None:
        for event in (self._made, *self._crossed):
            event.close()
