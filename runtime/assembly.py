"""From a bundle to sessions: engines are loaded when first needed and shared by all sessions."""

import threading
from collections.abc import Callable, Sequence
from functools import partial

from longlive_trt.basics import Closing, Report, unheard
from longlive_trt.configs import ModelConfig
from longlive_trt.contract import PROMPT, STEP, TEXT, VAE_GRAPHS
from longlive_trt.engines.base import Engine, specs_of
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.engines.bundles.fit import require_described, require_fit
from longlive_trt.engines.loader import (
    DeviceChoice,
    decode_ordinal,
    load_engine,
    require_runnable,
    runs_on_gpu,
)
from longlive_trt.engines.registry import KINDS
from longlive_trt.engines.transient import TransientEngine
from longlive_trt.plugins.cuda.streams import Gpu, Stream
from longlive_trt.runtime.decoding.cuda import CudaDecoder, DecodingStreams
from longlive_trt.runtime.decoding.host import Decoder, ThreadedDecoder, VaeStream
from longlive_trt.runtime.memory.base import HostMemory, Memory
from longlive_trt.runtime.memory.budget import decoder_budget, require_memory, session_budget
from longlive_trt.runtime.memory.cuda import CudaMemory
from longlive_trt.runtime.noise import NoiseSource
from longlive_trt.runtime.prompting.encoder import (
    OnTokens,
    PromptContexts,
    PromptEncoder,
    PromptReader,
    untold,
)
from longlive_trt.runtime.prompting.tokenizer import PromptTokenizer
from longlive_trt.runtime.session import Session
from longlive_trt.runtime.streams import STREAM_OF, GpuStreams
from longlive_trt.runtime.transformer import Level

Wrap = Callable[[Engine, str], Engine]
"""Puts something around a graph's engine: it is given the engine and the graph's name, and closing
what it returns closes the engine."""


