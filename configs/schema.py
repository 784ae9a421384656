"""The configuration as frozen dataclasses; the defaults are LongLive 1.3B.

Each class validates itself when it is made: an impossible value raises :class:`InvalidValueError`,
which names the key and the values it may take. The loader adds the file.
"""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Literal

from longlive_trt.contract import LIGHT_VAE
from longlive_trt.errors import ConfigError
from longlive_trt.reading.failures import InvalidFieldError
from longlive_trt.reading.ranges import Range

GLOBAL_WINDOW = -1
ROPE_TABLE_FRAMES = 1024
WAN_TEMPORAL_FACTOR = 4
WAN: Literal["wan"] = "wan"
TAEHV: Literal["taehv"] = "taehv"
"""Kinds of decoders; what says none is Wan's."""
GLOBAL_ATTENTION_TOKENS = 32_760


# What is larger than any model of this kind by far: beyond it, work would begin that never ends.
LAYERS = Range(1, 256)
HEADS = Range(1, 1024)
WIDTH = Range(1, 65_536)
"""Channels of a layer, and tokens of a text."""
LATENT_SIDE = Range(1, 4096)
BLOCK_FRAMES = Range(1, 256)
VOCABULARY = Range(1, 4_000_000)
FPS = Range(0.1, 240)
MOST_TOKENS_PER_FRAME = 65_536
MOST_WEIGHTS = 10**11
_LARGEST_PATCH = 64
_LONGEST_WINDOW = 16_384
_STATISTIC = Range(-1e6, 1e6)
_DEVIATION = Range(1e-6, 1e6)


class InvalidValueError(ConfigError, InvalidFieldError):
    """A value of the configuration that cannot be."""


def _require(condition: bool, key: str, value: object, allowed: str) -> None:
    if not condition:
        raise InvalidValueError(key, value, allowed)


def _require_range(config: object, allowed: Range, *keys: str) -> None:
    for key in keys:
        value = getattr(config, key)
        if not value > 0:
            raise InvalidValueError(key, value, f"a number above 0, at most {allowed.high:g}")
        _require(value in allowed, key, value, str(allowed))


def _require_weights(count: int, key: str, config: object) -> None:
    """Each size may be sane, and all of them together not."""
    allowed = f"fewer: these sizes make {count:.0e} weights, and {MOST_WEIGHTS:.0e} are the most"
    _require(count <= MOST_WEIGHTS, key, getattr(config, key), allowed)


