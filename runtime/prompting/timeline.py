"""Which prompt a video shows when, and how long the video is.

Frames are latent frames, counted from 0, and a prompt takes over at the first block that starts at
or after its frame. A time in seconds (``7.5s``) names the video frame on screen then, which belongs
to a latent frame: video frame 0 to latent frame 0, frame v to latent frame
1 + (v-1)//temporal_factor.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from longlive_trt.configs import ModelConfig
from longlive_trt.configs.schema import FPS
from longlive_trt.console.printing import quoted
from longlive_trt.console.wording import counted
from longlive_trt.errors import UsageError
from longlive_trt.reading.ranges import Range

CUE_FRAMES = Range(0, 10**9)
"""Where a prompt may begin."""
CUE_SECONDS = Range(0, 10**8)

_MOMENT = re.compile(r"(-?\d{1,30})|(\d{1,30}(?:\.\d{0,30})?|\.\d{1,30}) ?s", re.ASCII)


@dataclass(frozen=True)
class Cue:
    """A prompt, and the latent frame from which it is wanted."""

    frame: int
    prompt: str
    where: str = field(default="", compare=False)
    """What a message calls it: its option or argument, or its file and entry."""


@dataclass(frozen=True)
class Seconds:
    """A moment of the video, as a viewer counts."""

    value: float

    def __str__(self) -> str:
        return f"{self.value:g}s"


Moment = int | Seconds
"""A latent frame, or a time."""
ByMoment = Mapping[int, str] | Mapping[str, str] | Mapping[int | str, str]
"""Prompts by when each is wanted; a text is a time."""
MOMENTS = "a latent frame, such as 42, or a time, such as 7.5s"


@dataclass(frozen=True)
class Wish:
    """A prompt that is wanted from some moment on."""

    at: Moment
    prompt: str
    where: str = ""


def parse_moment(text: str) -> Moment | None:
    """None for what is neither a latent frame nor a time."""
    found = _MOMENT.fullmatch(text.strip())
    if found is None:
        return None
    frame, seconds = found.groups()
    return int(frame) if seconds is None else Seconds(float(seconds))


@dataclass(frozen=True)
class Clock:
    config: ModelConfig
    total_frames: int | None = None
    """Latent frames of the video, whole blocks; None when it is endless."""

    @property
    def frames_per_block(self) -> int:
        return self.config.rollout.frames_per_block

    def frame_of(self, moment: Moment) -> int:
        return self.latent_frame_at(moment.value) if isinstance(moment, Seconds) else moment

    def cue(self, wish: Wish) -> Cue:
        return Cue(self.frame_of(wish.at), wish.prompt, wish.where)

    def timed(self, frame: int) -> str:
        """``42 (10.3 s)``: with when a viewer sees it."""
        return f"{frame} ({self.seconds_at(frame):.1f} s)"

    def seconds_at(self, frame: int) -> float:
        """When the first picture of a latent frame is shown."""
        return self.config.video_frames(frame) / self.config.fps

    def latent_frame_at(self, seconds: float) -> int:
        CUE_SECONDS.require("the time of a prompt", seconds)
        video_frame = math.floor(_exact(seconds) * _exact(self.config.fps))
        return 0 if video_frame == 0 else 1 + (video_frame - 1) // self.config.temporal_factor


@dataclass(frozen=True)
class Timeline:
    cues: tuple[Cue, ...]
    notices: tuple[str, ...] = field(default=(), compare=False)

    def starts(self, frames_per_block: int) -> tuple[Cue, ...]:
        """The cues at the blocks where they take effect; one block start takes one switch."""
        placed = [self.cues[0]]
        for cue in self.cues[1:]:
            own = _whole_blocks(cue.frame, frames_per_block)
            start = max(own, placed[-1].frame + frames_per_block)
            placed.append(Cue(start, cue.prompt))
        return tuple(placed)


@dataclass(frozen=True)
class Length:
    latent_frames: int | None
    """Whole blocks; None is endless."""
    video_frames: int | None
    notices: tuple[str, ...] = ()


ENDLESS = Length(None, None)
LONGEST_S = 86_400
"""Of a video that is to have an end: a day."""


def checked_timeline(cues: Sequence[Cue], clock: Clock) -> Timeline:
    _check_frames(cues, clock)
    notices = [notice for cue in cues for notice in check_prompt(cue.prompt, cue.where)]
    timeline = Timeline(tuple(cues))
    for cue, start in zip(cues, timeline.starts(clock.frames_per_block), strict=True):
        notices += _check_start(cue, start.frame, clock)
    return Timeline(timeline.cues, tuple(notices))


def _check_frames(cues: Sequence[Cue], clock: Clock) -> None:
    for cue in cues:
        if cue.frame > CUE_FRAMES.high:
            raise UsageError(f"{cue.where}: frame {quoted(cue.frame)}; allowed: {CUE_FRAMES}")
        if cue.frame < 0:
            raise UsageError(f"{cue.where}: frame {cue.frame} is negative; count frames from 0")
    if cues[0].frame != 0:
        raise UsageError(
            f"{cues[0].where}: the first prompt is at frame {clock.timed(cues[0].frame)}; "
            "give the prompt that the video starts with at frame 0"
        )
    for before, cue in itertools.pairwise(cues):
        if cue.frame == before.frame:
            raise UsageError(
                f"{cue.where}: a second prompt at frame {clock.timed(cue.frame)} "
                f"(the first: {before.where}); "
                "keep one of them"
            )
        if cue.frame < before.frame:
            raise UsageError(
                f"{cue.where}: frame {clock.timed(cue.frame)} comes after "
                f"frame {clock.timed(before.frame)} ({before.where}); put the prompts in the order "
                "of their times"
            )


def check_prompt(prompt: str, where: str) -> list[str]:
    """Refuse what is no text; what to tell about one that is."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{where}: the prompt is not valid UTF-8 at character {error.start}; "
            "type it again, or check the terminal's encoding"
        ) from None
    if prompt.strip():
        return []
    return [f"{where}: the prompt is empty; the model makes up what to show"]


