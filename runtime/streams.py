"""Streams of GPUs: one per concern, which all sessions of a bundle share, as engines do."""

import threading
from collections.abc import Mapping
from functools import cached_property
from typing import Literal

from longlive_trt.basics import Closing
from longlive_trt.contract import DECODER_GRAPHS, ENCODER_GRAPHS, PART_GRAPHS, PROMPT, STEP, TEXT
from longlive_trt.plugins.cuda.streams import Gpu, Stream

STREAM_OF = {
    STEP: "transformer",
    **{graph: "decoding" for pair in DECODER_GRAPHS.values() for graph in pair},
    **dict.fromkeys((*PART_GRAPHS, *ENCODER_GRAPHS), "decoding"),
    PROMPT: "prompts",
    TEXT: "prompts",
}
"""Where each graph's engine runs."""


_URGENCY: Mapping[str, Literal[0, 1, 2]] = {"transformer": 1, "decoding": 2, "leaving": 2}
"""Somebody waits for pictures; the next block's passes have time until they are shown."""

DECODING = frozenset({"decoding", "leaving", "crossing"})
"""What another GPU can do. Latents cross to it on a stream of its own."""


class GpuStreams(Closing):
    def __init__(self, decode_ordinal: int | None = None) -> None:
        """``decode_ordinal``: of another GPU that decodes."""
        self._decode_ordinal = decode_ordinal
        self._opening = threading.Lock()
        self._streams: dict[str, Stream] = {}

    @property
    def decodes_elsewhere(self) -> bool:
        return self._decode_ordinal is not None

    @cached_property
    def gpu(self) -> Gpu:
        return Gpu()

    @cached_property
    def decode_gpu(self) -> Gpu:
        """Counts what it does with the other: a video is steady on both, or on neither."""
        ordinal = self._decode_ordinal
        return self.gpu if ordinal is None else Gpu(ordinal, self.gpu.ledger)

    def gpu_of(self, concern: str) -> Gpu:
        return self.decode_gpu if concern in DECODING else self.gpu

    def of(self, concern: str) -> Stream:
        with self._opening:
            if concern not in self._streams:
                urgency = _URGENCY.get(concern, 0)
                self._streams[concern] = self.gpu_of(concern).stream(urgency)
            return self._streams[concern]

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()