class Engines(Closing):
    """Any number of sessions, opened by any number of threads."""

    def __init__(
        self,
        bundle: Bundle,
        device: DeviceChoice = "auto",
        *,
        decode_device: str | None = None,
        low_memory: bool = False,
        wrap: Wrap = lambda engine, _graph: engine,
        report: Report = unheard,
    ) -> None:
        """``decode_device``: another GPU that decodes (``cuda:1``).
        ``low_memory``: the text encoder is loaded while it encodes, and pictures are decoded
        frame by frame. ``report`` hears of engines that are loaded.
        """
        require_runnable(bundle, device)
        self.bundle, self._low_memory, self._wrap = bundle, low_memory, wrap
        self._report = report
        self.on_gpu = runs_on_gpu(bundle, device)
        self._streams = GpuStreams(decode_ordinal(bundle, device, decode_device))
        self._opening = threading.RLock()
        self._loaded: dict[str, Engine] = {}
        self._encoders: list[PromptEncoder] = []
        self._memories: list[CudaMemory] = []

    @property
    def gpu(self) -> Gpu:
        return self._streams.gpu

    def gpu_of(self, graph: str) -> Gpu:
        """Where a graph's engine is."""
        return self._streams.gpu_of(STREAM_OF[graph])

    @property
    def decode_gpu(self) -> Gpu | None:
        """Another one than the transformer's, if that decodes."""
        return self._streams.decode_gpu if self._streams.decodes_elsewhere else None

    def stream(self, concern: str) -> Stream:
        return self._streams.of(concern)

    def get(self, graph: str, purpose: str) -> Engine:
        with self._opening:
            if graph not in self._loaded:
                self.bundle.require(graph, purpose)
                described = {graph: self.bundle.manifest.graphs[graph]}
                require_fit(self.bundle.folder, self.bundle.config, described)
                self._report(
                    f"loading {graph}", len(self._loaded), len(self.bundle.manifest.graphs)
                )
                transient = self._low_memory and graph == TEXT
                engine = self._transient(graph) if transient else self._load(graph)
                self._loaded[graph] = self._wrap(engine, graph)
            return self._loaded[graph]

    def require_memory(
        self, config: ModelConfig, *, batch: int, total_frames: int | None, decode: bool, text: bool
    ) -> None:
        """Refuse a session that does not fit on the GPU, before anything is loaded there."""
        if not self.on_gpu:
            return
        budget = partial(
            session_budget, self.bundle, config, batch=batch, total_frames=total_frames
        )
        low = self._low_memory
        lesser = {
            "with --low-memory": budget(decode=decode, text=text, low_memory=True),
            "latents only (--latents-out without --out)": budget(
                decode=False, text=text, low_memory=True
            ),
        }
        own = budget(decode=decode, text=text, low_memory=low)
        if self.decode_gpu is None or not decode:
            require_memory(self.gpu, own, lesser)
            return
        decoding = decoder_budget(self.bundle, config, batch=batch, low_memory=low)
        require_memory(self.gpu, budget(decode=False, text=text, low_memory=low), lesser)
        require_memory(self.decode_gpu, decoding, {})

    def _load(self, graph: str) -> Engine:
        stream = self.stream(STREAM_OF[graph]) if self.on_gpu else None
        engine = load_engine(self.bundle, graph, stream=stream)
        try:
            require_described(self.bundle, graph, engine)
        except BaseException:
            engine.close()
            raise
        return engine

    def _transient(self, graph: str) -> Engine:
        info = self.bundle.manifest.graphs[graph]
        settle = self.stream(STREAM_OF[graph]).synchronize if self.on_gpu else _nothing
        return TransientEngine(
            partial(self._load, graph), specs_of(info.inputs), specs_of(info.outputs), settle
        )

    def contexts(self, batch: int) -> PromptContexts:
        engine = self.get(PROMPT, "conditioning on a prompt")
        return PromptContexts(engine, batch, self._memory("prompts"))

    def prompt_encoder(self, batch: int, on_tokens: OnTokens = untold) -> PromptEncoder:
        """The text encoder itself is loaded when the first prompt comes."""
        contexts = self.contexts(batch)

        def open_reader() -> PromptReader:
            text = self.get(TEXT, "reading a prompt")
            text_len = self.bundle.config.transformer.text_len
            tokenizer = PromptTokenizer.load(self.bundle.tokenizer, text_len)
            return PromptReader(tokenizer, text, contexts.memory, on_tokens)

        encoder = PromptEncoder(open_reader, contexts, beside=self.on_gpu)
        with self._opening:
            open_ones = [other for other in self._encoders if not other.is_closed]
            self._encoders = [*open_ones, encoder]
        return encoder

    def decoder(self, batch: int) -> Decoder:
        first, following = (self.get(graph, "decoding to pictures") for graph in VAE_GRAPHS)
        if not self.on_gpu:
            return ThreadedDecoder(VaeStream(first, following, batch))
        crosses = self._streams.decodes_elsewhere
        streams = DecodingStreams(
            transformer=self.stream("transformer"),
            decoding=self.stream("decoding"),
            leaving=self.stream("leaving"),
            crossing=self.stream("crossing") if crosses else None,
        )
        frames = self.bundle.config.rollout.frames_per_block
        kind = KINDS[self.bundle.manifest.engine.kind]
        single = self._low_memory or not kind.decodes_blocks
        return CudaDecoder(first, following, batch, frames, streams, frame_by_frame=single)

    def session(
        self,
        config: ModelConfig,
        noise: NoiseSource,
        *,
        batch: int = 1,
        total_frames: int | None = None,
        decode: bool = True,
        debug: bool = False,
        levels: Sequence[Level] = (),
    ) -> Session:
        step = self.get(STEP, "generating")
        decoder = self.decoder(batch) if decode else None
        memory = self._memory("transformer")
        try:
            return Session(
                step,
                config,
                noise,
                batch=batch,
                total_frames=total_frames,
                decoder=decoder,
                memory=memory,
                debug=debug,
                levels=levels,
            )
        except BaseException:
            memory.close()
            if decoder is not None:
                decoder.close()
            raise

    def _memory(self, concern: str) -> Memory:
        if not self.on_gpu:
            return HostMemory()
        memory = CudaMemory(self.stream(concern), arriving=self.stream("arriving"))
        with self._opening:
            open_ones = [other for other in self._memories if not other.is_closed]
            self._memories = [*open_ones, memory]
        return memory

    def close(self) -> None:
        for encoder in self._encoders:
            encoder.close()
        for memory in self._memories:
            memory.close()
        self._encoders.clear()
        self._memories.clear()
        for engine in self._loaded.values():
            engine.close()
        self._loaded.clear()
        self._streams.close()


def _nothing() -> None:
    """On a CPU a run is over when it returns."""
