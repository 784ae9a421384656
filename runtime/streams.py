"""The streams of a GPU: one per concern, which all sessions of a bundle share, as engines do."""

import threading
from functools import cached_property

from longlive_trt.basics import Closing
from longlive_trt.contract import DECODER_GRAPHS, PROMPT, STEP, TEXT
from longlive_trt.plugins.cuda.streams import Gpu, Stream

STREAM_OF = {
    STEP: "transformer",
    **{graph: "decoding" for pair in DECODER_GRAPHS.values() for graph in pair},
    PROMPT: "prompts",
    TEXT: "prompts",
}
"""Where each graph's engine runs."""


class GpuStreams(Closing):
    def __init__(self) -> None:
        self._opening = threading.Lock()
        self._streams: dict[str, Stream] = {}

    @cached_property
    def gpu(self) -> Gpu:
        return Gpu()

    def of(self, concern: str) -> Stream:
        with self._opening:
            if concern not in self._streams:
                self._streams[concern] = self.gpu.stream(urgent=concern == "transformer")
            return self._streams[concern]

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()
