"""Layers of the causal video VAE; activations are [batch, channels, frames, height, width]."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HISTORY_FRAMES = 2


def denormalized(latents: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The transformer's latents [B, T, C, h, w], in the scale that Wan's VAE has them in."""
    # Made here and not kept as buffers, which a cast of the model would round.
    means, deviations = (
        torch.tensor(values, dtype=torch.float32, device=latents.device).reshape(-1, 1, 1)
        for values in (mean, std)
    )
    return latents.float() * deviations + means


class Histories:
    """The input frames before each temporal convolution, read and renewed in running order."""

    def __init__(self, previous: Sequence[Tensor] | None) -> None:
        self._previous = None if previous is None else iter(previous)
        self.renewed: list[Tensor] = []

    @property
    def at_start(self) -> bool:
        """Whether the frames that come are the first of a video."""
        return self._previous is None

    def prepend(self, frames: Tensor, count: int = HISTORY_FRAMES) -> Tensor:
        if self._previous is None:
            extended = F.pad(frames, (0, 0, 0, 0, count, 0))
        else:
            extended = torch.cat([next(self._previous), frames], dim=2)
        self.keep(extended, count)
        return extended

    def keep(self, frames: Tensor, count: int) -> None:
        """The last of them, for what comes next."""
        # A clone, because a view would keep the whole activation alive.
        self.renewed.append(frames[:, :, -count:].clone())

    def leave_empty(self, frames: Tensor) -> None:
        batch, channels, _, height, width = frames.shape
        self.renewed.append(frames.new_zeros(batch, channels, HISTORY_FRAMES, height, width))


class KeepsHistory:
    """A convolution in time, of whatever numbers."""

    in_channels: int
    history_frames: int = HISTORY_FRAMES


class CausalConv(nn.Conv3d, KeepsHistory):
    """Three taps in time, of which the last is the present; zero padding in space."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 3) -> None:
        side = kernel // 2
        time_taps = HISTORY_FRAMES + 1
        super().__init__(
            channels_in, channels_out, (time_taps, kernel, kernel), padding=(0, side, side)
        )

    def forward(self, frames: Tensor, histories: Histories) -> Tensor:  # type: ignore[override]
        return super().forward(histories.prepend(frames))


class StillConv(nn.Conv3d):
    """A 3x3 convolution of every frame on its own, in the place of a causal one.

    It runs as a 2-D one: engines on a CPU are several times faster at those, and merge the moves of
    the frames of neighboring layers.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, frames: Tensor, histories: Histories) -> Tensor:  # type: ignore[override]
        weight = self.weight.squeeze(2)
        return _each_frame(frames, lambda x: F.conv2d(x, weight, self.bias, padding=1))


def _each_frame(frames: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """What a 2-D operation makes of every frame."""
    made = run(frames.transpose(1, 2).flatten(0, 1)).unflatten(0, (frames.shape[0], -1))
    result: Tensor = made.transpose(1, 2)
    return result


def block_conv(channels_in: int, channels_out: int, taps: int) -> nn.Module:
    """A 3x3 convolution that sees ``taps`` frames."""
    return (
        StillConv(channels_in, channels_out) if taps == 1 else CausalConv(channels_in, channels_out)
    )


class FrameConv(nn.Conv2d):
    """A 2-D convolution of every frame.

    It runs as a 3-D one, because moving the frames into the batch and back would copy everything.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__(channels_in, channels_out, kernel)
        self._side = kernel // 2

    def forward(self, frames: Tensor) -> Tensor:
        padding = (0, self._side, self._side)
        return F.conv3d(frames, self.weight.unsqueeze(2), self.bias, padding=padding)


class ChannelNorm(nn.Module):
    """L2-normalizes the channels of every pixel, in float32: half precision would underflow."""

    def __init__(self, channels: int, trailing_dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * trailing_dims))

    def forward(self, frames: Tensor) -> Tensor:
        wide = frames.float()
        length = torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp_min(1e-12)
        gain = self.gamma.float().reshape(-1, 1, 1, 1) * math.sqrt(frames.shape[1])
        result: Tensor = (wide / length * gain).to(frames.dtype)
        return result


class ResBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, taps: int = 3) -> None:
        super().__init__()
        self.residual = nn.ModuleDict(
            {
                "0": ChannelNorm(channels_in),
                "2": block_conv(channels_in, channels_out, taps),
                "3": ChannelNorm(channels_out),
                "6": block_conv(channels_out, channels_out, taps),
            }
        )
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv3d(channels_in, channels_out, 1)

    def forward(self, frames: Tensor, histories: Histories) -> Tensor:
        hidden = self.residual["2"](F.silu(self.residual["0"](frames)), histories)
        hidden = self.residual["6"](F.silu(self.residual["3"](hidden)), histories)
        result: Tensor = self.shortcut(frames) + hidden
        return result


class FrameAttention(nn.Module):
    """One head over all positions of a frame.

    Spelled out, because compilers have no fused attention for a head of hundreds of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, trailing_dims=2)
        self.to_qkv = FrameConv(channels, 3 * channels, 1)
        self.proj = FrameConv(channels, channels, 1)

    def forward(self, frames: Tensor) -> Tensor:
        _, channels, _, height, width = frames.shape
        qkv = self.to_qkv(self.norm(frames)).permute(0, 2, 3, 4, 1).flatten(2, 3)
        query, key, value = qkv.split(channels, dim=-1)
        # In float32: as a number of a half type, the scale itself would be rounded.
        scaled = (query.float() * channels**-0.5).to(query.dtype)
        logits = scaled @ key.transpose(-1, -2)
        attended = logits.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value
        attended = attended.unflatten(2, (height, width)).permute(0, 4, 1, 2, 3)
        result: Tensor = frames + self.proj(attended)
        return result


