"""The same rollout on two sets of engines: how far one strays from the other.

A graph's own error is measured on identical inputs: wherever the reference runs a graph, the
candidate runs it on the very same tensors, and the rollout goes on with the reference's results.
A second rollout, of the candidate alone, then shows how these errors add up from block to block.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from longlive_trt.basics import Array, Closing
from longlive_trt.configs import ModelConfig
from longlive_trt.configs.dump import config_values
from longlive_trt.configs.replay import Replay, Switch, prompts_by_block
from longlive_trt.contract import (
    CPU,
    FRAMES,
    PROMPT,
    STEP,
    TEXT,
)
from longlive_trt.engines.base import Binding, Engine, TensorSpec
from longlive_trt.engines.bundles.bundle import (
    MANIFEST_NAME,
    Bundle,
    EngineKind,
    FileEntry,
    Manifest,
    open_bundle,
)
from longlive_trt.engines.loader import DeviceChoice
from longlive_trt.engines.registry import DEFAULT
from longlive_trt.engines.staging import HostStaged
from longlive_trt.errors import UsageError
from longlive_trt.exports import RECORD_NAME, check_export, read_export
from longlive_trt.reading.ranges import Range
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.decoding.choice import decoder_named, decoders_of
from longlive_trt.runtime.decoding.host import ThreadedDecoder, VaeStream
from longlive_trt.runtime.memory.base import HostMemory
from longlive_trt.runtime.noise import FloatArray, ReplayNoise, SeededNoise
from longlive_trt.runtime.prompting.encoder import PromptContexts, PromptReader
from longlive_trt.runtime.prompting.tokenizer import PromptTokenizer
from longlive_trt.runtime.session import Session
from longlive_trt.runtime.streams import STREAM_OF

# Relative L2; by what the coarser of the two computes in.
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "fp8": 3e-1, "int8": 3e-1}
PROMPTS = ("A red fox walks through fresh snow.", "The fox lies down beside a warm fire.")
DEFAULT_BLOCKS = 6
BLOCKS = Range(1, 1000)
TOLERANCE = Range(0, 1e9, above=True)


@dataclass
class GraphError:
    """The largest error of any output in any run."""

    error: float = 0.0
    output: str = ""
    runs: int = 0

    def add(self, output: str, error: float) -> None:
        if not self.output or not error <= self.error:
            self.error, self.output = error, output


@dataclass(frozen=True)
class BlockError:
    latents: float
    psnr_db: float | None
    """Infinite where the frames are the same; None where nothing was decoded."""


@dataclass(frozen=True)
class Comparison:
    tolerance: float
    graphs: Mapping[str, GraphError]
    blocks: tuple[BlockError, ...]

    @property
    def passed(self) -> bool:
        # Written so that NaN fails.
        errors = [graph.error for graph in self.graphs.values()]
        errors += [block.latents for block in self.blocks]
        return all(error <= self.tolerance for error in errors)


@dataclass(frozen=True)
class Rollout:
    latents: tuple[FloatArray, ...]
    """Of each block."""
    frames: tuple[Array, ...]


def open_reference(path: Path) -> Bundle:
    """A bundle, or a folder of exported graphs, which ONNX Runtime runs as they are."""
    if (path / MANIFEST_NAME).is_file() or not (path / RECORD_NAME).is_file():
        return open_bundle(path)
    record = read_export(path)
    check_export(path, record)
    quantized = record.quantization
    manifest = Manifest(
        key="",
        config=record.config,
        engine=EngineKind(DEFAULT.name, DEFAULT.library_version(), CPU),
        precision=quantized.precision if quantized else record.precision,
        graphs=record.graphs,
        checkpoints=record.checkpoints,
        onnx=record.files,
        files={
            name: FileEntry(sha256, (path / name).stat().st_size)
            for name, sha256 in record.files.items()
        },
    )
    return Bundle(path, manifest)


def default_tolerance(*precisions: str) -> float:
    return max(TOLERANCES.get(precision, max(TOLERANCES.values())) for precision in precisions)


def compare(
    reference: Bundle,
    candidate: Bundle,
    tolerance: float,
    replay: Replay | None,
    blocks: int,
    device: DeviceChoice = "auto",
) -> Comparison:
    """``device`` is the candidate's."""
    BLOCKS.require("blocks", blocks)
    TOLERANCE.require("tolerance", tolerance)
    require_comparable(reference, candidate)
    with HostEngines(candidate, device) as alone, HostEngines(reference) as other:
        paired = PairedEngines(other, alone)
        if not reference.has(STEP):
            _decode_noise(paired, blocks)
            return Comparison(tolerance, paired.errors, ())
        states = _text_states(paired)
        replay = replay or generated_replay(reference.config, states, blocks)
        expected = roll_out(paired, reference.config, replay, decode=paired.can_decode)
        found = roll_out(alone, reference.config, replay, decode=paired.can_decode)
        errors = _block_errors(expected, found, _frame_range(reference))
        return Comparison(tolerance, paired.errors, errors)


