"""One bundle under measurement: its engines, its prompts, and the video that it is making."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from longlive_trt.basics import Closing
from longlive_trt.configs import ModelConfig
from longlive_trt.configs.schema import ROPE_TABLE_FRAMES
from longlive_trt.contract import BASE_GRAPHS, PROMPT, STEP, TEXT, TILE_GRAPHS
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.engines.loader import DeviceChoice
from longlive_trt.exports import TOKENIZER_NAME
from longlive_trt.reading.ranges import Range
from longlive_trt.runtime.bench.prompts import NewPrompt, Prompts, RandomPrompts, TextPrompts
from longlive_trt.runtime.bench.timing import TRANSFORMER, Durations, Position, TimedEngines
from longlive_trt.runtime.decoding.choice import decoder_named, decoders_of
from longlive_trt.runtime.interrupts import StopRequest
from longlive_trt.runtime.memory.budget import way_of
from longlive_trt.runtime.noise import SeededNoise
from longlive_trt.runtime.ring import RingLayout
from longlive_trt.runtime.session import Block, Session
from longlive_trt.runtime.transformer import Context

WARM_UP_SWITCHES = 2
"""A GPU reserves what a re-cache needs at the first, and captures it at the second."""
ANNOUNCED_BLOCKS = 3
"""For one announced switch: a block alone, one with a prompt encoded beside it, the switch."""
ROOM_BLOCKS = WARM_UP_SWITCHES + ANNOUNCED_BLOCKS
"""A session with fewer blocks left is replaced before the next measurement."""

BLOCKS = Range(1, 10_000_000)
SWITCHES = Range(0, 10_000)
SECONDS = Range(0, 86_400)
WARM_UP = Range(0, 10_000)


@dataclass(frozen=True)
class BenchSettings:
    blocks: int = 300
    switches: int = 50
    """To prompts that are new; on a GPU as many again to prompts that were announced."""
    seconds: float = 60.0
    """How long everything runs at once, for the throughput."""
    warmup: int = 10
    sessions: int = 3
    """How many videos are begun, for the time to the first frame."""
    seed: int = 0
    decode: bool = True
    decoder: str | None = None
    """Which of a bundle's decoders makes the pictures; None is its first."""
    device: DeviceChoice = "auto"
    decode_device: str | None = None
    low_memory: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("blocks", BLOCKS),
            ("switches", SWITCHES),
            ("seconds", SECONDS),
            ("warmup", WARM_UP),
        ):
            allowed.require(name, getattr(self, name))


@dataclass(frozen=True)
class BlockTimes:
    """Where the time of one block went; all but ``wall_ms`` by the stopwatch.

    For a prompt that was announced, ``encode_ms`` is how long the host still waited for it.
    """

    wall_ms: float
    """From the request (or the new prompt's text) to the pictures on the host."""
    transformer_ms: float
    """From the first pass to the last key committed, a re-cache included."""
    passes_ms: tuple[float, ...]
    """Denoising passes, then the clean one of the block before, which a prompt switch makes
    needless; empty if the engine ran them some other way."""
    recache_ms: float
    vae_ms: float
    encode_ms: float

    @property
    def between_passes_ms(self) -> float:
        return self.transformer_ms - sum(self.passes_ms) - self.recache_ms

    @property
    def rest_ms(self) -> float:
        """What pictures wait for besides: the host's work."""
        waited = (self.encode_ms, self.recache_ms, *self.passes_ms, self.vae_ms)
        return self.wall_ms - sum(waited)


@dataclass(frozen=True)
class _Stretch:
    """Work of the main thread, and the recorder's positions before and after it."""

    before: Position
    after: Position
    wall_ms: float
    switches: bool = False
    """To another prompt: its first pass is the re-cache."""


@dataclass(frozen=True)
class Announced:
    """A switch whose prompt was encoded beside the block before."""

    switch: BlockTimes
    alone: BlockTimes
    """The block before that one, with nothing beside it."""
    beside: BlockTimes
    encoding_ms: float
    """By the stopwatch, with the block's own work in between."""


@dataclass(frozen=True)
class Loading:
    seconds: float
    gpu_bytes: int | None
    """GPU memory that loading took; None on a CPU."""


@dataclass(frozen=True)
class _AnnouncedStretch:
    alone: _Stretch
    beside: _Stretch
    switch: _Stretch
    waited_ms: float


@dataclass
class LaneTimes:
    """All that was measured on one bundle, until the end or an interrupt."""

    load_s: float = 0.0
    loading: dict[str, Loading] = field(default_factory=dict)
    """By graph."""
    open_ms: list[float] = field(default_factory=list)
    first_frame_ms: list[float] = field(default_factory=list)
    blocks: list[BlockTimes] = field(default_factory=list)
    switches: list[BlockTimes] = field(default_factory=list)
    announced: list[Announced] = field(default_factory=list)
    intervals_ms: list[float] = field(default_factory=list)
    """Between one block's pictures and the next one's, with everything overlapped."""
    graph_runs_ms: dict[str, list[float]] = field(default_factory=dict)


