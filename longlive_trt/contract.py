"""The contract of the graphs: what their exporter, their compilers and the runtime must agree on.

Every name is spelled here and nowhere else in the product. docs/architecture.md has the shapes.
"""

from collections.abc import Mapping, Sequence
from math import prod

from longlive_trt.errors import EngineError

# Components of a model, and the graphs of each.
TRANSFORMER = "transformer"
VAE = "vae"
VAE_ENCODER = "vae_encoder"
LIGHT_VAE = "light_vae"
TEXT_ENCODER = "text_encoder"

STEP = "step"
PROMPT = "prompt"
VAE_FIRST = "vae_first"
VAE_NEXT = "vae_next"
LIGHT_VAE_FIRST = "light_vae_first"
LIGHT_VAE_NEXT = "light_vae_next"
ENCODE_FIRST = "encode_first"
ENCODE_NEXT = "encode_next"
TEXT = "text"
VAE_GRAPHS = (VAE_FIRST, VAE_NEXT)
LIGHT_VAE_GRAPHS = (LIGHT_VAE_FIRST, LIGHT_VAE_NEXT)
DECODER_GRAPHS = {VAE: VAE_GRAPHS, LIGHT_VAE: LIGHT_VAE_GRAPHS}
"""Of each decoder: the graph of a video's first latent frame, and that of all others."""
BASE_GRAPHS = {
    VAE: ("vae_base_first", "vae_base_next"),
    LIGHT_VAE: ("light_vae_base_first", "light_vae_base_next"),
}
TILE_GRAPHS = {
    VAE: ("vae_tile_first", "vae_tile_next"),
    LIGHT_VAE: ("light_vae_tile_first", "light_vae_tile_next"),
}
"""The same decoder in two parts: one for small whole frames, and one for tiles of large ones."""
PART_GRAPHS = tuple(
    graph for parts in (BASE_GRAPHS, TILE_GRAPHS) for pair in parts.values() for graph in pair
)
ENCODER_GRAPHS = (ENCODE_FIRST, ENCODE_NEXT)
"""For videos that begin with a clip: the rest of them runs without."""

COMPONENT_OF = {
    STEP: TRANSFORMER,
    PROMPT: TRANSFORMER,
    VAE_FIRST: VAE,
    VAE_NEXT: VAE,
    LIGHT_VAE_FIRST: LIGHT_VAE,
    LIGHT_VAE_NEXT: LIGHT_VAE,
    **{
        graph: component
        for parts in (BASE_GRAPHS, TILE_GRAPHS)
        for component, pair in parts.items()
        for graph in pair
    },
    ENCODE_FIRST: VAE_ENCODER,
    ENCODE_NEXT: VAE_ENCODER,
    TEXT: TEXT_ENCODER,
}


def weight_prefix(component: str) -> str:
    """What stands before a checkpoint's names in the graphs of a component."""
    # Both decoders have one name inside their graphs.
    return f"{VAE if component == LIGHT_VAE else component}."


def weights_file(owner: str) -> str:
    """The weights of a component, or of one graph alone."""
    return f"{owner}.weights"


# Tensors of a pass of the transformer.
LATENTS = "latents"
NOISE = "noise"
LATENTS_NEXT = "latents_next"
TIMESTEP = "timestep"
SIGMA = "sigma"
SIGMA_NEXT = "sigma_next"
LEVEL_INPUTS = (TIMESTEP, SIGMA, SIGMA_NEXT)
FRAME_INDEX = "frame_index"
CACHE_INDEX = "cache_index"
SINK_FRAMES = "sink_frames"
WINDOW_FRAMES = "window_frames"

