"""What the shipped configurations are of, how large they are, and what has been run of them."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from longlive_trt.configs.loader import shipped_models
from longlive_trt.configs.schema import (
    GLOBAL_ATTENTION_TOKENS,
    ModelConfig,
    TransformerConfig,
)
from longlive_trt.errors import ConfigError
from longlive_trt.reading.documents import YAML_BYTES, parse_yaml
from longlive_trt.reading.failures import refusing
from longlive_trt.reading.files import read_text
from longlive_trt.reading.shapes import field

_FILE = Path(__file__).with_name("family.yaml")
_HALF_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class Member:
    title: str
    source: str
    files: str
    """How ``export`` is given them."""
    license: str
    """Of the weights."""
    run: str
    """What of it has been run, and where."""


@dataclass(frozen=True)
class Sizes:
    """In 16 bits, for one video."""

    weights: int
    """Of the transformer: a count."""
    weights_bytes: int
    cache_bytes: int
    """Keys and values of the whole window."""
    prompt_bytes: int


def family() -> dict[str, Member]:
    """Of every shipped configuration, by its name."""
    with refusing(ConfigError, _FILE):
        members: dict[str, Member] = field(
            dict[str, Member], parse_yaml(read_text(_FILE, YAML_BYTES)), "members"
        )
    return {name: members[name] for name in sorted(shipped_models(), key=list(members).index)}


def sizes(config: ModelConfig) -> Sizes:
    transformer, rollout = config.transformer, config.rollout
    window = rollout.window_frames
    if rollout.is_global:
        window = GLOBAL_ATTENTION_TOKENS // config.tokens_per_frame
    count = transformer_weights(transformer)
    token_bytes = 2 * _HALF_BYTES * transformer.dim * transformer.layers
    return Sizes(
        weights=count,
        weights_bytes=_HALF_BYTES * count,
        cache_bytes=token_bytes * window * config.tokens_per_frame,
        prompt_bytes=token_bytes * transformer.text_len,
    )


def transformer_weights(config: TransformerConfig) -> int:
    d, f = config.dim, config.ffn_dim
    values = config.channels * prod(config.patch)

    def linear(inputs: int, outputs: int) -> int:
        return (inputs + 1) * outputs

    attention = 4 * linear(d, d) + 2 * d
    block = 6 * d + 2 * attention + 2 * d + linear(d, f) + linear(f, d)
    embeddings = linear(values, d) + linear(config.text_dim, d) + linear(d, d)
    time = linear(config.freq_dim, d) + linear(d, d) + linear(d, 6 * d)
    head = 2 * d + linear(d, values)
    return config.layers * block + embeddings + time + head