def longest_session(config: ModelConfig) -> int | None:
    """How many blocks a session can make; None is endless."""
    rollout = config.rollout
    return ROPE_TABLE_FRAMES // rollout.frames_per_block if rollout.rope == "absolute" else None


def blocks_to_fill(layout: RingLayout) -> int:
    """After so many, a block's window is full and a prompt switch keeps the sink."""
    return layout.window // layout.block + 1


def has_vae(bundle: Bundle) -> bool:
    return bool(decoders_of(bundle))


def decoding_graphs(bundle: Bundle, settings: BenchSettings) -> tuple[str, ...]:
    """Of whole frames, or of their parts where those are decoded in tiles."""
    decoder = decoder_named(bundle, settings.decoder)
    if way_of(bundle, decoder, low_memory=settings.low_memory) != "tiles":
        return decoder.graphs
    return (*BASE_GRAPHS[decoder.component], *TILE_GRAPHS[decoder.component])


def has_text_encoder(bundle: Bundle) -> bool:
    return bundle.has(TEXT) and TOKENIZER_NAME in bundle.manifest.files


class Lane(Closing):
    def __init__(self, bundle: Bundle, settings: BenchSettings, *, decode: bool) -> None:
        self.bundle, self.decode = bundle, decode
        self._settings, self._config = settings, bundle.config
        self._decoders = decoding_graphs(bundle, settings) if decode else ()
        self._times = LaneTimes()
        self._plain: list[_Stretch] = []
        self._switched: list[_Stretch] = []
        self._announced: list[_AnnouncedStretch] = []
        self._session: Session | None = None
        self._switches_before = self._prompts_asked = 0
        started = time.perf_counter()
        self._timed = TimedEngines(
            bundle,
            settings.device,
            decode_device=settings.decode_device,
            low_memory=settings.low_memory,
        )
        self._engines, self._recorder = self._timed.engines, self._timed.recorder
        self._load()
        self._times.load_s = time.perf_counter() - started
        self._prompts = self._some_prompts()
        self._context = self._prompts.numbered(0).context()
        self._blocks_in_all = longest_session(self._config)
        fill = blocks_to_fill(RingLayout.of(self._config, self._total_frames))
        self._warmup = max(settings.warmup, fill)

    def first_frame(self) -> None:
        session = self._open_session()
        started = time.perf_counter()
        self._make_block(session)
        self._times.first_frame_ms.append(_ms_since(started))

    def warm_up(self, stop: StopRequest) -> Session | None:
        """A session in its steady state that can be measured; None if stopped."""
        session = self._session
        if session is None or self._room(session) < ROOM_BLOCKS:
            session = self._open_session()
        while session.blocks_made < self._warmup and not stop.is_asked:
            self._make_block(session)
        return None if stop.is_asked else session

    @property
    def encodes_beside(self) -> bool:
        """On a CPU nothing is gained by encoding a prompt while a block is made."""
        return self._engines.on_gpu

    def block(self, session: Session) -> None:
        self._plain.append(self._measured(lambda: self._make_block(session)))

    def switch(self, session: Session) -> None:
        """A prompt that nobody has seen before, and the first block under it."""
        self._warm_up_switching(session)
        self._switched.append(self._switch(session))

    def announced_switch(self, session: Session) -> None:
        """The same, with the prompt known one block before."""
        self._warm_up_switching(session)
        prompt = self._next_prompt()
        alone = self._measured(lambda: self._make_block(session))
        beside = self._measured(lambda: self._make_block(session, announcing=prompt))
        asked = time.perf_counter()
        context = prompt.context()
        waited_ms = _ms_since(asked)
        switch = self._measured(lambda: self._change_prompt(session, context))
        switch = replace(switch, wall_ms=waited_ms + switch.wall_ms, switches=True)
        self._announced.append(_AnnouncedStretch(alone, beside, switch, waited_ms))

    def _warm_up_switching(self, session: Session) -> None:
        while self._switches_before < WARM_UP_SWITCHES:
            self._switch(session)
            self._switches_before += 1

    def _switch(self, session: Session) -> _Stretch:
        prompt = self._next_prompt()
        measured = self._measured(lambda: self._change_prompt(session, prompt.context()))
        return replace(measured, switches=True)

    def _change_prompt(self, session: Session, context: Context) -> None:
        session.switch_prompt(context)
        self._make_block(session)

    def _next_prompt(self) -> NewPrompt:
        self._prompts_asked += 1
        return self._prompts.numbered(self._prompts_asked)

    def _measured(self, work: Callable[[], None]) -> _Stretch:
        recorder, started = self._recorder, time.perf_counter()
        before = recorder.position()
        work()
        return _Stretch(before, recorder.position(), _ms_since(started))

    def overlapped(self, session: Session, seconds: float, stop: StopRequest) -> float:
        """Blocks handed out as `generate` does, one behind; the seconds that were counted."""
        handed_out, following = session.step(), session.step()
        self._wait(handed_out)
        started = last = time.perf_counter()
        while last - started < seconds and self._room(session) and not stop.is_asked:
            waiting, following = following, session.step()
            self._wait(waiting)
            now = time.perf_counter()
            self._times.intervals_ms.append((now - last) * 1e3)
            last = now
        self._wait(following)
        return last - started

    def times(self) -> LaneTimes:
        """What was measured so far. Ends the video, so that nothing runs any more."""
        self._end_session()
        self._prompts.close()
        durations, times = self._recorder.durations_ms(), self._times
        times.blocks = [self._resolved(durations, stretch) for stretch in self._plain]
        times.switches = [self._resolved(durations, stretch) for stretch in self._switched]
        times.announced = [self._resolved_announced(durations, each) for each in self._announced]
        times.graph_runs_ms = {
            graph: [ms for s in stretches for ms in durations.between(s.before, s.after, graph)]
            for graph, stretches in (
                (STEP, self._plain),
                *((graph, self._plain) for graph in self._decoders[-1:]),
                (PROMPT, self._switched),
                (TEXT, self._switched),
            )
        }
        return times

    def close(self) -> None:
        self._end_session()
        self._prompts.close()
        self._timed.close()

    @property
    def _total_frames(self) -> int | None:
        blocks = longest_session(self._config)
        return None if blocks is None else blocks * self._config.rollout.frames_per_block

    def _load(self) -> None:
        graphs = [STEP, PROMPT]
        graphs += [TEXT] if has_text_encoder(self.bundle) else []
        graphs += self._decoders
        for graph in graphs:
            self._times.loading[graph] = self._load_graph(graph)

    def _load_graph(self, graph: str) -> Loading:
        engines, started = self._engines, time.perf_counter()
        gpu = engines.gpu_of(graph) if engines.on_gpu else None
        free_before = gpu.memory().free_bytes if gpu else 0
        engines.get(graph, "measuring")
        seconds = time.perf_counter() - started
        taken = free_before - gpu.memory().free_bytes if gpu else None
        return Loading(seconds, taken)

    def _some_prompts(self) -> Prompts:
        if has_text_encoder(self.bundle):
            return TextPrompts(self._engines.prompt_encoder(1))
        return RandomPrompts(self._engines.contexts(1), self._config, self._settings.seed)

    def _open_session(self) -> Session:
        self._end_session()
        config, started = self._config, time.perf_counter()
        shape = (1, config.rollout.frames_per_block, *config.latent_shape)
        noise = SeededNoise(self._settings.seed, shape, config.rollout.noises)
        self._session = self._engines.session(
            config,
            noise,
            total_frames=self._total_frames,
            decode=self.decode,
            decoder=self._settings.decoder,
        )
        self._session.switch_prompt(self._context)
        self._switches_before = 0
        self._times.open_ms.append(_ms_since(started))
        return self._session

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _room(self, session: Session) -> float:
        return (
            math.inf if self._blocks_in_all is None else self._blocks_in_all - session.blocks_made
        )

    def _make_block(self, session: Session, announcing: NewPrompt | None = None) -> None:
        if announcing is not None:
            announcing.announce()
        with self._recorder.timing(TRANSFORMER):
            block = session.step()
        self._wait(block)

    def _wait(self, block: Block) -> None:
        """Wait for the block's pictures, or for its latents where none are decoded."""
        if self.decode:
            block.pixels()
        else:
            np.asarray(block.latents)

    def _resolved(self, durations: Durations, stretch: _Stretch) -> BlockTimes:
        def spent(label: str) -> list[float]:
            return durations.between(stretch.before, stretch.after, label)

        runs, steps = spent(STEP), len(self._config.rollout.steps)
        before, denoising = runs[:-steps], runs[-steps:]
        clean = () if stretch.switches else before[-1:]
        return BlockTimes(
            wall_ms=stretch.wall_ms,
            transformer_ms=sum(spent(TRANSFORMER)),
            passes_ms=(*denoising, *clean) if before else (),
            recache_ms=sum(before) if stretch.switches else 0.0,
            vae_ms=sum(sum(spent(graph)) for graph in self._decoders),
            encode_ms=sum(spent(TEXT)) + sum(spent(PROMPT)),
        )

    def _resolved_announced(self, durations: Durations, stretches: _AnnouncedStretch) -> Announced:
        alone, beside, switch = (
            self._resolved(durations, stretch)
            for stretch in (stretches.alone, stretches.beside, stretches.switch)
        )
        # Some of it may have been counted only when the prompt was waited for.
        whole = replace(stretches.beside, after=stretches.switch.after)
        return Announced(
            switch=replace(switch, encode_ms=stretches.waited_ms),
            alone=alone,
            beside=replace(beside, encode_ms=0.0),
            encoding_ms=self._resolved(durations, whole).encode_ms,
        )


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