def require_comparable(reference: Bundle, candidate: Bundle) -> None:
    both = (reference, candidate)
    if not all(_is_decoder_alone(bundle) for bundle in both):
        for bundle in both:
            bundle.require(STEP, "replaying a rollout")
            bundle.require(PROMPT, "replaying a rollout")
    expected, found = _compiled_in(reference.config), _compiled_in(candidate.config)
    shared = expected.keys() & found.keys()
    differing = sorted(key for key in shared if expected[key] != found[key])
    if differing:
        key = differing[0]
        raise UsageError(
            f"{candidate.folder}: graphs of another configuration than {reference.folder}: {key} "
            f"is {found[key]!r}, and {expected[key]!r} there; compare builds of the same export"
        )


def _is_decoder_alone(bundle: Bundle) -> bool:
    return bool(decoders_of(bundle)) and not bundle.has(STEP)


def _compiled_in(config: ModelConfig) -> dict[str, Any]:
    """What the graphs fix, as flat keys; a component that is left out has none."""
    values = config_values(config)
    rollout = values["rollout"]
    fixed = {"rollout.rope": rollout["rope"], "rollout.frames": rollout["frames_per_block"]}
    for section in ("transformer", "latent", "vae", "light_vae", "text_encoder"):
        fixed |= {f"{section}.{key}": value for key, value in (values.get(section) or {}).items()}
    return fixed


class EngineSource(Protocol):
    """Engines by their graphs' names; all take arrays on the host."""

    bundle: Bundle

    def get(self, graph: str, purpose: str) -> Engine: ...


class HostEngines(Closing):
    """A bundle's engines for arrays on the host, wherever they run."""

    def __init__(self, bundle: Bundle, device: DeviceChoice = "auto") -> None:
        self.bundle = bundle
        self._engines = Engines(bundle, device)
        self._staged: dict[str, HostStaged] = {}

    def get(self, graph: str, purpose: str) -> Engine:
        engine = self._engines.get(graph, purpose)
        if not self._engines.on_gpu:
            return engine
        if graph not in self._staged:
            self._staged[graph] = HostStaged(engine, self._engines.stream(STREAM_OF[graph]))
        return self._staged[graph]

    def close(self) -> None:
        for staged in self._staged.values():
            staged.close()
        self._engines.close()


class PairedEngines:
    """The reference's engines; the candidate's run along, and their errors are noted."""

    def __init__(self, reference: HostEngines, candidate: HostEngines) -> None:
        self.bundle = reference.bundle
        self._reference, self._candidate = reference, candidate
        self.errors: dict[str, GraphError] = {}

    def has(self, graph: str) -> bool:
        return self.bundle.has(graph) and self._candidate.bundle.has(graph)

    @property
    def can_decode(self) -> bool:
        held = decoders_of(self.bundle)
        return bool(held) and all(map(self.has, decoder_named(self.bundle, None).graphs))

    def get(self, graph: str, purpose: str) -> Engine:
        expected, found = (e.get(graph, purpose) for e in (self._reference, self._candidate))
        return _PairedEngine(expected, found, self.errors.setdefault(graph, GraphError()))


