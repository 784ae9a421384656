"""From a bundle to sessions: engines are loaded when first needed and shared by all sessions."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from weakref import WeakSet

from longlive_trt.adapters import Adapter
from longlive_trt.basics import Array, Closing, Report, unheard
from longlive_trt.configs import ModelConfig, VaeConfig
from longlive_trt.console.wording import counted
from longlive_trt.contract import (
    BASE_GRAPHS,
    ENCODER_GRAPHS,
    PIXELS,
    PROMPT,
    STEP,
    TEXT,
    TILE_GRAPHS,
)
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
from longlive_trt.engines.matrices import GRAPHS as WITH_MATRICES
from longlive_trt.engines.matrices import OPTION as LORA_READY
from longlive_trt.engines.registry import KINDS
from longlive_trt.engines.renewal import renewed_in_place
from longlive_trt.engines.transient import TransientEngine
from longlive_trt.errors import UsageError
from longlive_trt.plugins.cuda.streams import Gpu, Stream
from longlive_trt.runtime.adapting import AdaptersInUse, AskedAdapter, Matrices, opened_adapter
from longlive_trt.runtime.decoding.choice import BundledDecoder, decoder_named, decoders_of
from longlive_trt.runtime.decoding.cuda import CudaDecoder, DecodingStreams
from longlive_trt.runtime.decoding.host import Decoder, FrameStream, ThreadedDecoder, VaeStream
from longlive_trt.runtime.decoding.pieces import Pieces, TiledPieces, WholePieces
from longlive_trt.runtime.decoding.switching import DecoderSource, SwitchableDecoder
from longlive_trt.runtime.decoding.tiled import Part, TiledStream
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
from longlive_trt.runtime.prompting.switches import EXACT, SwitchMode
from longlive_trt.runtime.prompting.tokenizer import PromptTokenizer
from longlive_trt.runtime.session import Session
from longlive_trt.runtime.starting.encoding import EncoderStream
from longlive_trt.runtime.streams import STREAM_OF, GpuStreams
from longlive_trt.runtime.transformer import Level

_CHOICE = 2
WHOLE_BLOCKS = "whole blocks"
"""The role of a decoder's engine that takes several latent frames at once."""

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
        frame by frame, in tiles where the bundle has graphs for them. ``report`` hears of engines
        that are loaded.
        """
        require_runnable(bundle, device)
        self.bundle, self._low_memory, self._wrap = bundle, low_memory, wrap
        self._report = report
        self.on_gpu = runs_on_gpu(bundle, device)
        self._streams = GpuStreams(decode_ordinal(bundle, device, decode_device))
        self._opening = threading.RLock()
        self._loaded: dict[str, Engine] = {}
        self._rehearsed: set[str] = set()
        self._encoders: list[PromptEncoder] = []
        self._memories: list[CudaMemory] = []
        is_ready = bool(bundle.manifest.options.get(LORA_READY))
        self._matrices = Matrices(bundle.folder, self._matrix_memory) if is_ready else None
        self.adapters = AdaptersInUse()
        self._sessions: WeakSet[Session] = WeakSet()

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

    def get(self, graph: str, purpose: str, role: str = "") -> Engine:
        """``role``: an engine of its own, beside the one that others share."""
        key = f"{graph} for {role}" if role else graph
        with self._opening:
            if key not in self._loaded:
                self.bundle.require(graph, purpose)
                described = {graph: self.bundle.manifest.graphs[graph]}
                require_fit(self.bundle.folder, self.bundle.config, described)
                self._report(
                    f"loading {graph}", len(self._loaded), len(self.bundle.manifest.graphs)
                )
                transient = self._low_memory and graph == TEXT
                engine = self._transient(graph) if transient else self._load(graph)
                self._loaded[key] = self._wrap(engine, graph)
            return self._loaded[key]

    def require_memory(
        self,
        config: ModelConfig,
        *,
        batch: int,
        total_frames: int | None,
        decode: bool,
        text: bool,
        decoder: str | None = None,
    ) -> None:
        """Refuse a session that does not fit on the GPU, before anything is loaded there."""
        if not self.on_gpu:
            return
        budget = partial(
            session_budget,
            self.bundle,
            config,
            batch=batch,
            total_frames=total_frames,
            decoder=decoder,
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
        decoding = decoder_budget(self.bundle, config, batch=batch, low_memory=low, decoder=decoder)
        require_memory(self.gpu, budget(decode=False, text=text, low_memory=low), lesser)
        require_memory(self.decode_gpu, decoding, {})

    def matrix_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of what adapters may change, as checkpoints have it."""
        return self._exchangeable().file.shapes

    def use_adapters(self, adapters: Sequence[Adapter], mode: SwitchMode = EXACT) -> None:
        """Exchange matrices, between two blocks; prompts are read anew with them."""
        matrices = self._exchangeable()
        with self._opening:
            for session in self._sessions:
                if not session.is_closed:
                    # With what its last block was made with.
                    session.remember()
            matrices.use(adapters)
            self.adapters = AdaptersInUse(tuple(one.label for one in adapters), mode)
            for encoder in self._encoders:
                encoder.forget()

    def use_lora(self, adapters: Sequence[AskedAdapter], switch: str) -> None:
        """Adapters as they are asked for, opened before anything is exchanged."""
        mode = SwitchMode.parse(switch, "switch")
        if mode.blend_blocks is not None:
            raise UsageError("switch is a blend, and matrices have nothing between: exact or none")
        shapes = self.matrix_shapes()
        self.use_adapters([opened_adapter(one, shapes) for one in adapters], mode)

    def _use_lora_for(
        self, session: Session, adapters: Sequence[AskedAdapter], switch: str
    ) -> None:
        """For one session, which must not change what another one is made with."""
        with self._opening:
            others = sum(not one.is_closed for one in self._sessions if one is not session)
        if others:
            raise UsageError(
                f"{counted(others, 'other session')} of this pipeline would change too, since all "
                "of them share one copy of its matrices; close them, load the bundle a second time "
                "for this one, or change all of them with Pipeline.use_lora"
            )
        self.use_lora(adapters, switch)

    def _exchangeable(self) -> Matrices:
        if self._matrices is None:
            raise UsageError(
                f"{self.bundle.folder}: built without --lora-ready, so its matrices cannot be "
                "exchanged; build with it, or merge the adapter when exporting (export --lora)"
            )
        return self._matrices

    def _matrix_memory(self, graph: str) -> Memory:
        return self._memory(STREAM_OF[graph])

    def _load(self, graph: str) -> Engine:
        stream = self.stream(STREAM_OF[graph]) if self.on_gpu else None
        engine: Engine = load_engine(self.bundle, graph, stream=stream)
        try:
            if self._matrices is not None and graph in WITH_MATRICES:
                engine = self._matrices.supply(graph, engine)
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

    def decoder(self, batch: int, name: str | None = None) -> Decoder:
        """The one of this name, or the bundle's first."""
        decoder, size = decoder_named(self.bundle, name), self.bundle.config.latent.size
        if not self.on_gpu:
            return ThreadedDecoder(self.stream_of(decoder, batch, PIXELS, size))
        crosses = self._streams.decodes_elsewhere
        streams = DecodingStreams(
            transformer=self.stream("transformer"),
            decoding=self.stream("decoding"),
            leaving=self.stream("leaving"),
            crossing=self.stream("crossing") if crosses else None,
        )
        frames = self.bundle.config.rollout.frames_per_block
        pieces = self._pieces(decoder, batch)
        with self._opening:
            is_new = decoder.name not in self._rehearsed
            self._rehearsed.add(decoder.name)
        return CudaDecoder(pieces, batch, frames, streams, rehearses=is_new)

    def _pieces(self, decoder: BundledDecoder, batch: int) -> Callable[[Memory], Pieces]:
        size, config = self.bundle.config.latent.size, decoder.config
        if self._uses_tiles(decoder):
            assert isinstance(config, VaeConfig)
            base, tile = self._parts(decoder)
            return lambda memory: TiledPieces(base, tile, config, memory, batch, latents=size)
        first, following, in_place = self._decoding(decoder.graphs)
        kind, blocks = KINDS[self.bundle.manifest.engine.kind], None
        several = self.bundle.config.rollout.frames_per_block > 1
        if several and kind.decodes_blocks and not self._low_memory:
            blocks = self.get(decoder.graphs[1], "decoding to pictures", WHOLE_BLOCKS)
        return lambda memory: WholePieces(
            *(first, following, memory, batch), blocks=blocks, latents=size, in_place=in_place
        )

    def stream_of(
        self, decoder: BundledDecoder, batch: int, output: str, size: tuple[int, int]
    ) -> FrameStream:
        """For whoever has latents, and waits for their pictures."""
        memory = self._memory("decoding")
        if self._uses_tiles(decoder):
            assert isinstance(decoder.config, VaeConfig)
            parts = self._parts(decoder)
            return TiledStream(*parts, decoder.config, batch, output, memory, latents=size)
        first, following, in_place = self._decoding(decoder.graphs)
        return VaeStream(first, following, batch, output, memory, latents=size, in_place=in_place)

    def _uses_tiles(self, decoder: BundledDecoder) -> bool:
        return self._low_memory and decoder.has_tiles(self.bundle)

    def _parts(self, decoder: BundledDecoder) -> tuple[Part, Part]:
        base, tile = (parts[decoder.component] for parts in (BASE_GRAPHS, TILE_GRAPHS))
        return Part(*self._decoding(base)), Part(*self._decoding(tile))

    def _decoding(self, graphs: tuple[str, str]) -> tuple[Engine, Engine, frozenset[str]]:
        """Both engines, and the histories that they may renew where they lie."""
        first, following = (self.get(graph, "decoding to pictures") for graph in graphs)
        return first, following, renewed_in_place(self.bundle, graphs[1])

    def encoder(self) -> EncoderStream:
        """For whoever reads one clip after another; the VAE's encoder stays loaded."""
        first, following = (self.get(graph, "reading clips") for graph in ENCODER_GRAPHS)
        return EncoderStream(first, following, self._memory("decoding"))

    def encode(self, pictures: Iterable[Array]) -> Array:
        """A clip's latents [1, frames, C, h, w]; the VAE's encoder is loaded for this alone."""
        with ExitStack() as closing:
            engines = []
            for graph in ENCODER_GRAPHS:
                self.bundle.require(graph, "beginning with a picture or a clip")
                engines.append(closing.enter_context(self._load(graph)))
            memory = CudaMemory(self.stream("decoding")) if self.on_gpu else HostMemory()
            closing.callback(memory.close)
            return EncoderStream(engines[0], engines[1], memory).encode(pictures)

    def session(
        self,
        config: ModelConfig,
        noise: NoiseSource,
        *,
        batch: int = 1,
        total_frames: int | None = None,
        decode: bool = True,
        decoder: str | None = None,
        debug: bool = False,
        levels: Sequence[Level] = (),
        given: Array | None = None,
    ) -> Session:
        """``decoder``: the name of the one that begins, if not the bundle's first."""
        step = self.get(STEP, "generating")
        memory = self._memory("transformer")
        decoding = None
        try:
            decoding = self._session_decoder(batch, decoder, memory) if decode else None
            session = Session(
                step,
                config,
                noise,
                batch=batch,
                total_frames=total_frames,
                decoder=decoding,
                memory=memory,
                debug=debug,
                levels=levels,
                given=given,
                use_lora=self._use_lora_for,
            )
        except BaseException:
            memory.close()
            if decoding is not None:
                decoding.close()
            raise
        with self._opening:
            self._sessions.add(session)
        return session

    def _session_decoder(self, batch: int, name: str | None, memory: Memory) -> Decoder:
        """That of a bundle which holds two can be changed."""
        held = decoders_of(self.bundle)
        if len(held) < _CHOICE:
            return self.decoder(batch, name)
        sources = {
            one: DecoderSource(decoder.config, partial(self.decoder, batch, one))
            for one, decoder in held.items()
        }
        return SwitchableDecoder(sources, decoder_named(self.bundle, name).name, memory)

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