class Upsample(nn.Module):
    """Doubles height and width and halves the channels; a temporal one doubles the frames first."""

    def __init__(self, channels: int, *, temporal: bool, still: bool = False) -> None:
        super().__init__()
        self.channels, self._still = channels, still
        self.resample = nn.ModuleDict({"1": FrameConv(channels, channels // 2, 3)})
        self.time_conv = CausalConv(channels, 2 * channels, kernel=1) if temporal else None

    def forward(self, frames: Tensor, histories: Histories) -> Tensor:
        if self.time_conv is not None:
            frames = self._double_frames(frames, self.time_conv, histories)
        if self._still:
            return _each_frame(frames, self._enlarge)
        enlarged = F.interpolate(frames, scale_factor=(1.0, 2.0, 2.0), mode="nearest")
        result: Tensor = self.resample["1"](enlarged)
        return result

    def _enlarge(self, pictures: Tensor) -> Tensor:
        conv = self.resample["1"]
        assert isinstance(conv, FrameConv)
        enlarged = F.interpolate(pictures, scale_factor=2.0, mode="nearest")
        return F.conv2d(enlarged, conv.weight, conv.bias, padding=1)

    @staticmethod
    def _double_frames(frames: Tensor, time_conv: CausalConv, histories: Histories) -> Tensor:
        if not histories.at_start:
            return _interleave(time_conv(frames, histories))
        # A video's first frame is never doubled, nor seen by the temporal convolution.
        first, rest = frames[:, :, :1], frames[:, :, 1:]
        if rest.shape[2] == 0:
            histories.leave_empty(frames)
            return first
        return torch.cat([first, _interleave(time_conv(rest, histories))], dim=2)


class HalvingConv(nn.Conv3d, KeepsHistory):
    """Makes one frame of two, and sees the one before them too."""

    history_frames = 1

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (HISTORY_FRAMES + 1, 1, 1), stride=(2, 1, 1))

    def forward(self, frames: Tensor, histories: Histories) -> Tensor:  # type: ignore[override]
        return super().forward(histories.prepend(frames, self.history_frames))


class Downsample(nn.Module):
    """Halves height and width; a temporal one then halves the frames after a video's first."""

    def __init__(self, channels: int, *, temporal: bool, still: bool = False) -> None:
        super().__init__()
        self._still = still
        self.resample = nn.ModuleDict({"1": FrameConv(channels, channels, 3)})
        self.time_conv = HalvingConv(channels) if temporal else None

    def forward(self, frames: Tensor, histories: Histories) -> Tensor:
        reduced = _each_frame(frames, self._reduce) if self._still else self._reduce_all(frames)
        if self.time_conv is None:
            return reduced
        if not histories.at_start:
            halved: Tensor = self.time_conv(reduced, histories)
            return halved
        # A video's first frame comes alone, and goes on as it is.
        histories.keep(reduced, self.time_conv.history_frames)
        return reduced

    def _reduce_all(self, frames: Tensor) -> Tensor:
        conv = self._conv
        weight = conv.weight.unsqueeze(2)
        return F.conv3d(F.pad(frames, (0, 1, 0, 1)), weight, conv.bias, stride=(1, 2, 2))

    def _reduce(self, pictures: Tensor) -> Tensor:
        conv = self._conv
        # Padding on the right and below alone.
        return F.conv2d(F.pad(pictures, (0, 1, 0, 1)), conv.weight, conv.bias, stride=2)

    @property
    def _conv(self) -> FrameConv:
        conv = self.resample["1"]
        assert isinstance(conv, FrameConv)
        return conv


def _interleave(pairs: Tensor) -> Tensor:
    """The first half of the channels is the earlier frame of a pair, the second half the later."""
    earlier, later = pairs.chunk(2, dim=1)
    return torch.stack([earlier, later], dim=3).flatten(2, 3)
