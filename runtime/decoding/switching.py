"""A video whose decoder may change between blocks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil

from longlive_trt.basics import Array
from longlive_trt.configs import DecoderConfig, TaehvConfig
from longlive_trt.contract import LATENTS
from longlive_trt.errors import UsageError
from longlive_trt.runtime.decoding.host import Decoder, DecoderSnapshot, Decoding
from longlive_trt.runtime.memory.base import Buffer, Memory, Tensor

_TINY_REACH = 8
"""So many latent frames back, no picture of the tiny decoder depends on any."""


@dataclass(frozen=True)
class DecoderSource:
    """One of the decoders that a session may use."""

    config: DecoderConfig
    open: Callable[[], Decoder]


def past_frames(config: DecoderConfig, block_frames: int, kept_frames: int) -> int:
    """How many latent frames such a decoder reads before it takes over, in whole blocks."""
    reach = _TINY_REACH + 1 if isinstance(config, TaehvConfig) else kept_frames
    blocks = min(ceil(reach / block_frames), kept_frames // block_frames)
    return blocks * block_frames


@dataclass(frozen=True)
class SwitchedSnapshot(DecoderSnapshot):
    name: str
    video_frames: int
    """Latent frames of the video, of which the decoder itself may have seen the latest only."""


class SwitchableDecoder:
    """One decoder at a time; another takes over once it has seen the video's newest latents.

    The pictures of the tiny decoder are then what they would be had it decoded from the beginning.
    Wan's looks further back than a window: its first pictures differ a little from those.
    """

    def __init__(self, sources: Mapping[str, DecoderSource], name: str, memory: Memory) -> None:
        self._sources, self._memory = sources, memory
        self._opened: dict[str, Decoder] = {}
        self.name = name
        self.latent_frames = 0
        self._decoder(name)

    def past_frames(self, name: str, block_frames: int, kept_frames: int) -> int:
        if name not in self._sources:
            held = ", ".join(self._sources)
            raise UsageError(f"this video has no decoder {name!r}; it has: {held}")
        return past_frames(self._sources[name].config, block_frames, kept_frames)

    def take_over(self, name: str, past: Array | None, block_frames: int) -> None:
        """Decode with this one from now on; ``past`` are the latest latents, in whole blocks."""
        self.settle()
        self.name, decoder = name, self._decoder(name)
        decoder.begin()
        if past is None:
            return
        shape = (past.shape[0], block_frames, *past.shape[2:])
        reserved = self._memory.reserve({LATENTS: Buffer(shape, past.dtype)}, "a decoder's past")
        for start in range(0, past.shape[1], block_frames):
            self._memory.write(reserved[LATENTS], past[:, start : start + block_frames])
            decoding = decoder.start(reserved[LATENTS])
            # Pictures that were shown before, by the other.
            decoding.result()
            decoding.release()

    def begin(self) -> None:
        self.latent_frames = 0
        self._current.begin()

    def start(self, latents: Tensor, *, is_awaited: bool = False) -> Decoding:
        self.latent_frames += int(latents.shape[1])
        return self._current.start(latents, is_awaited=is_awaited)

    def settle(self) -> None:
        self._current.settle()

    @property
    def caches(self) -> Mapping[str, Tensor]:
        return self._current.caches

    def saved(self) -> Mapping[str, Array]:
        return self._current.saved()

    def restore(self, latent_frames: int, caches: Mapping[str, Array]) -> None:
        self.latent_frames = latent_frames
        self._current.restore(latent_frames, caches)

    def snapshot(self) -> SwitchedSnapshot:
        inner = self._current.snapshot()
        return SwitchedSnapshot(inner.latent_frames, inner.caches, self.name, self.latent_frames)

    def reinstate(self, snapshot: DecoderSnapshot) -> None:
        assert isinstance(snapshot, SwitchedSnapshot)
        self.settle()
        self.name, self.latent_frames = snapshot.name, snapshot.video_frames
        self._current.reinstate(snapshot)

    def close(self) -> None:
        for decoder in self._opened.values():
            decoder.close()

    @property
    def _current(self) -> Decoder:
        return self._opened[self.name]

    def _decoder(self, name: str) -> Decoder:
        """Opened when it is first needed."""
        if name not in self._opened:
            self._opened[name] = self._sources[name].open()
        return self._opened[name]