def _check_start(cue: Cue, start: int, clock: Clock) -> list[str]:
    if clock.total_frames is not None and start >= clock.total_frames:
        total, seconds = clock.total_frames, clock.seconds_at(clock.total_frames)
        last = clock.timed(total - clock.frames_per_block)
        raise UsageError(
            f"{cue.where}: a prompt for frame {cue.frame} would start at frame "
            f"{clock.timed(start)}, past the end of the video ({counted(total, 'latent frame')}, "
            f"{seconds:.1f} s; the last block starts at frame {last}); "
            "choose an earlier frame or a longer video"
        )
    if start == cue.frame:
        return []
    return [
        f"{cue.where}: the prompt starts at frame {clock.timed(start)}, the next free block start"
    ]


def require_length(seconds: float | None, frames: int | None) -> None:
    """Refuse what no video can last; ``inf`` seconds are one without an end."""
    if seconds is not None and not seconds > 0:
        raise UsageError(f"a length of {seconds:g} seconds; give a number above 0, or inf")
    if frames is not None and frames <= 0:
        raise UsageError(f"a length of {quoted(frames)} latent frames; give a number above 0")
    if seconds is not None and LONGEST_S < seconds < math.inf:
        raise _too_long(f"{seconds:g} seconds")
    if frames is not None and frames > LONGEST_S * FPS.high:
        raise _too_long(f"{quoted(frames)} latent frames")


def require_watchable(length: Length, config: ModelConfig) -> None:
    if length.video_frames is not None and length.video_frames > (LONGEST_S + 60) * config.fps:
        raise _too_long(counted(length.latent_frames or 0, "latent frame"))


def _too_long(length: str) -> UsageError:
    return UsageError(
        f"a length of {length}: more than a day ({LONGEST_S} s); give a shorter one, or inf for a "
        f"video without an end"
    )


def length_in_frames(seconds: float | None, frames: int | None, config: ModelConfig) -> Length:
    """The video's length from seconds or from latent frames, rounded up to whole blocks."""
    if (seconds is None) == (frames is None):
        raise UsageError("give the video's length once: in seconds, or in latent frames")
    if frames is not None:
        return _length_of_frames(frames, config)
    if not seconds or math.isnan(seconds) or seconds < 0:
        raise UsageError(f"a length of {seconds:g} seconds; give a number above 0, or inf")
    return ENDLESS if math.isinf(seconds) else _length_of_seconds(seconds, config)


def _length_of_frames(frames: int, config: ModelConfig) -> Length:
    if frames <= 0:
        raise UsageError(f"a length of {counted(frames, 'latent frame')}; give a number above 0")
    latent = _whole_blocks(frames, config.rollout.frames_per_block)
    video = config.video_frames(latent)
    if latent == frames:
        return Length(latent, video)
    notice = (
        f"{counted(frames, 'latent frame')} {'is' if frames == 1 else 'are'} no whole number of "
        f"blocks; making {latent} "
        f"({video / config.fps:g} s)"
    )
    return Length(latent, video, (notice,))


def _length_of_seconds(seconds: float, config: ModelConfig) -> Length:
    fps = config.fps
    wanted = math.ceil(_exact(seconds) * _exact(fps))
    needed = 1 + math.ceil(Fraction(wanted - 1, config.temporal_factor))
    latent = _whole_blocks(needed, config.rollout.frames_per_block)
    video = config.video_frames(latent)
    if video == wanted:
        return Length(latent, video)
    notice = (
        f"{seconds:g} s is {counted(wanted, 'video frame')}, which is no whole number of blocks; "
        f"making {video} ({video / fps:g} s, {counted(latent, 'latent frame')})"
    )
    return Length(latent, video, (notice,))


def _whole_blocks(frames: int, frames_per_block: int) -> int:
    return -(-frames // frames_per_block) * frames_per_block


def _exact(number: float) -> Fraction:
    # Through the decimal text: 0.1 s at 30 frames/s is 3 frames, and not 3.0000000000000002.
    return Fraction(str(number))
