"""Which decoders a bundle holds, and which of them makes the pictures."""

from dataclasses import dataclass
from typing import Literal, get_args

from longlive_trt.configs import DecoderConfig, TaehvConfig, VaeConfig
from longlive_trt.configs.tiles import TileGrid
from longlive_trt.contract import BASE_GRAPHS, DECODER_GRAPHS, LIGHT_VAE, TILE_GRAPHS, VAE
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.errors import UsageError

DecoderName = Literal["full", "light"]
_LARGEST_SHARE = 0.5
"""Of a frame, in a tile: what larger ones keep beside the histories is more than they save."""
DECODERS: tuple[DecoderName, ...] = get_args(DecoderName)


@dataclass(frozen=True)
class BundledDecoder:
    name: DecoderName
    component: str
    config: DecoderConfig

    @property
    def graphs(self) -> tuple[str, str]:
        """That of a video's first latent frame, and that of all others."""
        return DECODER_GRAPHS[self.component]

    def has_tiles(self, bundle: Bundle) -> bool:
        """Whether frames are large enough that they save memory, and there are graphs for them."""
        graphs = (*BASE_GRAPHS[self.component], *TILE_GRAPHS[self.component])
        if not isinstance(self.config, VaeConfig) or not all(map(bundle.has, graphs)):
            return False
        return TileGrid.of(self.config, bundle.config.latent.size).share <= _LARGEST_SHARE


def decoders_of(bundle: Bundle) -> dict[str, BundledDecoder]:
    """Those that are inside, the first of which is used where none is asked for."""
    found: dict[str, BundledDecoder] = {}
    for component in (VAE, LIGHT_VAE):
        config = bundle.config.decoder(component)
        if config is not None and all(map(bundle.has, DECODER_GRAPHS[component])):
            name = _name_of(component, config)
            found.setdefault(name, BundledDecoder(name, component, config))
    return found


def decoder_named(bundle: Bundle, name: str | None, option: str = "--decoder") -> BundledDecoder:
    """The one that is asked for, or the first."""
    found = decoders_of(bundle)
    if name is None and found:
        return next(iter(found.values()))
    if name in found:
        return found[name]
    if not found:
        bundle.require(DECODER_GRAPHS[VAE][0], "making a video")
    raise UsageError(
        f"{option} {name}: {bundle.folder} holds the {' and the '.join(found)} decoder only; "
        f"{_ADDED[name or 'full']}, and build again"
    )


_ADDED = {
    "full": "export with --vae Wan2.1_VAE.pth",
    "light": "export with --light-vae taew2_1.safetensors",
}


def _name_of(component: str, config: DecoderConfig) -> DecoderName:
    """A tiny decoder is a light one wherever it is."""
    return "light" if component == LIGHT_VAE or isinstance(config, TaehvConfig) else "full"
