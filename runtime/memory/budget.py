"""How much memory a session takes on a GPU, before anything is loaded there."""

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from longlive_trt.configs import DecoderConfig, ModelConfig, TaehvConfig, VaeConfig
from longlive_trt.contract import (
    BASE_GRAPHS,
    BATCH,
    CACHE_FRAMES,
    CONTEXT_K,
    CONTEXT_V,
    FEATURES,
    HISTORY,
    K_CACHE,
    K_NEW,
    LATENT_FRAMES,
    PIXELS,
    PROMPT,
    STEP,
    STEP_FRAMES,
    TEXT,
    TILE_GRAPHS,
    V_CACHE,
    V_NEW,
    latent_sizes,
)
from longlive_trt.engines.base import TensorSpec, specs_of
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.engines.memory import engines_bytes
from longlive_trt.engines.renewal import renewed_in_place
from longlive_trt.errors import EngineError
from longlive_trt.plugins.cuda.streams import Gpu
from longlive_trt.runtime.decoding.choice import BundledDecoder, decoder_named
from longlive_trt.runtime.decoding.tiling import PartSpecs, TilePlan
from longlive_trt.runtime.memory.base import buffers, named, size_bytes
from longlive_trt.runtime.ring import RingLayout

GIB = 1 << 30
# Activations that are alive together, as multiples of the largest one: measured, rounded up.
_STEP_ACTIVATIONS = 16
_VAE_ACTIVATIONS = 12
Way = Literal["blocks", "frames", "tiles"]
"""How latents are decoded: all of a block at once, one by one, or each in tiles."""
_CONTEXT_BYTES = 1 * GIB
"""CUDA itself, the libraries' kernels and workspaces."""


@dataclass(frozen=True)
class Budget:
    """Bytes by what they are for."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def described(self) -> str:
        return ", ".join(f"{what} {size / GIB:.1f}" for what, size in self.parts.items() if size)


def session_budget(
    bundle: Bundle,
    config: ModelConfig,
    *,
    batch: int = 1,
    total_frames: int | None = None,
    decode: bool = True,
    text: bool = True,
    low_memory: bool = False,
    decoder: str | None = None,
) -> Budget:
    """``decoder``: the name of the one that decodes, if not the bundle's first."""
    layout = RingLayout.of(config, total_frames)
    decoding = decoder_named(bundle, decoder) if decode else None
    graphs = [STEP, PROMPT, *(decoding.graphs if decoding else ())]
    manifest = bundle.manifest
    encoder = engines_bytes(manifest, [TEXT]) if text and bundle.has(TEXT) else 0
    rest = {
        "keys and values": _cache_bytes(bundle, layout, batch),
        "recomputing them": _recache_bytes(bundle, layout, batch),
        "activations": _STEP_ACTIVATIONS * _largest_activation(config, batch),
        "decoding": decoding_bytes(
            bundle, config, decoding, batch, way_of(bundle, decoding, low_memory=low_memory)
        )
        if decoding
        else 0,
    }
    # A transient text encoder is gone before what the session needs is taken.
    held = sum(rest.values())
    encoding = max(0, encoder - held) if low_memory else encoder
    weights = engines_bytes(manifest, graphs)
    return Budget({"weights": weights, "encoding": encoding, **rest, "CUDA": _CONTEXT_BYTES})


def decoder_budget(
    bundle: Bundle,
    config: ModelConfig,
    *,
    batch: int = 1,
    low_memory: bool = False,
    decoder: str | None = None,
    way: Way | None = None,
) -> Budget:
    """What a GPU takes that does nothing but decode. ``way``: if not that of a session."""
    decoding = decoder_named(bundle, decoder)
    way = way or way_of(bundle, decoding, low_memory=low_memory)
    return Budget(
        {
            # Both parts together have the weights of the whole.
            "weights": engines_bytes(bundle.manifest, decoding.graphs),
            "decoding": decoding_bytes(bundle, config, decoding, batch, way),
            "CUDA": _CONTEXT_BYTES,
        }
    )


def require_memory(gpu: Gpu, wanted: Budget, lesser: Mapping[str, Budget]) -> None:
    """Refuse now what would fail later. ``lesser`` are what one could ask for instead."""
    free = gpu.memory().free_bytes
    if wanted.total <= free:
        return
    fitting = [f"{how} ({b.total / GIB:.1f} GiB)" for how, b in lesser.items() if b.total <= free]
    remedy = "what would fit: " + ", or ".join(fitting) if fitting else "use a GPU with more memory"
    raise EngineError(
        f"{gpu.facts.name}: about {wanted.total / GIB:.1f} GiB of memory are needed "
        f"({wanted.described()}), and {free / GIB:.1f} GiB are free; {remedy}, or end what else "
        f"uses the GPU"
    )


