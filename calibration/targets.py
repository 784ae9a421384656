"""Which layers are quantized: the linear maps inside the blocks, but for those left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from longlive_trt.configs import TransformerConfig
from longlive_trt.errors import UsageError
from longlive_trt.export.models.transformer import Transformer

INCLUDED = ("blocks.*",)
# These run once a prompt and not in every pass: in docs/quality.md they cost quality, and their
# speed buys nothing.
EXCLUDED = ("*.cross_attn.k", "*.cross_attn.v")


@dataclass(frozen=True)
class Selection:
    """Patterns of layer names, such as ``blocks.0.*`` or ``*.cross_attn.?``."""

    include: tuple[str, ...] = INCLUDED
    exclude: tuple[str, ...] = EXCLUDED


def linear_layers(config: TransformerConfig) -> tuple[str, ...]:
    with FakeTensorMode():
        modules = Transformer(config).named_modules()
        return tuple(name for name, module in modules if isinstance(module, nn.Linear))


def select_layers(config: TransformerConfig, selection: Selection) -> tuple[str, ...]:
    layers = linear_layers(config)
    for pattern in (*selection.include, *selection.exclude):
        if not _matching(layers, [pattern]):
            raise UsageError(
                f"no layer is called {pattern}; layers are named like {layers[0]} or "
                f"{next(name for name in layers if name.startswith('blocks.'))}"
            )
    left_out = set(_matching(layers, selection.exclude))
    chosen = tuple(n for n in _matching(layers, selection.include) if n not in left_out)
    if not chosen:
        raise UsageError("every layer is left out, so there is nothing to quantize; exclude fewer")
    return chosen


def _matching(layers: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [n for n in layers if any(fnmatchcase(n, pattern) for pattern in patterns)]
