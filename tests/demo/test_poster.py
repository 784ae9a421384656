from pathlib import Path

import numpy as np
from PIL import Image

from longlive_trt.demo.poster import Strip, poster, save_poster, strips

LONG = "a small red car hurries through the snow at night " * 3


def frames(count: int) -> np.ndarray:
    """Each picture is of one brightness: its number."""
    shade = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(shade, (count, 8, 12, 3))


def test_a_strip_shows_its_prompt_s_moments_from_first_to_last() -> None:
    first, second = strips(frames(100), 10.0, {0: "one", 40: "two"})
    assert (first.prompt, first.begins_s, first.ends_s) == ("one", 0, 4)
    assert (second.prompt, second.begins_s, second.ends_s) == ("two", 4, 10)
    numbers = [[int(moment[0, 0, 0]) for moment in strip.moments] for strip in (first, second)]
    assert numbers[0][0] == 0 and numbers[0][-1] == 39
    # The change itself, fifteen pictures, is left out.
    assert numbers[1][0] == 55 and numbers[1][-1] == 99
    assert all(row == sorted(set(row)) for row in numbers)


def test_a_very_short_strip_has_pictures_too() -> None:
    assert len(strips(frames(12), 16.0, {0: "one", 11: "two"})[1].moments) == 5


def test_words_stay_on_the_page_and_are_legible() -> None:
    moments = list(np.zeros((5, 32, 64, 3), np.uint8))
    short = poster("A title", "a note", [Strip("few words", 0, 4, moments)])
    long = poster("A title", "a note", [Strip(LONG.strip(), 0, 4, moments)])
    assert long.width == short.width and long.height > short.height
    pixels = np.asarray(long).astype(int)
    paper = pixels[0, 0]
    edge = np.concatenate([pixels[:, :40].reshape(-1, 3), pixels[:, -40:].reshape(-1, 3)])
    assert (edge == paper).all()
    below = pixels[-120:].max(axis=(0, 1))
    assert (below > 200).all()


def test_the_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "sheet.png"
    save_poster(path, "A title", "a note", strips(frames(20), 10.0, {0: "one"}))
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
    assert [other.name for other in path.parent.iterdir()] == ["sheet.png"]
