"""Pictures and clips of every kind, as pictures of the size and rate that are asked for."""

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from longlive_trt.reading.clips import Clip, open_clip
from longlive_trt.reading.failures import ReadingError
from tests.fakes.clips import shades, write_clip, write_picture, write_sound

SIZE = (32, 48)


def read(clip: Clip, fps: float = 16, size: tuple[int, int] = SIZE) -> np.ndarray:
    count = clip.count(fps)
    return np.stack(list(clip.pictures(size, fps, first=0, count=count)))


def tones(pictures: np.ndarray) -> list[int]:
    """The number of the picture that each shows."""
    return [round((float(picture.mean()) - 10) / 5) for picture in pictures]


@pytest.mark.parametrize("name", ["c.mp4", "c.mov", "c.mkv", "c.avi"])
def test_a_clip_of_the_right_size_and_rate_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (*SIZE, 3), np.uint8) for _ in range(10)]
    clip = open_clip(write_clip(tmp_path / name, pictures))
    assert (clip.width, clip.height, clip.fps, clip.is_picture) == (48, 32, 16, False)
    assert np.array_equal(read(clip), np.stack(pictures))


@pytest.mark.parametrize("name", ["p.png", "p.bmp", "p.webp", "p.jpg", "p.tiff"])
def test_a_picture(tmp_path: Path, name: str) -> None:
    picture = np.tile(np.linspace(20, 220, 48).astype(np.uint8)[None, :, None], (32, 1, 3))
    clip = open_clip(write_picture(tmp_path / name, picture))
    assert clip.is_picture and clip.count(16) == 1
    assert np.abs(read(clip)[0].astype(int) - picture).max() <= 12


def test_a_rate_of_its_own_is_sampled_by_what_is_on_screen(tmp_path: Path) -> None:
    fast = open_clip(write_clip(tmp_path / "fast.mp4", shades(30, SIZE), fps=32))
    assert tones(read(fast)) == list(range(0, 30, 2))
    slow = open_clip(write_clip(tmp_path / "slow.mp4", shades(8, SIZE), fps=8))
    assert tones(read(slow)) == [number // 2 for number in range(16)]
    film = open_clip(write_clip(tmp_path / "film.mp4", shades(24, SIZE), fps=24000 / 1001))
    shown = tones(read(film))
    # They last 1.001 s: 16 ticks, and no more than the slack of another.
    assert shown == [int((n / 16 + 1e-3) * 24000 / 1001) for n in range(16)]


def test_a_stretch_of_it(tmp_path: Path) -> None:
    clip = open_clip(write_clip(tmp_path / "c.mp4", shades(20, SIZE)))
    assert tones(np.stack(list(clip.pictures(SIZE, 16, first=11, count=9)))) == list(range(11, 20))


def test_it_covers_the_picture_and_loses_its_edges(tmp_path: Path) -> None:
    wide = np.zeros((64, 256, 3), np.uint8)
    wide[:, :80], wide[:, -80:], wide[:, 80:176] = (255, 0, 0), (0, 0, 255), (0, 255, 0)
    clip = open_clip(write_picture(tmp_path / "wide.png", wide))
    assert clip.fit(SIZE) == (128, 32)
    # Half its size: from 128 to 48 columns, 40 of each side are cut, where the colors change.
    shown = read(clip)[0]
    assert (shown[:, 2:-2] == (0, 255, 0)).all()
    tall = open_clip(write_picture(tmp_path / "tall.png", wide.transpose(1, 0, 2)))
    assert tall.fit(SIZE) == (48, 192)
    assert (read(tall)[0] == (0, 255, 0)).all()
    small = open_clip(write_picture(tmp_path / "small.png", wide[:8, 80:90]))
    assert read(small).shape == (1, *SIZE, 3)


def test_pixels_that_are_not_square_are_seen_as_a_player_shows_them(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "c.mp4", shades(2, (32, 24)), aspect=Fraction(2))
    clip = open_clip(path)
    assert (clip.width, clip.height) == (48, 32)


def test_an_odd_size(tmp_path: Path) -> None:
    clip = open_clip(write_clip(tmp_path / "c.mkv", shades(3, (33, 51)), codec="ffv1",
                                pixel_format="bgr0"))  # fmt: skip
    assert read(clip).shape == (3, *SIZE, 3)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[40:] = b"\0" * (len(data) - 40)
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, garble])
def test_damage_is_a_problem_and_no_crash(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = write_clip(tmp_path / "c.mp4", shades(20, SIZE))
    damage(path)
    with pytest.raises(ReadingError):
        open_clip(path).count(16)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("empty.mp4", b"", "not a picture or a clip"),
        ("text.mp4", b"a letter to somebody" * 20, "not a picture or a clip"),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n", "not a picture or"),
        ("list.ffconcat", b"ffconcat version 1.0\nfile other.mp4\n", "not a picture or a clip"),
    ],
)
def test_what_is_no_clip(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    write_clip(tmp_path / "other.mp4", shades(20, SIZE))
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ReadingError, match=problem):
        open_clip(path)


def test_any_damage_is_a_problem_at_most(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "c.mp4", shades(10, SIZE))
    whole, random = path.read_bytes(), np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        for place in random.integers(0, len(data), 8):
            data[place] = random.integers(256)
        path.write_bytes(data)
        try:
            clip = open_clip(path)
            list(clip.pictures(SIZE, 16, first=0, count=clip.count(16)))
        except ReadingError:
            refused += 1
    assert 0 < refused < 60


def test_sound_alone_a_folder_a_pipe_and_nothing_at_all(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ReadingError, match="a pipe, where a file is expected"):
        open_clip(tmp_path / "pipe.mp4")
    with pytest.raises(ReadingError, match="no pictures inside"):
        open_clip(write_sound(tmp_path / "sound.mov"))
    with pytest.raises(ReadingError, match="a folder, where a file is expected"):
        open_clip(tmp_path)
    with pytest.raises(ReadingError, match="cannot be read"):
        open_clip(tmp_path / "nowhere.mp4")


def test_a_long_one_is_read_no_further_than_the_limit(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "long.mp4", shades(40, SIZE), fps=0.5)
    with pytest.raises(ReadingError, match="longer than 60 s"):
        open_clip(path).count(16)