# Numbered tensors: one for each layer, or, of the VAE, for each convolution's history.
K_CACHE = "k_cache"
V_CACHE = "v_cache"
K_NEW = "k_new"
V_NEW = "v_new"
CONTEXT_K = "context_k"
CONTEXT_V = "context_v"
CONTEXT_TOKENS = "context_tokens"
"""How many tokens of a prompt there are to tell apart; the last of them stands for its padding."""
HISTORY = "cache"
HISTORY_NEXT = "cache_next"
CACHE_OF = {"k": K_CACHE, "v": V_CACHE}
CONTEXT_OF = {"k": CONTEXT_K, "v": CONTEXT_V}
_NEXT = {K_CACHE: K_NEW, V_CACHE: V_NEW, HISTORY: HISTORY_NEXT}

# Tensors of the VAE and of the text encoder.
FRAMES = "frames"
FEATURES = "features"
PIXELS = "pixels"
IDS = "ids"
MASK = "mask"
TEXT_STATES = "text_states"


def numbered(stem: str, number: int) -> str:
    return f"{stem}.{number}"


def stem_of(name: str) -> str:
    """``k_cache`` of ``k_cache.3``; empty for a name without a number."""
    return name.rpartition(".")[0]


def next_of(name: str) -> str:
    """The output that a later run reads as this input: ``k_new.3`` of ``k_cache.3``."""
    stem, _, number = name.rpartition(".")
    return f"{_NEXT[stem]}.{number}"


# Sizes that are chosen when a tensor is bound.
BATCH = "batch"
STEP_FRAMES = "frames"
CACHE_FRAMES = "cache_frames"
LATENT_FRAMES = "latent_frames"
LATENT_HEIGHT = "latent_height"
LATENT_WIDTH = "latent_width"
"""Of a decoder that takes latents of any size."""
FEATURE_FRAMES = "feature_frames"
TILE_HEIGHT = "tile_height"
TILE_WIDTH = "tile_width"
"""Of the features that a tile is made of."""


def latent_sizes(height: int, width: int) -> dict[str, int]:
    return {LATENT_HEIGHT: height, LATENT_WIDTH: width}


def tile_sizes(height: int, width: int) -> dict[str, int]:
    return {TILE_HEIGHT: height, TILE_WIDTH: width}


def multiple_of(size: str, factor: int) -> str:
    return f"{factor}*{size}"


def padded_to(size: str, multiple: int) -> str:
    """What is no multiple is rounded up to one."""
    return f"{size}|{multiple}"


def transposed(shape: Sequence[int | str], group: int) -> tuple[int | str, ...]:
    """Of kept values [batch, tokens, heads, head_dim], as attention in eight bits reads them."""
    batch, tokens, *channels = shape
    return batch, *channels, padded_to(str(tokens), group)


def not_transposed(shape: Sequence[int | str]) -> tuple[int | str, ...]:
    """The same of values that lie so, or as they lie anyway."""
    if not is_transposed(shape):
        return tuple(shape)
    batch, *channels, tokens = shape
    return batch, _size_and_multiple(tokens)[0], *channels


def is_transposed(shape: Sequence[int | str]) -> bool:
    return any(_size_and_multiple(size)[1] for size in shape[-1:])


def _size_and_multiple(size: int | str) -> tuple[str, str]:
    before, _, after = str(size).partition("|")
    return before, after


