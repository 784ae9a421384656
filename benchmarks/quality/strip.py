"""Rows of pictures of one size, each with its name."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from longlive_trt.files import publish_file

NamedRow = tuple[str, Sequence[Image.Image]]


def save_strip(path: Path, rows: Sequence[NamedRow]) -> None:
    width, height = rows[0][1][0].size
    label, gap, font = 130, 4, ImageFont.load_default(17)
    columns = len(rows[0][1])
    page = Image.new(
        "RGB", (label + columns * (width + gap), len(rows) * (height + gap)), (14, 17, 22)
    )
    draw = ImageDraw.Draw(page)
    for number, (name, pictures) in enumerate(rows):
        top = number * (height + gap)
        draw.text((12, top + height // 2 - 10), name, fill=(236, 238, 241), font=font)
        for column, picture in enumerate(pictures):
            page.paste(picture, (label + column * (width + gap), top))
    with publish_file(path) as partial:
        page.save(partial, "PNG", optimize=True)