def _require_statistics(vae: "DecoderConfig") -> None:
    """Of the latents: a mean and a deviation for each channel."""
    for key, values in (("mean", vae.mean), ("std", vae.std)):
        counted = len(values) == vae.channels
        _require(counted, key, list(values), f"one number per channel ({vae.channels})")
    means = all(value in _STATISTIC for value in vae.mean)
    _require(means, "mean", list(vae.mean), f"numbers from {_STATISTIC}")
    deviations = all(value in _DEVIATION for value in vae.std)
    _require(deviations, "std", list(vae.std), f"numbers above 0, from {_DEVIATION}")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    dim: int = 1536
    heads: int = 12
    layers: int = 30
    ffn_dim: int = 8960
    freq_dim: int = 256
    text_len: int = 512
    text_dim: int = 4096
    channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        _require_range(self, WIDTH, "dim", "ffn_dim", "freq_dim", "text_len", "text_dim")
        _require_range(self, Range(1, 1024), "channels")
        _require_range(self, HEADS, "heads")
        _require_range(self, LAYERS, "layers")
        _require_range(self, Range(0, 1, above=True), "eps")
        _require(self.dim % self.heads == 0, "heads", self.heads, f"a divisor of dim ({self.dim})")
        _require(self.head_dim % 2 == 0, "heads", self.heads, "dim / heads must be even")
        _require(self.head_dim >= 6, "heads", self.heads, "dim / heads must be at least 6")
        _require(self.freq_dim % 2 == 0, "freq_dim", self.freq_dim, "an even number")
        _require(
            self.patch[0] == 1 and min(self.patch) > 0 and max(self.patch) <= _LARGEST_PATCH,
            "patch",
            list(self.patch),
            f"[1, height, width], each above 0 and at most {_LARGEST_PATCH}",
        )
        _require_weights(self.layers * self.dim * (8 * self.dim + 2 * self.ffn_dim), "layers", self)

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    height: int = 60
    width: int = 104

    def __post_init__(self) -> None:
        _require_range(self, LATENT_SIDE, "height", "width")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    frames_per_block: int = 3
    window_frames: int = 12
    sink_frames: int = 3
    global_sink: bool = True
    rope: Literal["absolute", "relative"] = "absolute"
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    first_steps: tuple[int, ...] | None = None
    """Of a video's first block, which all others look back at; without them, ``steps``."""
    timestep_shift: float = 5.0
    context_timestep: int = 0

    def __post_init__(self) -> None:
        _require_range(self, BLOCK_FRAMES, "frames_per_block")
        _require_range(self, Range(0, 1000, above=True), "timestep_shift")
        sinks = Range(0, ROPE_TABLE_FRAMES)
        allowed = f"0 or more, at most {ROPE_TABLE_FRAMES}"
        _require(self.sink_frames in sinks, "sink_frames", self.sink_frames, allowed)
        smallest = self.sink_frames + self.frames_per_block
        _require(
            self.window_frames == GLOBAL_WINDOW
            or smallest <= self.window_frames <= _LONGEST_WINDOW,
            "window_frames",
            self.window_frames,
            f"-1 (global attention), or at least sink_frames + frames_per_block ({smallest}) and "
            f"at most {_LONGEST_WINDOW}",
        )
        for key, steps in (("steps", self.steps), ("first_steps", self.opening_steps)):
            falling = all(a > b for a, b in pairwise(steps))
            _require(
                bool(steps) and falling and steps[-1] > 0 and steps[0] <= 1000,
                key,
                list(steps),
                "one or more falling timesteps from 1000 to 1",
            )
        _require(
            0 <= self.context_timestep < 1000, "context_timestep", self.context_timestep, "0 to 999"
        )

    @property
    def is_global(self) -> bool:
        return self.window_frames == GLOBAL_WINDOW

    @property
    def opening_steps(self) -> tuple[int, ...]:
        return self.steps if self.first_steps is None else self.first_steps

    @property
    def noises(self) -> int:
        """How many draws of noise a block takes at most: one for each of its steps."""
        return max(len(self.steps), len(self.opening_steps))


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """Wan's decoder; the light one of the same structure has ``dim`` 24."""

    kind: Literal["wan"] = WAN
    dim: int = 96
    channels: int = 16
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    temporal_upsample: tuple[bool, ...] = (True, True, False)
    temporal_taps: int = 3
    """Frames that a residual block's convolutions see: the present one and those before it."""
    tiles: bool = False
    """Whether the export has graphs of tiles too, which ``--low-memory`` decodes with."""
    mean: tuple[float, ...] = (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    )  # fmt: skip
    std: tuple[float, ...] = (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    )  # fmt: skip

    def __post_init__(self) -> None:
        _require_range(self, Range(1, 4096), "dim")
        _require_range(self, Range(1, 1024), "channels")
        _require_range(self, Range(1, 64), "res_blocks")
        _require(self.dim % 2 == 0, "dim", self.dim, "an even number")
        _require(
            0 < len(self.multipliers) <= 8 and all(m in Range(1, 64) for m in self.multipliers),
            "multipliers",
            list(self.multipliers),
            "one or more numbers above 0: 1 to 8 of them, from 1 to 64",
        )
        _require(
            len(self.temporal_upsample) == len(self.multipliers) - 1,
            "temporal_upsample",
            list(self.temporal_upsample),
            f"one true or false fewer than multipliers ({len(self.multipliers) - 1})",
        )
        _require(self.temporal_taps in (1, 3), "temporal_taps", self.temporal_taps, "1 or 3")
        can_tile = not self.tiles or bool(self.temporal_upsample)
        _require(can_tile, "tiles", self.tiles, "false for a decoder that doubles nothing")
        _require_statistics(self)

    @property
    def tiled_doublings(self) -> int:
        """Of height and width, after the part that sees whole frames: the last two."""
        return min(2, len(self.temporal_upsample))

    @property
    def whole_stages(self) -> int:
        """Residual blocks and doublings, of those after the middle, in the part before."""
        levels = len(self.temporal_upsample) - self.tiled_doublings + 1
        # The first doubling in tiles ends the last of these levels.
        return levels * (self.res_blocks + 2) - 1

    @property
    def feature_frames(self) -> int:
        """Of a latent frame after the first, where that part ends."""
        return int(2 ** sum(self.temporal_upsample[: -self.tiled_doublings]))

    @property
    def spatial_factor(self) -> int:
        return int(2 ** len(self.temporal_upsample))

    @property
    def temporal_factor(self) -> int:
        """Video frames per latent frame, after the first."""
        return int(2 ** sum(self.temporal_upsample))

    @property
    def frame_range(self) -> tuple[float, float]:
        """Black and white, as the decoder's frames have them."""
        return -1.0, 1.0


