"""Names of the Diffusers and Transformers layouts of the same weights, in terms of our own.

Every function answers None for a name that has no counterpart here.
"""

import re
from collections.abc import Mapping

_PARAMETERS = r"(weight|bias)"

_TRANSFORMER_NAMES = {
    rf"patch_embedding\.{_PARAMETERS}": r"patch_embedding.\1",
    rf"condition_embedder\.text_embedder\.linear_1\.{_PARAMETERS}": r"text_embedding.0.\1",
    rf"condition_embedder\.text_embedder\.linear_2\.{_PARAMETERS}": r"text_embedding.2.\1",
    rf"condition_embedder\.time_embedder\.linear_1\.{_PARAMETERS}": r"time_embedding.0.\1",
    rf"condition_embedder\.time_embedder\.linear_2\.{_PARAMETERS}": r"time_embedding.2.\1",
    rf"condition_embedder\.time_proj\.{_PARAMETERS}": r"time_projection.1.\1",
    r"scale_shift_table": "head.modulation",
    rf"proj_out\.{_PARAMETERS}": r"head.head.\1",
    r"blocks\.(\d+)\.scale_shift_table": r"blocks.\1.modulation",
    rf"blocks\.(\d+)\.attn1\.to_([qkv])\.{_PARAMETERS}": r"blocks.\1.self_attn.\2.\3",
    rf"blocks\.(\d+)\.attn2\.to_([qkv])\.{_PARAMETERS}": r"blocks.\1.cross_attn.\2.\3",
    rf"blocks\.(\d+)\.attn1\.to_out\.0\.{_PARAMETERS}": r"blocks.\1.self_attn.o.\2",
    rf"blocks\.(\d+)\.attn2\.to_out\.0\.{_PARAMETERS}": r"blocks.\1.cross_attn.o.\2",
    r"blocks\.(\d+)\.attn1\.norm_([qk])\.weight": r"blocks.\1.self_attn.norm_\2.weight",
    r"blocks\.(\d+)\.attn2\.norm_([qk])\.weight": r"blocks.\1.cross_attn.norm_\2.weight",
    rf"blocks\.(\d+)\.norm2\.{_PARAMETERS}": r"blocks.\1.norm3.\2",
    rf"blocks\.(\d+)\.ffn\.net\.0\.proj\.{_PARAMETERS}": r"blocks.\1.ffn.0.\2",
    rf"blocks\.(\d+)\.ffn\.net\.2\.{_PARAMETERS}": r"blocks.\1.ffn.2.\2",
}

_VAE_NAMES = {
    rf"quant_conv\.{_PARAMETERS}": r"conv1.\1",
    rf"encoder\.conv_in\.{_PARAMETERS}": r"encoder.conv1.\1",
    r"encoder\.norm_out\.gamma": "encoder.head.0.gamma",
    rf"encoder\.conv_out\.{_PARAMETERS}": r"encoder.head.2.\1",
    r"encoder\.mid_block\.attentions\.0\.(.+)": r"encoder.middle.1.\1",
    r"encoder\.down_blocks\.(\d+)\.((?:resample|time_conv)\..+)": r"encoder.downsamples.\1.\2",
    rf"post_quant_conv\.{_PARAMETERS}": r"conv2.\1",
    rf"decoder\.conv_in\.{_PARAMETERS}": r"decoder.conv1.\1",
    r"decoder\.norm_out\.gamma": "decoder.head.0.gamma",
    rf"decoder\.conv_out\.{_PARAMETERS}": r"decoder.head.2.\1",
    r"decoder\.mid_block\.attentions\.0\.(.+)": r"decoder.middle.1.\1",
}

_RESNET_NAMES = {
    r"norm1\.gamma": "residual.0.gamma",
    rf"conv1\.{_PARAMETERS}": r"residual.2.\1",
    r"norm2\.gamma": "residual.3.gamma",
    rf"conv2\.{_PARAMETERS}": r"residual.6.\1",
    rf"conv_shortcut\.{_PARAMETERS}": r"shortcut.\1",
}

_TEXT_ENCODER_NAMES = {
    # The embedding has two names for one tensor; files hold either or both.
    r"shared\.weight": "token_embedding.weight",
    r"encoder\.embed_tokens\.weight": "token_embedding.weight",
    r"encoder\.final_layer_norm\.weight": "norm.weight",
}

_TEXT_BLOCK_NAMES = {
    r"0\.layer_norm\.weight": "norm1.weight",
    r"0\.SelfAttention\.([qkvo])\.weight": r"attn.\1.weight",
    r"0\.SelfAttention\.relative_attention_bias\.weight": "pos_embedding.embedding.weight",
    r"1\.layer_norm\.weight": "norm2.weight",
    r"1\.DenseReluDense\.wi_0\.weight": "ffn.gate.0.weight",
    r"1\.DenseReluDense\.wi_1\.weight": "ffn.fc1.weight",
    r"1\.DenseReluDense\.wo\.weight": "ffn.fc2.weight",
}


def transformer_key(diffusers_key: str) -> str | None:
    """For the state dict of Diffusers' ``WanTransformer3DModel``."""
    return _renamed(diffusers_key, _TRANSFORMER_NAMES)


def vae_key(diffusers_key: str, res_blocks: int = 2) -> str | None:
    """For the state dict of Diffusers' ``AutoencoderKLWan``."""
    if match := re.fullmatch(r"(..coder)\.mid_block\.resnets\.([01])\.(.+)", diffusers_key):
        return _prefixed(f"{match[1]}.middle.{2 * int(match[2])}", match[3], _RESNET_NAMES)
    if match := re.fullmatch(r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", diffusers_key):
        stage = _first_stage(int(match[1]), res_blocks) + int(match[2])
        return _prefixed(f"decoder.upsamples.{stage}", match[3], _RESNET_NAMES)
    if match := re.fullmatch(r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.(.+)", diffusers_key):
        stage = _first_stage(int(match[1]) + 1, res_blocks) - 1
        return f"decoder.upsamples.{stage}.{match[2]}"
    if renamed := _renamed(diffusers_key, _VAE_NAMES):
        return renamed
    if match := re.fullmatch(r"encoder\.down_blocks\.(\d+)\.(.+)", diffusers_key):
        return _prefixed(f"encoder.downsamples.{match[1]}", match[2], _RESNET_NAMES)
    return None


def text_encoder_key(transformers_key: str) -> str | None:
    """For the state dict of Transformers' ``UMT5EncoderModel``."""
    if match := re.fullmatch(r"encoder\.block\.(\d+)\.layer\.(.+)", transformers_key):
        return _prefixed(f"blocks.{match[1]}", match[2], _TEXT_BLOCK_NAMES)
    return _renamed(transformers_key, _TEXT_ENCODER_NAMES)


def _first_stage(level: int, res_blocks: int) -> int:
    """Our stages are numbered through; every level has res_blocks + 1 blocks and an upsampler."""
    return level * (res_blocks + 2)


def _prefixed(prefix: str, name: str, names: Mapping[str, str]) -> str | None:
    renamed = _renamed(name, names)
    return None if renamed is None else f"{prefix}.{renamed}"


def _renamed(key: str, names: Mapping[str, str]) -> str | None:
    for pattern, replacement in names.items():
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    return None
