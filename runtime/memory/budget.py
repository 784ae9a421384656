"""How much memory a session takes on a GPU, before anything is loaded there."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from longlive_trt.configs import ModelConfig, TaehvConfig
from longlive_trt.contract import (
    BATCH,
    CACHE_FRAMES,
    CONTEXT_K,
    CONTEXT_V,
    DECODER_GRAPHS,
    HISTORY,
    K_CACHE,
    K_NEW,
    LATENT_FRAMES,
    PIXELS,
    PROMPT,
    STEP,
    STEP_FRAMES,
    TEXT,
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
from longlive_trt.runtime.decoding.choice import decoder_named
from longlive_trt.runtime.memory.base import buffers, named, size_bytes
from longlive_trt.runtime.ring import RingLayout

GIB = 1 << 30
# Activations that are alive together, as multiples of the largest one: measured, rounded up.
_STEP_ACTIVATIONS = 16
_VAE_ACTIVATIONS = 12
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
    component = decoder_named(bundle, decoder).component if decode else ""
    graphs = [STEP, PROMPT, *DECODER_GRAPHS.get(component, ())]
    manifest = bundle.manifest
    encoder = engines_bytes(manifest, [TEXT]) if text and bundle.has(TEXT) else 0
    rest = {
        "keys and values": _cache_bytes(bundle, layout, batch),
        "recomputing them": _recache_bytes(bundle, layout, batch),
        "activations": _STEP_ACTIVATIONS * _largest_activation(config, batch),
        "decoding": _decoder_bytes(bundle, config, component, batch, low_memory) if decode else 0,
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
) -> Budget:
    """What a GPU takes that does nothing but decode."""
    component = decoder_named(bundle, decoder).component
    return Budget(
        {
            "weights": engines_bytes(bundle.manifest, DECODER_GRAPHS[component]),
            "decoding": _decoder_bytes(bundle, config, component, batch, low_memory),
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


def _decoder_bytes(
    bundle: Bundle, config: ModelConfig, component: str, batch: int, low_memory: bool
) -> int:
    vae = config.decoder(component)
    assert vae is not None
    _, following = DECODER_GRAPHS[component]
    inputs, outputs = _specs(bundle, following)
    in_place = renewed_in_place(bundle, following)
    block = 1 if low_memory else config.rollout.frames_per_block
    latent = latent_sizes(*config.latent.size)
    sizes = {BATCH: batch, LATENT_FRAMES: block, **latent}
    histories = buffers(named(inputs, HISTORY), **sizes)
    twice = [buffer for name, buffer in histories.items() if name not in in_place]
    kept = size_bytes(histories.values()) + size_bytes(twice)
    pictures = prod(outputs[PIXELS].sized(**sizes))
    # The widest activation is three channels of pictures made of the model's narrowest layer.
    narrowest = vae.widths[-1] if isinstance(vae, TaehvConfig) else vae.dim
    widest = 2 * narrowest * pictures // 3
    return kept + 3 * pictures + _VAE_ACTIVATIONS * widest


def _largest_activation(config: ModelConfig, batch: int) -> int:
    tokens = config.tokens_per_frame * config.rollout.frames_per_block
    return 2 * batch * tokens * config.transformer.ffn_dim


def _specs(bundle: Bundle, graph: str) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    info = bundle.manifest.graphs[graph]
    return specs_of(info.inputs), specs_of(info.outputs)
