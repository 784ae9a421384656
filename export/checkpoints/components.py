"""The three checkpoints a model is made of, and how each is recognized by its tensor names."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from longlive_trt.adapters import strip_wrappers as strip_wrappers
from longlive_trt.export.checkpoints.diffusers_keys import (
    text_encoder_key,
    transformer_key,
    vae_key,
)


@dataclass(frozen=True)
class Component:
    title: str
    option: str
    #: What a name looks like in this project's layout or in the Diffusers one.
    signature: re.Pattern[str]
    diffusers_key: Callable[[str], str | None]
    #: Names that full checkpoints carry and that text-to-video inference does not need.
    unneeded: re.Pattern[str]
    #: File names to look for in a folder, the best first.
    file_patterns: tuple[str, ...]
    #: What a size is called, the tensor that shows it, and the axis.
    sizes: tuple[tuple[str, str, int], ...]


TRANSFORMER = Component(
    title="transformer",
    option="--transformer",
    signature=re.compile(r"^blocks\.\d+\.(self_attn\.q|attn1\.to_q)\."),
    diffusers_key=transformer_key,
    unneeded=re.compile(r"^freqs$"),
    file_patterns=(
        "longlive_base.*",
        "diffusion_pytorch_model*.index.json",
        "diffusion_pytorch_model*.safetensors",
    ),
    sizes=(
        ("dim", "patch_embedding.weight", 0),
        ("channels", "patch_embedding.weight", 1),
        ("ffn_dim", "blocks.0.ffn.0.weight", 0),
        ("freq_dim", "time_embedding.0.weight", 1),
        ("text_dim", "text_embedding.0.weight", 1),
    ),
)
VAE = Component(
    title="VAE",
    option="--vae",
    signature=re.compile(r"^decoder\.(upsamples|up_blocks|middle|mid_block)\."),
    diffusers_key=vae_key,
    unneeded=re.compile(r"^(encoder|conv1|quant_conv)\."),
    file_patterns=(
        "Wan2.1_VAE.*",
        "diffusion_pytorch_model*.index.json",
        "diffusion_pytorch_model*.safetensors",
    ),
    sizes=(("dim", "decoder.head.0.gamma", 0), ("channels", "conv2.weight", 0)),
)
VAE_ENCODER = Component(
    title="VAE",
    option="--vae",
    signature=re.compile(r"^encoder\.(downsamples|down_blocks|middle|mid_block)\."),
    diffusers_key=vae_key,
    unneeded=re.compile(r"^(decoder|conv2|post_quant_conv)\."),
    file_patterns=VAE.file_patterns,
    sizes=(("dim", "encoder.conv1.weight", 0), ("moments", "conv1.weight", 0)),
)
TINY_VAE = Component(
    title="TAEHV decoder",
    option="--vae",
    signature=re.compile(r"^decoder\.\d+\."),
    diffusers_key=lambda _name: None,
    unneeded=re.compile(r"^encoder\."),
    file_patterns=("taew2_1.*", "lighttaew2_1.*"),
    sizes=(
        ("widths[0]", "decoder.1.weight", 0),
        ("channels", "decoder.1.weight", 1),
        ("widths[1]", "decoder.8.weight", 0),
        ("widths[2]", "decoder.14.weight", 0),
        ("widths[3]", "decoder.20.weight", 0),
    ),
)
TEXT_ENCODER = Component(
    title="text encoder",
    option="--text-encoder",
    signature=re.compile(r"^(blocks\.\d+\.attn\.q|(encoder\.)?block\.\d+\.layer\.0\.Self)"),
    diffusers_key=text_encoder_key,
    unneeded=re.compile(r"^(decoder|lm_head)\."),
    file_patterns=(
        "models_t5_umt5-xxl-enc*",
        "model*.index.json",
        "model*.safetensors",
    ),
    sizes=(
        ("vocab", "token_embedding.weight", 0),
        ("dim", "token_embedding.weight", 1),
        ("attention_dim", "blocks.0.attn.q.weight", 0),
        ("ffn_dim", "blocks.0.ffn.fc1.weight", 0),
    ),
)
_LORA = re.compile(r"\.lora_(A|B|down|up|magnitude_vector)\b")


def recognize(names: Iterable[str]) -> str | None:
    """What tensors of these names are, and the option they belong to."""
    stripped = [strip_wrappers(name) for name in names]
    if any(_LORA.search(name) for name in stripped):
        return "a LoRA adapter: pass it as --lora"
    for component in (TRANSFORMER, VAE, TINY_VAE, TEXT_ENCODER):
        if any(component.signature.match(name) for name in stripped):
            return f"a {component.title}: pass it as {component.option}"
    return None


def describe_sizes(component: Component, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    sizes = {
        title: shapes[name][axis]
        for title, name, axis in component.sizes
        if len(shapes.get(name, ())) > axis
    }
    layers = {int(found[1]) for name in shapes if (found := re.match(r"blocks\.(\d+)\.", name))}
    return {**sizes, "layers": len(layers)} if layers else sizes
