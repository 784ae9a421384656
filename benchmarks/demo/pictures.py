"""The README's pictures: two loops and a contact sheet, made by the demo model on a CPU.

    python -m benchmarks.demo.pictures                    # into docs/demo/

To be made anew whenever the weights change.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import longlive_trt as ll
from benchmarks.harness import ROOT, parser
from longlive_trt.commands.running.demo import FRAMES, PROMPTS, SEED, TITLE
from longlive_trt.demo.poster import Pixels, save_poster, strips
from longlive_trt.files import publish_file

FOLDER = ROOT / "docs" / "demo"
LIMIT_BYTES = 3_000_000
"""Of both loops together."""

WORLDS = (
    "A white sailboat drifts to the left over the sea at sunset",
    "A green steam train rushes to the right through the mountains at noon, in the snow",
    "A yellow car drives to the left through the city at night, in the rain",
    "A purple hot air balloon floats slowly to the right over the meadow in the morning",
    "A red bird flies to the right through the forest at noon",
    "A blue car drives fast to the right through the desert in the morning",
)
WORLD_BLOCKS = 6
"""The first is left out: a video begins out of nothing."""

_SCALE, _BAR, _MARGIN, _GAP = 4, 72, 24, 6
_LARGEST, _INK, _QUIET, _PAPER = 24, (236, 238, 241), (139, 147, 161), (14, 17, 22)
_TYPING_S, _QUALITY = 1.2, 62


def main() -> None:
    options = parser(__doc__, out=False)
    options.add_argument("--folder", type=Path, default=FOLDER)
    folder = options.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with ll.load("demo") as pipeline:
        fps, size = pipeline.config.fps, pipeline.config.video_size
        frames = _frames(pipeline, PROMPTS, FRAMES)
        starts = {pipeline.config.video_frames(n): text for n, text in PROMPTS.items()}
        block = pipeline.config.rollout.frames_per_block
        first = pipeline.config.video_frames(block)
        worlds = [_frames(pipeline, {0: text}, block * WORLD_BLOCKS)[first:] for text in WORLDS]
    assert size is not None
    note = f"{size[1]} by {size[0]} pixels, {fps:g} frames/s, made on a CPU"
    save_poster(folder / "sheet.png", TITLE, note, strips(frames, fps, starts))
    loops = (
        (folder / "journey.webp", list(_steered(frames, starts, fps))),
        (folder / "worlds.webp", list(_side_by_side(worlds))),
    )
    for path, pictures in loops:
        _save_loop(path, pictures, fps)
    total = sum(path.stat().st_size for path, _ in loops)
    print(f"{folder}: the loops take {total / 1e6:.2f} MB, of {LIMIT_BYTES / 1e6:g} at most")
    if total > LIMIT_BYTES:
        raise SystemExit("too large: lower the quality, or make them shorter")


def _frames(pipeline: ll.Pipeline, prompts: Mapping[int, str], count: int) -> Pixels:
    with pipeline.video(dict(prompts), frames=count, seed=SEED) as video:
        return np.concatenate([block.frames for block in video.ahead()])


def _steered(frames: Pixels, starts: Mapping[int, str], fps: float) -> Iterator[Image.Image]:
    """The video, and below it the prompts as somebody types them."""
    font = _fitting(list(starts.values()), frames.shape[2] * _SCALE - 2 * _MARGIN)
    for number, frame in enumerate(frames):
        picture = _enlarged(frame)
        page = Image.new("RGB", (picture.width, picture.height + _BAR), _PAPER)
        page.paste(picture)
        draw = ImageDraw.Draw(page)
        text, color = _typed(number, starts, fps)
        place = (_MARGIN, picture.height + _BAR / 2)
        draw.text(place, text, fill=color, font=font, anchor="lm")
        yield page


def _fitting(texts: Sequence[str], width: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest in which each text is one line."""
    fonts = (ImageFont.load_default(size) for size in range(_LARGEST, 1, -1))
    return next(font for font in fonts if max(map(font.getlength, texts)) <= width)


def _typed(number: int, starts: Mapping[int, str], fps: float) -> tuple[str, tuple[int, int, int]]:
    """The prompt that is shown, or as much of the next one as is written."""
    for start, text in starts.items():
        written = 1 - (start - number) / (_TYPING_S * fps)
        if start and 0 < written < 1:
            return f"{text[: round(written * len(text))]}_", _QUIET
    shown = max(start for start in starts if start <= number)
    return starts[shown], _INK


def _side_by_side(worlds: Sequence[Pixels]) -> Iterator[Image.Image]:
    columns = 3
    for pictures in zip(*worlds, strict=True):
        height, width, _ = pictures[0].shape
        cell = (2 * width, 2 * height)
        rows = -(-len(pictures) // columns)
        size = (columns * (cell[0] + _GAP) - _GAP, rows * (cell[1] + _GAP) - _GAP)
        page = Image.new("RGB", size, _PAPER)
        for number, picture in enumerate(pictures):
            row, column = divmod(number, columns)
            shown = Image.fromarray(picture).resize(cell, Image.Resampling.LANCZOS)
            page.paste(shown, (column * (cell[0] + _GAP), row * (cell[1] + _GAP)))
        yield page


def _enlarged(frame: Pixels) -> Image.Image:
    height, width, _ = frame.shape
    size = (_SCALE * width, _SCALE * height)
    return Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)


def _save_loop(path: Path, pictures: Sequence[Image.Image], fps: float) -> None:
    with publish_file(path) as partial:
        pictures[0].save(
            partial,
            "WEBP",
            save_all=True,
            append_images=pictures[1:],
            duration=round(1000 / fps),
            loop=0,
            quality=_QUALITY,
            method=4,
        )


if __name__ == "__main__":
    main()
