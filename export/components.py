"""What is exported: three components, the graphs of each, and where their weights come from."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from longlive_trt import contract
from longlive_trt.configs import DecoderConfig, ModelConfig, TaehvConfig, VaeConfig
from longlive_trt.configs.schema import TAEHV
from longlive_trt.errors import UsageError
from longlive_trt.export.checkpoints.opening import (
    Weights,
    encoder_width,
    open_taehv,
    open_text_encoder,
    open_transformer,
    open_vae,
    open_vae_encoder,
    random_weights,
)
from longlive_trt.export.graphs import (
    EncodeFirstGraph,
    EncodeNextGraph,
    PromptGraph,
    StepGraph,
    TextGraph,
    VaeFirstGraph,
    VaeNextGraph,
    graph_tables,
)
from longlive_trt.export.models.decoders import decoder_of
from longlive_trt.export.models.text_encoder import TextEncoder
from longlive_trt.export.models.transformer import Transformer
from longlive_trt.export.models.vae_encoder import VaeEncoder
from longlive_trt.export.tiles import tile_specs
from longlive_trt.export.tracing import GraphInput, GraphSpec, Size
from longlive_trt.reading.ranges import Range

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]
SEEDS = Range(0, 2**63 - 1)
"""Of weights that are made up."""


@dataclass(frozen=True)
class Sources:
    """Where weights come from: checkpoints, or a seed for random ones."""

    transformer: Path | None = None
    lora: Path | None = None
    lora_alpha: float | None = None
    use_ema: bool = False
    vae: Path | None = None
    encoder: bool = True
    """The VAE's encoder too, where there are weights for it: it is for videos that begin with a
    clip."""
    light_vae: Path | None = None
    text_encoder: Path | None = None
    random_seed: int | None = None

    def __post_init__(self) -> None:
        SEEDS.require("--random-weights", self.random_seed)
        given = (self.transformer, self.lora, self.vae, self.light_vae, self.text_encoder)
        if self.random_seed is not None and any(given):
            raise UsageError("--random-weights makes all weights; give it without checkpoints")
        if self.random_seed is None and not any(given):
            raise UsageError(
                "nothing to export: give --transformer, --vae, --light-vae or --text-encoder, "
                "or --random-weights SEED"
            )
        if self.lora and not self.transformer:
            raise UsageError("--lora adapts the transformer: give --transformer too")


@dataclass(frozen=True)
class Component:
    name: str
    weights: Weights
    graphs: tuple[GraphSpec, ...]


def components(config: ModelConfig, sources: Sources) -> list[Component]:
    """The components that there are weights for, opened and checked."""
    return [
        *_transformer(config, sources),
        *_decoder(config, sources, contract.VAE),
        *_decoder(config, sources, contract.LIGHT_VAE),
        *_vae_encoder(config, sources),
        *_text_encoder(config, sources),
    ]


def expected_shapes(make: Callable[[], nn.Module]) -> Shapes:
    with FakeTensorMode():
        return {name: tuple(value.shape) for name, value in make().state_dict().items()}


def _transformer(config: ModelConfig, sources: Sources) -> Iterator[Component]:
    def open_with_adapter(path: Path, shapes: Shapes) -> Weights:
        return open_transformer(
            path,
            shapes,
            lora=sources.lora,
            lora_alpha=sources.lora_alpha,
            use_ema=sources.use_ema,
        )

    weights = _weights(
        sources, sources.transformer, open_with_adapter, lambda: Transformer(config.transformer)
    )
    if weights is not None:
        yield Component(contract.TRANSFORMER, weights, (step_spec(config), prompt_spec(config)))


def _decoder(config: ModelConfig, sources: Sources, component: str) -> Iterator[Component]:
    path = sources.light_vae if component == contract.LIGHT_VAE else sources.vae
    vae = config.decoder(component)
    if vae is None:
        _require_no_path(component, path)
        return

    open_kind = open_taehv if vae.kind == TAEHV else open_vae
    weights = _weights(sources, path, open_kind, lambda: decoder_of(vae))
    if weights is not None:
        specs = (*vae_specs(config, component), *tile_specs(config, component))
        yield Component(component, weights, specs)


def _vae_encoder(config: ModelConfig, sources: Sources) -> Iterator[Component]:
    vae, path = config.vae, sources.vae
    if not isinstance(vae, VaeConfig) or not sources.encoder:
        return
    if path is not None and not _has_encoder(path, vae):
        return
    weights = _weights(sources, path, open_vae_encoder, lambda: VaeEncoder(vae))
    if weights is not None:
        yield Component(contract.VAE_ENCODER, weights, encoder_specs(config))


def _has_encoder(path: Path, vae: VaeConfig) -> bool:
    """A decoder that was made smaller may share its file with an encoder of the old size."""
    width = encoder_width(path)
    if width not in (None, vae.dim):
        logger.warning(
            "%s: its encoder begins %s channels wide, and the configuration says %s; it is left "
            "out, so that no video can begin with a clip",
            path,
            width,
            vae.dim,
        )
    return width == vae.dim


def _text_encoder(config: ModelConfig, sources: Sources) -> Iterator[Component]:
    encoder = config.text_encoder
    if encoder is None:
        _require_no_path("text_encoder", sources.text_encoder)
        return
    path = sources.text_encoder
    weights = _weights(sources, path, open_text_encoder, lambda: TextEncoder(encoder))
    if weights is not None:
        yield Component(contract.TEXT_ENCODER, weights, (text_spec(config),))


def _weights(
    sources: Sources,
    path: Path | None,
    open_weights: Callable[[Path, Shapes], Weights],
    make: Callable[[], nn.Module],
) -> Weights | None:
    if sources.random_seed is not None:
        return random_weights(expected_shapes(make), sources.random_seed)
    return None if path is None else open_weights(path, expected_shapes(make))


def _require_no_path(section: str, path: Path | None) -> None:
    if path is not None:
        option = "--" + section.replace("_", "-")
        raise UsageError(
            f"{option} {path}: the configuration has no section {section}; "
            f"add it, or leave the option out"
        )


def step_spec(config: ModelConfig) -> GraphSpec:
    transformer, layers = config.transformer, range(config.transformer.layers)
    kept = (contract.BATCH, (config.tokens_per_frame, contract.CACHE_FRAMES))
    fresh = (contract.BATCH, transformer.text_len)
    per_head = (transformer.heads, transformer.head_dim)
    latents: tuple[Size, ...] = (contract.BATCH, contract.STEP_FRAMES, *config.latent_shape)

    def per_layer(name: str, shape: tuple[Size, ...]) -> list[GraphInput]:
        return [GraphInput(contract.numbered(name, layer), (*shape, *per_head)) for layer in layers]

    return GraphSpec(
        name=contract.STEP,
        component=contract.TRANSFORMER,
        module=partial(StepGraph, config),
        inputs=[
            GraphInput(contract.LATENTS, latents),
            GraphInput(contract.NOISE, latents),
            *(GraphInput(name, (1,), torch.float32) for name in contract.LEVEL_INPUTS),
            GraphInput(contract.FRAME_INDEX, (contract.STEP_FRAMES,), torch.int64),
            GraphInput(contract.CACHE_INDEX, (contract.CACHE_FRAMES,), torch.int64),
            GraphInput(contract.SINK_FRAMES, (1,), torch.int64),
            GraphInput(contract.WINDOW_FRAMES, (1,), torch.int64),
            per_layer(contract.K_CACHE, kept),
            per_layer(contract.V_CACHE, kept),
            per_layer(contract.CONTEXT_K, fresh),
            per_layer(contract.CONTEXT_V, fresh),
        ],
        outputs=[
            contract.LATENTS_NEXT,
            *(contract.numbered(contract.K_NEW, layer) for layer in layers),
            *(contract.numbered(contract.V_NEW, layer) for layer in layers),
        ],
        # Sizes that no fixed dimension has and no other equals, so that none is mistaken.
        examples={contract.BATCH: 2, contract.STEP_FRAMES: 3, contract.CACHE_FRAMES: 5},
        tables=graph_tables(config),
        weight_prefix=contract.weight_prefix(contract.TRANSFORMER),
        layers=transformer.layers,
    )


def prompt_spec(config: ModelConfig) -> GraphSpec:
    transformer, layers = config.transformer, range(config.transformer.layers)
    states = (contract.BATCH, transformer.text_len, transformer.text_dim)
    return GraphSpec(
        name=contract.PROMPT,
        component=contract.TRANSFORMER,
        module=partial(PromptGraph, config),
        inputs=[GraphInput(contract.TEXT_STATES, states)],
        outputs=[
            contract.numbered(name, layer)
            for name in (contract.CONTEXT_K, contract.CONTEXT_V)
            for layer in layers
        ],
        examples={contract.BATCH: 2},
        weight_prefix=contract.weight_prefix(contract.TRANSFORMER),
        layers=transformer.layers,
    )


def vae_specs(config: ModelConfig, component: str = contract.VAE) -> tuple[GraphSpec, GraphSpec]:
    """Both graphs of one of the decoders."""
    vae = config.decoder(component)
    assert vae is not None
    height, width = _frame_size(config, vae)
    with FakeTensorMode():
        shapes = decoder_of(vae).cache_shapes(1, 1)
    histories = [
        GraphInput(
            contract.numbered(contract.HISTORY, index),
            (contract.BATCH, *shape[:-2], _times(shape[-2], height), _times(shape[-1], width)),
        )
        for index, shape in enumerate(shapes)
    ]
    renewed = [contract.numbered(contract.HISTORY_NEXT, index) for index in range(len(shapes))]
    outputs = [contract.FRAMES, contract.PIXELS, *renewed]
    frame = (vae.channels, height, width)
    free = contract.latent_sizes(5, 7)
    examples = {contract.BATCH: 2, **{name: free[name] for name in (height, width) if name in free}}
    name_first, name_next = contract.DECODER_GRAPHS[component]
    first = GraphSpec(
        name=name_first,
        component=component,
        module=partial(VaeFirstGraph, vae),
        inputs=[GraphInput(contract.LATENTS, (contract.BATCH, 1, *frame))],
        outputs=outputs,
        examples=examples,
        weight_prefix=contract.weight_prefix(component),
    )
    following = GraphSpec(
        name=name_next,
        component=component,
        module=partial(VaeNextGraph, vae),
        inputs=[
            GraphInput(contract.LATENTS, (contract.BATCH, contract.LATENT_FRAMES, *frame)),
            histories,
        ],
        outputs=outputs,
        examples={**examples, contract.LATENT_FRAMES: 3},
        weight_prefix=contract.weight_prefix(component),
    )
    return first, following


def encoder_specs(config: ModelConfig) -> tuple[GraphSpec, GraphSpec]:
    vae, size = config.vae, config.video_size
    assert isinstance(vae, VaeConfig) and size is not None
    with FakeTensorMode():
        shapes = VaeEncoder(vae).cache_shapes(*size)
    histories = [
        GraphInput(contract.numbered(contract.HISTORY, index), (contract.BATCH, *shape))
        for index, shape in enumerate(shapes)
    ]
    renewed = [contract.numbered(contract.HISTORY_NEXT, index) for index in range(len(shapes))]

    def pixels(count: int) -> GraphInput:
        return GraphInput(contract.PIXELS, (contract.BATCH, count, *size, 3), torch.uint8)

    def spec(
        name: str, module: Callable[[], nn.Module], *inputs: GraphInput | list[GraphInput]
    ) -> GraphSpec:
        return GraphSpec(
            name=name,
            component=contract.VAE_ENCODER,
            module=module,
            inputs=inputs,
            outputs=[contract.LATENTS, *renewed],
            examples={contract.BATCH: 2},
            weight_prefix=contract.weight_prefix(contract.VAE_ENCODER),
        )

    following = pixels(vae.temporal_factor)
    return (
        spec(contract.ENCODE_FIRST, partial(EncodeFirstGraph, vae), pixels(1)),
        spec(contract.ENCODE_NEXT, partial(EncodeNextGraph, vae), following, histories),
    )


def _frame_size(config: ModelConfig, vae: DecoderConfig) -> tuple[Size, Size]:
    """Height and width of latents: of any size, where no attention looks at a whole frame."""
    if isinstance(vae, TaehvConfig):
        return contract.LATENT_HEIGHT, contract.LATENT_WIDTH
    return config.latent.height, config.latent.width


def _times(scale: int, size: Size) -> Size:
    if isinstance(size, int):
        return scale * size
    assert isinstance(size, str)
    return size if scale == 1 else (scale, size)


def text_spec(config: ModelConfig) -> GraphSpec:
    text_encoder, text_len = config.text_encoder, config.transformer.text_len
    assert text_encoder is not None
    return GraphSpec(
        name=contract.TEXT,
        component=contract.TEXT_ENCODER,
        module=partial(TextGraph, text_encoder),
        inputs=[
            GraphInput(contract.IDS, (contract.BATCH, text_len), torch.int64),
            GraphInput(contract.MASK, (contract.BATCH, text_len), torch.int64),
        ],
        outputs=[contract.TEXT_STATES],
        examples={contract.BATCH: 2},
        weight_prefix=contract.weight_prefix(contract.TEXT_ENCODER),
        layers=text_encoder.layers,
    )
