"""How much memory a bundle takes: what is certain before anything is loaded."""

from collections.abc import Iterable, Mapping
from math import prod

from longlive_trt import contract
from longlive_trt.configs import ModelConfig
from longlive_trt.configs.schema import GLOBAL_ATTENTION_TOKENS
from longlive_trt.contract import (
    COMPONENT_OF,
    DECODER_GRAPHS,
    ENCODER_GRAPHS,
    STEP,
    evaluate_size,
    weights_file,
)
from longlive_trt.dtypes import recorded_type
from longlive_trt.engines.bundles.bundle import Manifest
from longlive_trt.engines.matrices import MATRICES_NAME
from longlive_trt.engines.registry import KINDS
from longlive_trt.exports import TensorInfo


def attended_frames(config: ModelConfig) -> int:
    """Of the longest pass: without a window, as many as global attention ever sees."""
    rollout = config.rollout
    if not rollout.is_global:
        return rollout.window_frames
    smallest = rollout.sink_frames + rollout.frames_per_block
    return max(smallest, GLOBAL_ATTENTION_TOKENS // config.tokens_per_frame)


def least_bytes(manifest: Manifest) -> int:
    """The engines of all graphs, and their inputs and outputs for one block of one video.

    A decoder's histories count once: what comes next may take their place.
    The VAE's encoder is gone again before a video needs its memory.
    """
    rollout = manifest.config.rollout
    sizes = {
        contract.BATCH: 1,
        contract.STEP_FRAMES: rollout.frames_per_block,
        contract.CACHE_FRAMES: attended_frames(manifest.config) - rollout.frames_per_block,
        contract.LATENT_FRAMES: 1,
        **contract.latent_sizes(*manifest.config.latent.size),
    }
    # A decoder in parts runs in the place of the whole one.
    left_out = {*ENCODER_GRAPHS, *contract.PART_GRAPHS}
    graphs = {name: info for name, info in manifest.graphs.items() if name not in left_out}
    tensors = sum(
        tensors_bytes((*graph.inputs, *filter(_is_own, graph.outputs)), sizes)
        for graph in graphs.values()
    )
    return engines_bytes(manifest, graphs) + tensors


def _is_own(output: TensorInfo) -> bool:
    return contract.stem_of(output.name) != contract.HISTORY_NEXT


def engines_bytes(manifest: Manifest, graphs: Iterable[str]) -> int:
    """Files that are shared by graphs of one component count once for each graph's session."""
    kind, total = KINDS.get(manifest.engine.kind), 0
    for graph in graphs:
        names = {weights_file(graph), f"{graph}{kind.suffix if kind else ''}"}
        component = COMPONENT_OF.get(graph)
        names |= {weights_file(component)} if component in DECODER_GRAPHS else set()
        names |= {MATRICES_NAME} if graph == STEP else set()
        total += sum(manifest.files[name].bytes for name in names if name in manifest.files)
    return total


def tensors_bytes(tensors: Iterable[TensorInfo], sizes: Mapping[str, int]) -> int:
    return sum(
        prod(evaluate_size(size, sizes) for size in tensor.shape)
        * recorded_type(tensor.dtype).item_bytes
        for tensor in tensors
    )
