"""Codecs, pixel formats and rates that people's files have: right, or refused in one line."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from longlive_trt.configs.loader import load_config
from longlive_trt.reading.clips import Clip, open_clip
from longlive_trt.reading.failures import ReadingError
from longlive_trt.runtime.starting.start import open_start
from tests.fakes.clips import shades, write_clip

SIZE = (32, 48)
LEFT, RIGHT = (200, 30, 40), (20, 60, 110)
Pixels = np.ndarray[Any, Any]


def split(size: tuple[int, int] = SIZE) -> Pixels:
    """Red on the left, and blue on the right."""
    picture = np.empty((*size, 3), np.uint8)
    picture[:, : size[1] // 2], picture[:, size[1] // 2 :] = LEFT, RIGHT
    return picture


def read(clip: Clip, size: tuple[int, int] = SIZE) -> Pixels:
    return np.stack(list(clip.pictures(size, 16, first=0, count=clip.count(16))))


def require_split(clip: Clip, *, gray: bool = False) -> None:
    """Both halves have their colors, far from their edge."""
    for picture in read(clip):
        for place, color in ((8, LEFT), (40, RIGHT)):
            wanted = np.full(3, np.dot((0.299, 0.587, 0.114), color)) if gray else color
            assert np.abs(picture[16, place].astype(float) - wanted).max() <= 4


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [
        ("yuv420.mp4", "libx264", "yuv420p"),
        ("yuv422.mp4", "libx264", "yuv422p"),
        ("yuv444.mp4", "libx264", "yuv444p"),
        ("ten-bit.mp4", "libx264", "yuv420p10le"),
        ("ten-bit-422.mov", "prores_ks", "yuv422p10le"),
        ("sixteen-bit.mkv", "ffv1", "gbrp16le"),
        ("alpha.mkv", "ffv1", "yuva420p"),
        ("full-range.avi", "mjpeg", "yuvj420p"),
        ("vp9.webm", "libvpx-vp9", "yuv420p"),
    ],
)
def test_pixel_formats_come_as_their_colors(
    tmp_path: Path, name: str, codec: str, pixel_format: str
) -> None:
    path = write_clip(tmp_path / name, [split()] * 9, codec=codec, pixel_format=pixel_format)
    clip = open_clip(path)
    assert (clip.fps, clip.count(16), clip.remarks) == (16, 9, ())
    require_split(clip)


@pytest.mark.parametrize("pixel_format", ["gray", "gray16le"])
def test_gray_clips_are_gray(tmp_path: Path, pixel_format: str) -> None:
    pictures = [split()] * 3
    clip = open_clip(
        write_clip(tmp_path / "g.mkv", pictures, codec="ffv1", pixel_format=pixel_format)
    )
    require_split(clip, gray=True)


@pytest.mark.parametrize(
    ("space", "matrix"), [(Colorspace.ITU709, "bt709"), (Colorspace.ITU601, "smpte170m")]
)
def test_the_matrix_that_a_file_names_is_used(
    tmp_path: Path, space: Colorspace, matrix: str
) -> None:
    source = write_clip(tmp_path / "rgb.mp4", [split()] * 9)
    path = tmp_path / "yuv.mp4"
    with av.open(str(source)) as read_from, av.open(str(path), "w") as container:
        options = {"qp": "0", "x264-params": f"colormatrix={matrix}"}
        stream: Any = container.add_stream("libx264", rate=16, options=options)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv444p"
        for frame in read_from.decode(video=0):
            converted = frame.reformat(
                format="yuv444p", dst_colorspace=space, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    require_split(open_clip(path))


@pytest.mark.parametrize("turned", [90, 180, 270])
def test_a_turned_camera_s_clip_stands_upright(tmp_path: Path, turned: int) -> None:
    upright = split()
    stored = np.ascontiguousarray(np.rot90(upright, -turned // 90))
    clip = open_clip(write_clip(tmp_path / "c.mp4", [stored] * 3, turned=turned))
    assert (clip.width, clip.height) == (48, 32)
    require_split(clip)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_turned_camera_s_photo_stands_upright(tmp_path: Path, suffix: str) -> None:
    picture = Image.fromarray(np.ascontiguousarray(np.rot90(split())))
    tags = picture.getexif()
    tags[0x0112] = 6
    path = tmp_path / f"photo.{suffix}"
    picture.save(path, exif=tags, quality=95)
    clip = open_clip(path)
    assert (clip.width, clip.height, clip.is_picture) == (48, 32, True)
    require_split(clip)


@pytest.mark.parametrize("size", [(33, 51), (31, 47), (35, 48)])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p"])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int], pixel_format: str) -> None:
    pictures = [split(size)] * 2
    path = write_clip(tmp_path / "c.mkv", pictures, codec="ffv1", pixel_format=pixel_format)
    clip = open_clip(path)
    assert (clip.height, clip.width) == size
    require_split(clip)


# ---- rates -----------------------------------------------------------------------------------


def tones(clip: Clip) -> list[int]:
    return [round((float(picture.mean()) - 10) / 5) for picture in read(clip)]


def test_a_picture_every_three_seconds_stays_so_long(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "slow.mp4", shades(5, SIZE), fps=1 / 3)
    clip = open_clip(path)
    assert clip.fps == Fraction(1, 3)
    assert tones(clip) == [number for number in range(5) for _ in range(48)]


def test_one_that_stays_is_scaled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = open_clip(write_clip(tmp_path / "slow.mp4", shades(4, SIZE), fps=1 / 3))
    scaled: list[object] = []
    inner = Clip._fitted
    monkeypatch.setattr(Clip, "_fitted", lambda *given: (scaled.append(given[1]), inner(*given))[1])
    assert len(read(clip)) == 4 * 48 and len(scaled) == 4


@pytest.mark.parametrize(("count", "fps"), [(2, 1 / 40), (21, 1 / 3), (3, 1 / 100)])
def test_the_last_picture_counts_for_as_long_as_it_is_seen(
    tmp_path: Path, count: int, fps: float
) -> None:
    """However few pictures there are."""
    clip = open_clip(write_clip(tmp_path / "slow.mp4", shades(count, SIZE), fps=fps))
    with pytest.raises(ReadingError, match="longer than 60 s"):
        clip.count(16)
    minute = open_clip(write_clip(tmp_path / "minute.mp4", shades(20, SIZE), fps=1 / 3))
    assert minute.count(16) == 960


@pytest.mark.parametrize("name", ["one.mp4", "one.mkv", "one.mov"])
@pytest.mark.parametrize("fps", [16, 1 / 100])
def test_a_clip_of_one_picture_is_a_picture(tmp_path: Path, name: str, fps: float) -> None:
    clip = open_clip(write_clip(tmp_path / name, [split()], fps=fps))
    assert clip.is_picture and clip.count(16) == 1
    require_split(clip)


def test_a_changing_rate_is_what_is_on_the_screen(tmp_path: Path) -> None:
    times_ms = [0, 100, 150, 700, 900, 1000]
    path = write_clip(tmp_path / "c.mkv", shades(6, SIZE), times_ms=times_ms)
    ticks_ms = np.arange(16) * 62.5
    wanted = [int(np.searchsorted(times_ms, tick + 1, "right")) - 1 for tick in ticks_ms]
    assert tones(open_clip(path))[:16] == wanted


def test_a_gif_s_pictures_have_times_of_their_own(tmp_path: Path) -> None:
    pictures = [Image.fromarray(shade) for shade in shades(3, SIZE)]
    path = tmp_path / "c.gif"
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=[250, 500, 1000], loop=0
    )
    assert tones(open_clip(path)) == [0] * 4 + [1] * 8 + [2] * 16


# ---- pictures --------------------------------------------------------------------------------


def changed(mode: str) -> Image.Image:
    return Image.fromarray(split()).convert(mode)


PICTURES: dict[str, tuple[str, Callable[[], Image.Image]]] = {
    "CMYK JPEG": ("p.jpg", lambda: changed("CMYK")),
    "CMYK TIFF": ("p.tiff", lambda: changed("CMYK")),
    "palette": ("p.png", lambda: Image.fromarray(split()).quantize(8)),
    "opaque alpha": ("p.png", lambda: changed("RGBA")),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_kinds_of_pictures(tmp_path: Path, kind: str) -> None:
    name, make = PICTURES[kind]
    make().save(tmp_path / name, quality=95)
    clip = open_clip(tmp_path / name)
    assert clip.is_picture and clip.remarks == ()
    require_split(clip)


@pytest.mark.parametrize(
    ("name", "mode"), [("p.jpg", "L"), ("p.png", "L"), ("p.png", "LA"), ("p.png", "I;16")]
)
def test_gray_pictures(tmp_path: Path, name: str, mode: str) -> None:
    gray = np.asarray(changed("L"))
    picture = changed(mode) if mode != "I;16" else Image.fromarray(gray.astype(np.uint16) * 257)
    picture.save(tmp_path / name)
    require_split(open_clip(tmp_path / name), gray=True)


@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_what_is_transparent_is_white(tmp_path: Path, suffix: str) -> None:
    """And nothing of what may lie hidden there."""
    alpha = np.full((*SIZE, 1), 255, np.uint8)
    alpha[:, 24:] = 0
    path = tmp_path / f"p.{suffix}"
    Image.fromarray(np.concatenate([split(), alpha], axis=2)).save(path, lossless=True)
    clip = open_clip(path)
    assert clip.remarks == ("what is transparent is white",)
    (picture,) = read(clip)
    assert np.abs(picture[16, 8].astype(int) - LEFT).max() <= 4
    assert (picture[16, 40] == 255).all()


def test_half_of_it_shines_through(tmp_path: Path) -> None:
    alpha = np.full((*SIZE, 1), 51, np.uint8)
    Image.fromarray(np.concatenate([split(), alpha], axis=2)).save(tmp_path / "p.png")
    (picture,) = read(open_clip(tmp_path / "p.png"))
    assert picture[16, 8].tolist() == [round(0.2 * color + 0.8 * 255) for color in LEFT]


# ---- what is refused, or told ----------------------------------------------------------------


def test_an_animated_webp_is_named(tmp_path: Path) -> None:
    pictures = [Image.fromarray(shade) for shade in shades(3, SIZE)]
    path = tmp_path / "c.webp"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    with pytest.raises(ReadingError, match=r"an animated WebP.*save it as GIF, PNG or MP4"):
        open_clip(path)


def test_the_cover_of_a_sound_is_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    Image.fromarray(split()).save(tmp_path / "cover.jpg")
    with (
        av.open(str(tmp_path / "cover.jpg")) as cover,
        av.open(str(path), "w", format="mp4") as container,
    ):
        sound: Any = container.add_stream("aac", rate=8000)
        picture: Any = container.add_stream_from_template(cover.streams.video[0])
        picture.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 8000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
        packet = next(cover.demux(video=0))
        packet.stream = picture
        container.mux(packet)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(ReadingError, match="no pictures inside, only other streams"):
        open_clip(path)


def test_high_dynamic_range_is_told(tmp_path: Path) -> None:
    path = tmp_path / "hdr.mp4"
    options = {"x264-params": "colorprim=bt2020:transfer=arib-std-b67:colormatrix=bt2020nc"}
    write_clip(path, [split()] * 3, codec="libx264", pixel_format="yuv420p10le", options=options)
    clip = open_clip(path)
    assert clip.remarks == ("colors of high dynamic range are taken as they are, and look pale",)
    assert read(clip).shape == (3, *SIZE, 3)


class AnyBundle:
    def require(self, graph: str, purpose: str) -> None:
        """It has all graphs."""


@pytest.mark.parametrize(
    ("fps", "count", "said"),
    [
        (
            1 / 3,
            4,
            "0.3333 frames/s, so that each is shown for 48 of the video's; the video begins with "
            "the last 189 of 192 pictures (11.81 s)",
        ),
        (
            12,
            9,
            "12 frames/s, so that each is shown for 1.33 of the video's; the video begins with "
            "the last 9 of 12 pictures (0.56 s)",
        ),
    ],
)
def test_a_slow_rate_is_told(tmp_path: Path, fps: float, count: int, said: str) -> None:
    config = load_config("longlive-1.3b")
    path = write_clip(tmp_path / "slow.mp4", shades(count, (60, 104)), fps=fps)
    bundle: Any = AnyBundle()
    start = open_start(path, bundle, config, 1)
    assert start.notices[0].endswith(f"; {said}")
    assert start.frames % config.rollout.frames_per_block == 0
    transparent = np.zeros((60, 104, 4), np.uint8)
    Image.fromarray(transparent).save(tmp_path / "p.png")
    start = open_start(tmp_path / "p.png", bundle, config, 1)
    assert "; what is transparent is white; the video begins with it, held" in start.notices[0]
