"""Whether graphs fit a configuration, and engines a manifest: a file may say anything."""

from collections.abc import Iterator, Mapping

from longlive_trt.configs import ModelConfig
from longlive_trt.contract import (
    BASE_GRAPHS,
    CONTEXT_K,
    CONTEXT_V,
    DECODER_GRAPHS,
    ENCODE_FIRST,
    ENCODER_GRAPHS,
    IDS,
    K_CACHE,
    K_NEW,
    LATENTS,
    LATENTS_NEXT,
    MASK,
    PIXELS,
    PROMPT,
    STEP,
    TEXT,
    TEXT_STATES,
    V_CACHE,
    V_NEW,
    evaluate_size,
    is_transposed,
    latent_sizes,
    not_transposed,
    numbered,
    stem_of,
)
from longlive_trt.engines.base import Engine, TensorSpec, specs_of
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.errors import BundleError
from longlive_trt.exports import GraphInfo, TensorInfo

_Sizes = tuple[int | None, ...]
"""Of a tensor's axes after the first; None is chosen when it is bound, or not known here."""
_BASE = {graph for pair in BASE_GRAPHS.values() for graph in pair}
_FIRST = {first for first, _ in DECODER_GRAPHS.values()}
_DECODERS = {graph for pair in DECODER_GRAPHS.values() for graph in pair}
_SAMPLE = 3
"""Frames, in a size that counts them."""


def require_fit(where: object, config: ModelConfig, graphs: Mapping[str, GraphInfo]) -> None:
    """Refuse what sessions would stumble over: tensors that are missing, or of other sizes."""
    for graph, info in graphs.items():
        inputs = {tensor.name: tensor for tensor in info.inputs}
        outputs = {tensor.name: tensor for tensor in info.outputs}
        for tensors, expected in (
            (inputs, _inputs(graph, config)),
            (outputs, _outputs(graph, config)),
        ):
            for name, sizes in expected:
                _require(where, graph, name, tensors.get(name), sizes)


def require_described(bundle: Bundle, graph: str, engine: Engine) -> None:
    """Refuse an engine with other tensors than the manifest says, or of other sizes and types."""
    info = bundle.manifest.graphs[graph]
    for found, described in ((engine.inputs, info.inputs), (engine.outputs, info.outputs)):
        expected = specs_of(described)
        for name, spec in found.items():
            other = expected.get(name)
            if other is None or not _agree(spec, other):
                there = "missing" if other is None else f"{other.dtype} {list(other.shape)}"
                raise BundleError(
                    f"{bundle.folder}: the engine of graph {graph} is not the one that the "
                    f"manifest describes: tensor {name} is {spec.dtype} {list(spec.shape)}, and "
                    f"{there} there; build the bundle again"
                )


def _agree(spec: TensorSpec, other: TensorSpec) -> bool:
    """Sizes that are chosen later may be written in another way."""
    pairs = zip(spec.shape, other.shape, strict=False)
    same = all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))
    return spec.dtype == other.dtype and len(spec.shape) == len(other.shape) and same


def _require(
    where: object, graph: str, name: str, tensor: TensorInfo | None, sizes: _Sizes
) -> None:
    advice = "build the bundle again"
    if tensor is None:
        raise BundleError(
            f"{where}: its configuration asks for a tensor {name} of graph {graph}, which that "
            f"does not have; {advice}"
        )
    is_value = stem_of(name) in (V_CACHE, V_NEW)
    shape = not_transposed(tensor.shape) if is_value else tensor.shape
    # Nothing else may lie so.
    found = () if is_transposed(shape) else tuple(map(_known, shape))
    # The first axis is the batch.
    expected = (None, *sizes)
    pairs = zip(found, expected, strict=False)
    differs = any(None not in pair and pair[0] != pair[1] for pair in pairs)
    if len(found) != len(expected) or differs:
        shown = [("*" if size is None else size) for size in sizes]
        raise BundleError(
            f"{where}: its configuration does not fit its graphs: {name} of graph {graph} is "
            f"{list(tensor.shape)}, and should end with {shown}; {advice}"
        )


def _known(size: int | str) -> int | None:
    """None for a size that is a name alone; ``24*cache_frames`` tells the tokens of a frame."""
    if isinstance(size, int) or size.isdecimal():
        return int(size)
    names = [factor.strip() for factor in size.split("*") if not factor.strip().isdecimal()]
    # Tokens and pictures are so many for each frame; latents of any size tell nothing.
    is_product = len(names) == 1 and "*" in size and names[0] not in latent_sizes(0, 0)
    return evaluate_size(size, {names[0]: _SAMPLE}) if is_product else None


def _inputs(graph: str, config: ModelConfig) -> Iterator[tuple[str, _Sizes]]:
    transformer = config.transformer
    if graph == STEP:
        yield LATENTS, (None, *config.latent_shape)
        yield from _numbered((K_CACHE, V_CACHE), transformer.layers, _keys(config))
        yield from _numbered((CONTEXT_K, CONTEXT_V), transformer.layers, _context(config))
    elif graph == PROMPT:
        yield TEXT_STATES, (transformer.text_len, transformer.text_dim)
    elif graph == TEXT:
        yield IDS, (transformer.text_len,)
        yield MASK, (transformer.text_len,)
    elif graph in _DECODERS | _BASE:
        yield LATENTS, (None, *config.latent_shape)
    elif graph in ENCODER_GRAPHS and config.video_size is not None:
        pictures = 1 if graph == ENCODE_FIRST else config.temporal_factor
        yield PIXELS, (pictures, *config.video_size, 3)


def _outputs(graph: str, config: ModelConfig) -> Iterator[tuple[str, _Sizes]]:
    transformer = config.transformer
    if graph == STEP:
        yield LATENTS_NEXT, (None, *config.latent_shape)
        yield from _numbered((K_NEW, V_NEW), transformer.layers, _keys(config))
    elif graph == PROMPT:
        yield from _numbered((CONTEXT_K, CONTEXT_V), transformer.layers, _context(config))
    elif graph == TEXT:
        yield TEXT_STATES, (transformer.text_len, transformer.text_dim)
    elif graph in _DECODERS and config.video_size is not None:
        frames = 1 if graph in _FIRST else None
        yield PIXELS, (frames, *config.video_size, 3)
    elif graph in ENCODER_GRAPHS:
        yield LATENTS, (1, *config.latent_shape)


def _numbered(names: tuple[str, ...], count: int, sizes: _Sizes) -> Iterator[tuple[str, _Sizes]]:
    for name in names:
        for number in range(count):
            yield numbered(name, number), sizes


def _keys(config: ModelConfig) -> _Sizes:
    transformer = config.transformer
    return _SAMPLE * config.tokens_per_frame, transformer.heads, transformer.head_dim


def _context(config: ModelConfig) -> _Sizes:
    transformer = config.transformer
    return transformer.text_len, transformer.heads, transformer.head_dim