@dataclass
class _PairedEngine(Closing):
    _reference: Engine
    _candidate: Engine
    _error: GraphError

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """One may read what the other does without."""
        return {**self._candidate.inputs, **self._reference.inputs}

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self._reference.outputs

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Binding:
        own_inputs = _like(inputs, self._candidate.inputs)
        own_outputs = _like(outputs, self._candidate.outputs)
        expected = {name: array for name, array in inputs.items() if name in self._reference.inputs}
        return _PairedBinding(
            self._reference.bind(expected, outputs),
            self._candidate.bind(own_inputs, own_outputs),
            [(inputs[name], array) for name, array in own_inputs.items()],
            {name: (outputs[name], array) for name, array in own_outputs.items()},
            self._error,
        )

    def close(self) -> None:
        """Both belong to the engines that loaded them."""


@dataclass(frozen=True)
class _PairedBinding:
    _reference: Binding
    _candidate: Binding
    _inputs: list[tuple[Array, Array]]
    _outputs: dict[str, tuple[Array, Array]]
    _error: GraphError

    def run(self) -> None:
        for given, own in self._inputs:
            own[...] = _laid_out_as(given, own)
        self._reference.run()
        self._candidate.run()
        self._error.runs += 1
        for name, (expected, found) in self._outputs.items():
            self._error.add(name, relative_error(found, _laid_out_as(expected, found)))