def _cache_bytes(bundle: Bundle, layout: RingLayout, batch: int) -> int:
    inputs, outputs = _specs(bundle, STEP)
    kept = named(inputs, K_CACHE, V_CACHE, CONTEXT_K, CONTEXT_V)
    made = named(outputs, K_NEW, V_NEW)
    sizes = {BATCH: batch, STEP_FRAMES: layout.block, CACHE_FRAMES: layout.slots}
    return size_bytes(buffers([*kept, *made], **sizes).values())


def _recache_bytes(bundle: Bundle, layout: RingLayout, batch: int) -> int:
    made = named(_specs(bundle, STEP)[1], K_NEW, V_NEW)
    return size_bytes(buffers(made, batch=batch, frames=layout.window).values())


def way_of(bundle: Bundle, decoder: BundledDecoder, *, low_memory: bool) -> Way:
    """How a session decodes."""
    if not low_memory:
        return "blocks"
    return "tiles" if decoder.has_tiles(bundle) else "frames"


def decoding_bytes(
    bundle: Bundle, config: ModelConfig, decoder: BundledDecoder, batch: int, way: Way
) -> int:
    if way == "tiles":
        return _tiled_bytes(bundle, config, decoder, batch)
    _, following = decoder.graphs
    inputs, outputs = _specs(bundle, following)
    in_place = renewed_in_place(bundle, following)
    block = config.rollout.frames_per_block if way == "blocks" else 1
    latent = latent_sizes(*config.latent.size)
    sizes = {BATCH: batch, LATENT_FRAMES: block, **latent}
    histories = buffers(named(inputs, HISTORY), **sizes)
    twice = [buffer for name, buffer in histories.items() if name not in in_place]
    kept = size_bytes(histories.values()) + size_bytes(twice)
    pictures = prod(outputs[PIXELS].sized(**sizes))
    own = kept + 3 * pictures + _VAE_ACTIVATIONS * _widest(decoder.config, pictures)
    if way != "blocks" or block == 1:
        return own
    # Single frames have an engine of their own beside that of blocks.
    of_frame = _VAE_ACTIVATIONS * _widest(decoder.config, pictures // block)
    return own + engines_bytes(bundle.manifest, [following]) + of_frame


def _tiled_bytes(bundle: Bundle, config: ModelConfig, decoder: BundledDecoder, batch: int) -> int:
    """What its plan reserves, the pictures of two blocks, and the larger part's activations."""
    vae = decoder.config
    assert isinstance(vae, VaeConfig)
    plan = TilePlan(vae, batch, config.latent.size)
    base, tile = (
        _part_specs(bundle, parts[decoder.component]) for parts in (BASE_GRAPHS, TILE_GRAPHS)
    )
    features = prod(plan.of_frame(base.following[FEATURES]).shape)
    made, whole = (prod(of(tile.following[PIXELS]).shape) for of in (plan.of_tile, plan.of_frame))
    # Each part's memory stays its engine's.
    activations = _VAE_ACTIVATIONS * (_widest(vae, made) + 2 * features)
    blocks = 3 * config.rollout.frames_per_block * whole
    return plan.size_bytes(base, tile, PIXELS) + blocks + activations


def _part_specs(bundle: Bundle, graphs: tuple[str, str]) -> PartSpecs:
    first, following = (dict(ChainMap(*_specs(bundle, graph))) for graph in graphs)
    return PartSpecs(first, following, renewed_in_place(bundle, graphs[1]))


def _widest(config: DecoderConfig, pictures: int) -> int:
    """An activation of three channels of pictures made of the model's narrowest layer."""
    narrowest = config.widths[-1] if isinstance(config, TaehvConfig) else config.dim
    return 2 * narrowest * pictures // 3


def _largest_activation(config: ModelConfig, batch: int) -> int:
    tokens = config.tokens_per_frame * config.rollout.frames_per_block
    return 2 * batch * tokens * config.transformer.ffn_dim


def _specs(bundle: Bundle, graph: str) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    info = bundle.manifest.graphs[graph]
    return specs_of(info.inputs), specs_of(info.outputs)