@dataclass(frozen=True, kw_only=True)
class TaehvConfig:
    """The tiny decoder of the same latents (TAEHV): pictures in 2-D, one past frame a block."""

    kind: Literal["taehv"] = TAEHV
    latents: Literal["normalized", "raw"] = "normalized"
    """What it was trained on: the transformer's latents as they are, or Wan's own scale."""
    channels: int = 16
    widths: tuple[int, int, int, int] = (256, 128, 64, 64)
    temporal_upsample: tuple[bool, bool, bool] = (False, True, True)
    """Whether frames are doubled too, at each doubling of height and width."""
    mean: tuple[float, ...] = VaeConfig.mean
    std: tuple[float, ...] = VaeConfig.std

    def __post_init__(self) -> None:
        _require_range(self, Range(1, 1024), "channels")
        widths = list(self.widths)
        fit = all(width in Range(1, 4096) for width in widths)
        _require(fit, "widths", widths, "four numbers from 1 to 4096")
        _require_statistics(self)

    @property
    def spatial_factor(self) -> int:
        return 8

    @property
    def temporal_factor(self) -> int:
        """Video frames per latent frame, after the first."""
        return int(2 ** sum(self.temporal_upsample))

    @property
    def frame_range(self) -> tuple[float, float]:
        """Black and white, as the decoder's frames have them."""
        return 0.0, 1.0