def evaluate_size(expression: int | str, sizes: Mapping[str, int]) -> int:
    """A number, a size's name, or a product of such, ``24*cache_frames``, perhaps rounded up to a
    multiple: ``24*cache_frames|16``."""
    product, multiple = _size_and_multiple(expression)
    size = prod(_factor(factor.strip(), sizes) for factor in product.split("*"))
    step = max(1, _factor(multiple, {})) if multiple else 1
    return -(-size // step) * step


def _factor(text: str, sizes: Mapping[str, int]) -> int:
    if text.isdecimal():
        return int(text)
    if text not in sizes:
        known = ", ".join(sizes) or "none"
        raise EngineError(f"a tensor has the size {text!r}, which was not chosen; known: {known}")
    return sizes[text]


# Constant tables of the step graph.
FRAME_COS = "frame_cos"
FRAME_SIN = "frame_sin"
GRID_COS = "grid_cos"
GRID_SIN = "grid_sin"
LEVEL_COS = "level_cos"
LEVEL_SIN = "level_sin"
LEVEL_RATES = "level_rates"

# Self-attention over a cache: functions of the exported graphs, and plugins of TensorRT.
LOCAL_DOMAIN = "longlive"
ATTENTION_OP = "SinkWindowAttention"
QUANTIZED_ATTENTION_OP = "QuantizedSinkWindowAttention"
INTEGER_ATTENTION_OP = "IntegerSinkWindowAttention"
ATTENTION_PLUGIN = f"{LOCAL_DOMAIN}::{ATTENTION_OP}"
INTEGER_ATTENTION_PLUGIN = f"{LOCAL_DOMAIN}::{INTEGER_ATTENTION_OP}"
TRANSPOSED_VALUES_OP = "TransposedValues"
TRANSPOSED_VALUES_PLUGIN = f"{LOCAL_DOMAIN}::{TRANSPOSED_VALUES_OP}"

# Our kernels as nodes. An operator is named after the type of its outputs, or of each of them.
KERNEL_DOMAIN = "longlive.cuda"
KERNEL_SPEC = "spec"
KERNEL_KEY = "kernel"
KERNEL_SERVES = "serves"
"""The one output of the graph that needs such a node: a run that does not want it leaves it out."""
KERNEL_OPERATORS = {
    "float16": "KernelFloat16",
    "bfloat16": "KernelBFloat16",
    "float32": "KernelFloat",
    "uint8": "KernelUInt8",
    "float8_e4m3": "KernelFloat8E4M3",
    "int8": "KernelInt8",
    "float32, float8_e4m3": "KernelFloatAndFloat8E4M3",
    "float16, float8_e4m3": "KernelFloat16AndFloat8E4M3",
    "bfloat16, float8_e4m3": "KernelBFloat16AndFloat8E4M3",
    "float16, float8_e4m3, float8_e4m3": "KernelFloat16AndTwoFloat8E4M3",
    "float16, int8, int8": "KernelFloat16AndTwoInt8",
    "int8, int8, float8_e4m3, float32": "KernelTwoInt8Float8E4M3AndFloat",
    "int8, int8, float8_e4m3, float32, float32": "KernelTwoInt8Float8E4M3AndTwoFloat",
    "int8, int8, float8_e4m3, float32, float16": "KernelTwoInt8Float8E4M3FloatAndFloat16",
    "int8, int8, float8_e4m3, float32, bfloat16": "KernelTwoInt8Float8E4M3FloatAndBFloat16",
}

# Scales of a quantized layer, behind its name; of the cache; of attention.
WEIGHT_SCALE = "weight_scale"
INPUT_SCALE = "input_scale"
SMOOTHING_SCALE = "pre_quant_scale"
SOFTMAX_SCALE = "attention_format.softmax"
HADAMARD_SIGNS = "attention_format.signs"
"""What attention in int8 is known by."""


def cache_scale(part: str, layer: int) -> str:
    return f"cache_format.scales.{part}{layer}"


def attention_scale(part: str, layer: int) -> str:
    return f"attention_format.by_layer.{part}{layer}"


# What a graph says of itself.
COMPUTE_TYPE_KEY = "longlive.compute_type"
COMPUTE_VALUES_KEY = "longlive.compute_values"
TRANSPOSED_KEY = "longlive.transposed"
"""Weights that are stored [in, out], by their names in the checkpoint."""
LENGTHS_PREFIX = "longlive.key_value_lengths."
"""Before an attention's name: an output for TensorRT, with the number of valid keys."""

# Kinds of engines, as manifests name them, and how the files of engines end.
ONNXRUNTIME = "onnxruntime"
TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt-rtx"
CPU = "cpu"
"""What engines are built for that need no GPU."""
ONNX_SUFFIX = ".onnx"
PLAN_SUFFIX = ".engine"