def _like(arrays: Mapping[str, Array], specs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    """Arrays of the same sizes in the candidate's own types; it may lack some."""
    return {
        name: np.zeros(_shape_in(specs[name], array), specs[name].dtype)
        for name, array in arrays.items()
        if name in specs
    }


def _shape_in(spec: TensorSpec, array: Array) -> tuple[int, ...]:
    """The array's shape, or that of its channels last, as a GPU's decoder keeps its histories."""
    for shape in (array.shape, _channels_last(array).shape):
        pairs = zip(shape, spec.shape, strict=True)
        if all(have == want or isinstance(want, str) for have, want in pairs):
            return shape
    return array.shape


def _laid_out_as(array: Array, other: Array) -> Array:
    return array if array.shape == other.shape else _channels_last(array)


def _channels_last(array: Array) -> Array:
    """[B, C, frames, H, W] as [B, frames, H, W, C]."""
    return array.transpose(0, 2, 3, 4, 1) if array.ndim == 5 else array


def roll_out(
    engines: EngineSource, config: ModelConfig, replay: Replay, *, decode: bool
) -> Rollout:
    contexts = PromptContexts(engines.get("prompt", "replaying a rollout"), replay.batch)
    block_frames = config.rollout.frames_per_block
    switches = prompts_by_block(replay.schedule, block_frames)
    latents, frames = [], []
    with Session(
        engines.get(STEP, "replaying a rollout"),
        config,
        ReplayNoise(replay, block_frames),
        batch=replay.batch,
        total_frames=replay.frames,
        decoder=ThreadedDecoder(_frame_stream(engines, replay.batch)) if decode else None,
        takes_any_number=True,
    ) as session:
        for _, (_, prompt) in zip(range(replay.frames // block_frames), switches, strict=False):
            if prompt is not None:
                session.switch_prompt(contexts.of_states(replay.prompts[prompt]))
            block = session.step()
            # The last block's clean pass is compared too, and one before a switch.
            session.remember()
            latents.append(block.latents)
            if decode:
                frames.append(block.pixels())
    return Rollout(tuple(latents), tuple(frames))


def _frame_stream(engines: EngineSource, batch: int) -> VaeStream:
    decoder, latent = decoder_named(engines.bundle, None), engines.bundle.config.latent
    first, following = (engines.get(name, "decoding") for name in decoder.graphs)
    # Bytes would hide small errors, and make a large one of a value that is rounded otherwise.
    return VaeStream(first, following, batch, FRAMES, latents=latent.size)


def _decode_noise(engines: EngineSource, blocks: int) -> None:
    """Where there is no transformer: latents that look like nothing, but have its scale."""
    config = engines.bundle.config
    shape = (1, config.rollout.frames_per_block, *config.latent_shape)
    noise, stream = SeededNoise(0, shape, 1), _frame_stream(engines, 1)
    for index in range(blocks):
        stream.decode(noise.block(index).initial)


def _text_states(engines: PairedEngines) -> list[FloatArray]:
    """The prompts through the text encoder, where both have one."""
    if not engines.has(TEXT):
        return []
    text_len = engines.bundle.config.transformer.text_len
    tokenizer = PromptTokenizer.load(engines.bundle.tokenizer, text_len)
    reader = PromptReader(tokenizer, engines.get(TEXT, "reading a prompt"), HostMemory())
    return [reader.states_of(prompt).astype(np.float32) for prompt in PROMPTS]


def generated_replay(
    config: ModelConfig, states: list[FloatArray], blocks: int, seed: int = 0
) -> Replay:
    """A rollout of so many blocks with a prompt switch in the middle, the same everywhere."""
    rollout = config.rollout
    shape = (1, rollout.frames_per_block, *config.latent_shape)
    source = SeededNoise(seed, shape, rollout.noises)
    drawn = [source.block(index) for index in range(blocks)]
    schedule = [Switch(0, 0)]
    if blocks > 1:
        schedule.append(Switch(blocks // 2 * rollout.frames_per_block, 1))
    passes = rollout.noises - 1
    renoise = [np.reshape(block.renoise, (passes, *shape)) for block in drawn]
    return Replay(
        noise=np.concatenate([block.initial for block in drawn], axis=1),
        renoise=np.stack(renoise).astype(np.float32),
        prompts=dict(enumerate(states or _made_up_states(config, seed))),
        schedule=tuple(schedule),
    )


def _made_up_states(config: ModelConfig, seed: int) -> Iterator[FloatArray]:
    shape = (config.transformer.text_len, config.transformer.text_dim)
    for number, _ in enumerate(PROMPTS):
        source = SeededNoise(seed + 1 + number, (1, *shape), 1)
        states = source.block(0).initial
        # As after an encoder: the rows past the prompt's end are zero.
        states[:, shape[0] // 2 :] = 0
        yield states


def _frame_range(bundle: Bundle) -> tuple[float, float]:
    """Of decoded frames; any will do where there are none."""
    held = decoders_of(bundle)
    return decoder_named(bundle, None).config.frame_range if held else (-1.0, 1.0)


def _block_errors(
    expected: Rollout, found: Rollout, frame_range: tuple[float, float]
) -> tuple[BlockError, ...]:
    pairs = zip(found.frames, expected.frames, strict=True)
    decibels: list[float | None] = [psnr_db(own, other, frame_range) for own, other in pairs]
    if not decibels:
        decibels = [None] * len(expected.latents)
    return tuple(
        BlockError(relative_error(own, other), psnr)
        for own, other, psnr in zip(found.latents, expected.latents, decibels, strict=True)
    )


def relative_error(found: Array, expected: Array) -> float:
    """Relative L2; NaN where either holds one."""
    reference = expected.astype(np.float64)
    distance = float(np.linalg.norm(found.astype(np.float64) - reference))
    if distance == 0:
        return 0.0
    norm = float(np.linalg.norm(reference))
    return distance / norm if norm else float("inf")


def psnr_db(found: Array, expected: Array, frame_range: tuple[float, float] = (-1.0, 1.0)) -> float:
    black, white = frame_range
    clipped = (np.clip(frames.astype(np.float64), black, white) for frames in (found, expected))
    error = float(np.mean(np.square(np.subtract(*clipped))))
    return float(10 * np.log10((white - black) ** 2 / error)) if error else float("inf")
