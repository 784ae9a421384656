"""Wan's decoder as two graphs, of which the second does a tile of a frame at a time."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from longlive_trt import contract
from longlive_trt.configs import ModelConfig, VaeConfig
from longlive_trt.export.graphs import VaeBaseGraph, VaeTileGraph
from longlive_trt.export.models.vae import VaeDecoder
from longlive_trt.export.tracing import GraphInput, GraphSpec, Size

_EXAMPLES = {contract.BATCH: 2, **contract.tile_sizes(5, 7)}


def tile_specs(config: ModelConfig, component: str) -> tuple[GraphSpec, ...]:
    """All four graphs, where the configuration asks for tiles."""
    vae = config.decoder(component)
    if not isinstance(vae, VaeConfig) or not vae.tiles:
        return ()
    with FakeTensorMode():
        decoder = VaeDecoder(vae)
        count, width = decoder.base_caches(), decoder.feature_channels
        whole = decoder.cache_shapes(*config.latent.size)[:count]
        single = decoder.cache_shapes(1, 1)[count:]
    # Latents of one place are features of so many on each side.
    before = vae.spatial_factor // 2**vae.tiled_doublings
    parts = [
        (channels, frames, *_tile(height // before, width // before))
        for channels, frames, height, width in single
    ]
    frame = (vae.channels, *config.latent.size)

    def latents(frames: Size) -> GraphInput:
        return GraphInput(contract.LATENTS, (contract.BATCH, frames, *frame))

    def features(frames: Size) -> GraphInput:
        return GraphInput(contract.FEATURES, (contract.BATCH, width, frames, *_tile(1, 1)))

    return (
        *_pair(
            component,
            contract.BASE_GRAPHS[component],
            partial(VaeBaseGraph, vae),
            (latents(1), latents(contract.LATENT_FRAMES)),
            [contract.FEATURES],
            whole,
            ({contract.BATCH: 2}, {contract.BATCH: 2, contract.LATENT_FRAMES: 3}),
        ),
        *_pair(
            component,
            contract.TILE_GRAPHS[component],
            partial(VaeTileGraph, vae),
            (features(1), features(contract.FEATURE_FRAMES)),
            [contract.FRAMES, contract.PIXELS],
            parts,
            (_EXAMPLES, {**_EXAMPLES, contract.FEATURE_FRAMES: 3}),
        ),
    )


def _tile(*scales: int) -> tuple[Size, Size]:
    height, width = (
        name if scale == 1 else (scale, name)
        for scale, name in zip(scales, contract.tile_sizes(0, 0), strict=True)
    )
    return height, width


def _pair(
    component: str,
    names: tuple[str, str],
    module: Callable[[], nn.Module],
    given: tuple[GraphInput, GraphInput],
    outputs: Sequence[str],
    histories: Sequence[tuple[Size, ...]],
    examples: tuple[dict[str, int], dict[str, int]],
) -> Iterator[GraphSpec]:
    """The graph of a video's first latent frame, and that of all others."""
    past = [
        GraphInput(contract.numbered(contract.HISTORY, index), (contract.BATCH, *shape))
        for index, shape in enumerate(histories)
    ]
    renewed = [contract.numbered(contract.HISTORY_NEXT, index) for index in range(len(past))]
    for name, first, inputs, sizes in zip(names, given, ((), (past,)), examples, strict=True):
        yield GraphSpec(
            name=name,
            component=component,
            module=module,
            inputs=[first, *inputs],
            outputs=[*outputs, *renewed],
            examples=sizes,
            weight_prefix=contract.weight_prefix(component),
        )