DecoderConfig = VaeConfig | TaehvConfig


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    vocab: int = 256_384
    dim: int = 4096
    attention_dim: int = 4096
    ffn_dim: int = 10_240
    heads: int = 64
    layers: int = 24
    buckets: int = 32
    max_distance: int = 128

    def __post_init__(self) -> None:
        _require_range(self, VOCABULARY, "vocab")
        _require_range(self, WIDTH, "dim", "attention_dim", "ffn_dim")
        _require_range(self, HEADS, "heads")
        _require_range(self, LAYERS, "layers")
        _require_range(self, Range(1, 1_000_000), "max_distance")
        _require(
            self.attention_dim % self.heads == 0,
            "heads",
            self.heads,
            f"a divisor of attention_dim ({self.attention_dim})",
        )
        _require(
            self.buckets in Range(4, 4096) and self.buckets % 4 == 0,
            "buckets",
            self.buckets,
            "a multiple of 4, at most 4096",
        )
        _require(
            self.max_distance > self.buckets // 4,
            "max_distance",
            self.max_distance,
            f"more than buckets / 4 ({self.buckets // 4})",
        )
        per_layer = self.dim * (4 * self.attention_dim + 3 * self.ffn_dim)
        _require_weights(self.layers * per_layer + self.vocab * self.dim, "layers", self)


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """For those who write prompts; nothing that is computed depends on it."""

    knows: str = ""
    """What a small model understands, as the end of the sentence "it knows ..."."""
    suggestions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    name: str = "longlive-1.3b"
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    vae: DecoderConfig | None = None
    light_vae: DecoderConfig | None = None
    """A second decoder of the same latents, for live previews."""
    text_encoder: TextEncoderConfig | None = None
    fps: float = 16
    prompts: PromptsConfig = field(default_factory=PromptsConfig)

    def __post_init__(self) -> None:
        _require(bool(self.name.strip()), "name", self.name, "a non-empty text")
        _require_range(self, FPS, "fps")
        _, patch_height, patch_width = self.transformer.patch
        for key, value, patch in (
            ("latent.height", self.latent.height, patch_height),
            ("latent.width", self.latent.width, patch_width),
        ):
            _require(value % patch == 0, key, value, f"a multiple of the patch size ({patch})")
        most = f"a frame of at most {MOST_TOKENS_PER_FRAME} tokens, and this has "
        _require(
            self.tokens_per_frame <= MOST_TOKENS_PER_FRAME,
            "latent",
            [self.latent.height, self.latent.width],
            most + str(self.tokens_per_frame),
        )
        for section, vae in (("vae", self.vae), ("light_vae", self.light_vae)):
            if vae is not None:
                _require(
                    vae.channels == self.transformer.channels,
                    f"{section}.channels",
                    vae.channels,
                    f"transformer.channels ({self.transformer.channels})",
                )
        if self.vae is not None and self.light_vae is not None:
            for key in ("spatial_factor", "temporal_factor"):
                light, full = getattr(self.light_vae, key), getattr(self.vae, key)
                _require(
                    light == full,
                    "light_vae",
                    f"a decoder of {key.replace('_', ' ')} {light}",
                    f"one whose pictures are as many and as large as those of vae ({full})",
                )
        if self.text_encoder is not None:
            _require(
                self.text_encoder.dim == self.transformer.text_dim,
                "text_encoder.dim",
                self.text_encoder.dim,
                f"transformer.text_dim ({self.transformer.text_dim})",
            )

    def decoder(self, component: str) -> DecoderConfig | None:
        """Of one of the two decoders, by its component's name."""
        return self.light_vae if component == LIGHT_VAE else self.vae

    @property
    def temporal_factor(self) -> int:
        """Video frames per latent frame after the first; Wan's, where no VAE is configured."""
        vae = self.vae or self.light_vae
        return vae.temporal_factor if vae else WAN_TEMPORAL_FACTOR

    @property
    def video_size(self) -> tuple[int, int] | None:
        """Height and width of the pictures; None where no VAE is configured."""
        vae = self.vae or self.light_vae
        if vae is None:
            return None
        factor = vae.spatial_factor
        return self.latent.height * factor, self.latent.width * factor

    def video_frames(self, latent_frames: int, *, after: int = 0) -> int:
        """Pictures of so many latent frames that follow ``after`` others.

        The first latent frame of a video gives one picture, every later one ``temporal_factor``.
        """
        frames = latent_frames * self.temporal_factor
        is_beginning = latent_frames > 0 and after == 0
        return frames - (self.temporal_factor - 1) if is_beginning else frames

    @cached_property
    def token_grid(self) -> tuple[int, int]:
        _, patch_height, patch_width = self.transformer.patch
        return self.latent.height // patch_height, self.latent.width // patch_width

    @property
    def tokens_per_frame(self) -> int:
        rows, columns = self.token_grid
        return rows * columns

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one latent frame."""
        return self.transformer.channels, self.latent.height, self.latent.width
