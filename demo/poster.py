"""A video as one picture: a strip of moments for each prompt, with its words below."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from longlive_trt.files import publish_file

Pixels = npt.NDArray[np.uint8]

_SCALE, _COLUMNS = 2, 5
_MARGIN, _GAP, _RADIUS = 56, 12, 10
_BACKGROUND, _INK, _QUIET = (14, 17, 22), (236, 238, 241), (139, 147, 161)
_TITLE, _WORDS, _SMALL = 40, 30, 24
_ABOVE_WORDS, _BELOW_WORDS = 14, 40
_SETTLED_S = 1.5
"""After a switch one scene still turns into the next."""


@dataclass(frozen=True)
class Strip:
    prompt: str
    begins_s: float
    ends_s: float
    moments: Sequence[Pixels]


def strips(frames: Pixels, fps: float, prompts: Mapping[int, str]) -> list[Strip]:
    """Of pictures [n, H, W, 3], and prompts by the picture with which they begin."""
    made = []
    for begin, end in pairwise([*sorted(prompts), len(frames)]):
        settled = min(begin + round(_SETTLED_S * fps), end - 1) if begin else begin
        picked = np.linspace(settled, end - 1, _COLUMNS).round().astype(int)
        made.append(Strip(prompts[begin], begin / fps, end / fps, list(frames[picked])))
    return made


def save_poster(path: Path, title: str, note: str, shown: Sequence[Strip]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with publish_file(path) as partial:
        poster(title, note, shown).save(partial, "PNG", optimize=True)


def poster(title: str, note: str, shown: Sequence[Strip]) -> Image.Image:
    height, width, _ = shown[0].moments[0].shape
    columns = max(len(strip.moments) for strip in shown)
    cell = (_SCALE * width, _SCALE * height)
    inner = columns * (cell[0] + _GAP) - _GAP
    words = [list(_lines(strip.prompt, inner - 200)) for strip in shown]
    below = [_ABOVE_WORDS + len(lines) * (_WORDS + 8) + _BELOW_WORDS for lines in words]
    top = _MARGIN + _TITLE + 36
    size = (inner + 2 * _MARGIN, top + sum(below) + len(shown) * cell[1] + 16)
    page = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(page)
    _text(draw, (_MARGIN, _MARGIN - 8), title, _TITLE, _INK)
    _text(draw, (size[0] - _MARGIN, _MARGIN + 4), note, _SMALL, _QUIET, "ra")
    for strip, lines, space in zip(shown, words, below, strict=True):
        _paste(page, strip.moments, top, cell)
        under = top + cell[1] + _ABOVE_WORDS
        for number, line in enumerate(lines):
            _text(draw, (_MARGIN, under + number * (_WORDS + 8)), line, _WORDS, _INK)
        span = f"{_clock(strip.begins_s)} to {_clock(strip.ends_s)}"
        _text(draw, (size[0] - _MARGIN, under + 5), span, _SMALL, _QUIET, "ra")
        top += cell[1] + space
    return page


def _paste(page: Image.Image, moments: Sequence[Pixels], top: int, cell: tuple[int, int]) -> None:
    corners = Image.new("L", cell, 0)
    whole = (0, 0, cell[0] - 1, cell[1] - 1)
    ImageDraw.Draw(corners).rounded_rectangle(whole, _RADIUS, fill=255)
    for column, moment in enumerate(moments):
        picture = Image.fromarray(moment).resize(cell, Image.Resampling.LANCZOS)
        page.paste(picture, (_MARGIN + column * (cell[0] + _GAP), top), corners)


def _lines(text: str, width: float) -> Iterator[str]:
    font, line = _font(_WORDS), ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            yield line
            longer = word
        line = longer
    yield line


def _text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int,
    color: tuple[int, int, int], anchor: str = "la",
) -> None:  # fmt: skip
    draw.text(place, text, fill=color, font=_font(size), anchor=anchor)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The one that comes with Pillow."""
    return ImageFont.load_default(size)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
