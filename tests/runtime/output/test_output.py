import errno
import json
import os
import signal
import stat
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from safetensors.numpy import load_file

from longlive_trt.errors import OutputError, UsageError
from longlive_trt.runtime.output import (
    GifWriter,
    Mp4Writer,
    NullWriter,
    PngFolderWriter,
    check_file_output,
    check_output,
    mp4,
    muxed,
    open_writer,
    write_latents,
    write_sidecar,
)

HEIGHT, WIDTH, FPS = 48, 64, 16


def picture(index: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A gradient with a moving bright square: smooth enough for 4:2:0, different in each frame."""
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack(
        [columns * 200 // width, rows * 200 // height, np.full_like(rows, 40 + index % 100)], -1
    )
    left = 4 * index % (width - 16)
    image[8:24, left : left + 16] = (230, 180, 40)
    return image.astype(np.uint8)


def clip(count: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.stack([picture(index, height, width) for index in range(count)])


def decoded(path: Path) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def box_names(path: Path) -> list[bytes]:
    return [name for name, _, _ in mp4._boxes(path)]


@pytest.fixture
def video(tmp_path):
    return tmp_path / "video.mp4"


class TestMp4:
    @pytest.mark.parametrize("chunk", [1, 9, 40])
    def test_the_frames_come_back_in_order(self, video, chunk):
        frames = clip(40)
        with Mp4Writer(video, FPS, HEIGHT, WIDTH) as writer:
            for start in range(0, 40, chunk):
                writer.write(frames[start : start + chunk])
        assert writer.frames_written == 40
        shown = decoded(video)
        assert shown.shape == frames.shape
        right = [psnr(a, b) for a, b in zip(shown, frames, strict=True)]
        off_by_one = [psnr(a, b) for a, b in zip(shown[1:], frames, strict=False)]
        assert min(right) > 30
        assert max(off_by_one) < min(right)

    @pytest.mark.parametrize("fps", [16, 23.976, 24000 / 1001, 12.5, Fraction(30000, 1001)])
    def test_rate_and_length_are_exact(self, video, fps):
        with Mp4Writer(video, fps, HEIGHT, WIDTH) as writer:
            writer.write(clip(33))
        with av.open(video) as container:
            stream = container.streams.video[0]
            exact = muxed.exact_fps(fps)
            assert stream.average_rate == exact
            assert stream.start_time == 0
            assert stream.frames == 33
            assert stream.duration * stream.time_base == 33 / exact
            times = [frame.pts * stream.time_base for frame in container.decode(stream)]
        assert times == [index / exact for index in range(33)]

    @pytest.mark.parametrize(
        ("fps", "exact"),
        [(23.976023976023978, (24000, 1001)), (23.976, (2997, 125)), (16, (16, 1))],
    )
    def test_rates_become_the_fraction_that_was_meant(self, fps, exact):
        assert muxed.exact_fps(fps) == Fraction(*exact)

    @pytest.mark.parametrize("name", ["video.mp4", "video.mov", "VIDEO.MP4"])
    def test_it_starts_fast_and_plays_everywhere(self, tmp_path, name):
        path = tmp_path / name
        with open_writer(path, FPS, HEIGHT, WIDTH, overwrite=False) as writer:
            writer.write(clip(20))
        names = box_names(path)
        assert names.index(b"moov") < names.index(b"mdat")
        assert b"moof" not in names
        with av.open(path) as container:
            context = container.streams.video[0].codec_context
            assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
            assert (context.width, context.height) == (WIDTH, HEIGHT)
            colors = (context.color_range, context.colorspace)
            assert (*colors, context.color_primaries, context.color_trc) == (1, 1, 1, 1)
        assert left_in(tmp_path) == [name]

    @pytest.mark.parametrize(
        "color", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 90, 30)]
    )
    def test_colors_are_bt709_limited_range(self, video, color):
        with Mp4Writer(video, FPS, 16, 16, crf=1) as writer:
            writer.write(np.full((4, 16, 16, 3), color, np.uint8))
        with av.open(video) as container:
            planes = next(container.decode(video=0)).to_ndarray(format="yuv420p")
        red, green, blue = (value / 255 for value in color)
        luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        expected = [
            16 + 219 * luma,
            128 + 224 * (blue - luma) / 1.8556,
            128 + 224 * (red - luma) / 1.5748,
        ]
        found = [planes[:16].mean(), planes[16:20].mean(), planes[20:].mean()]
        np.testing.assert_allclose(found, expected, atol=1.2)

    @pytest.mark.parametrize(("height", "width"), [(47, 63), (48, 63), (1, 1), (2, 2)])
    def test_odd_sizes_are_padded_with_the_edge_and_said(self, video, height, width):
        frame = np.zeros((height, width, 3), np.uint8)
        frame[:, -1], frame[-1] = 200, 200
        with Mp4Writer(video, FPS, height, width) as writer:
            writer.write(np.stack([frame] * 3))
        shown = decoded(video)[0]
        assert shown.shape == (height + height % 2, width + width % 2, 3)
        assert bool(writer.notices) == bool(height % 2 or width % 2)
        assert shown[-1, -1].min() > 180

    def test_nothing_written_leaves_nothing(self, video):
        Mp4Writer(video, FPS, HEIGHT, WIDTH).close()
        assert left_in(video.parent) == []

    def test_the_name_appears_only_when_the_file_is_whole(self, video):
        writer = Mp4Writer(video, FPS, HEIGHT, WIDTH)
        writer.write(clip(10))
        assert not video.exists()
        writer.close()
        assert video.exists()

    def test_closing_twice_is_harmless_and_writing_then_is_not(self, video):
        writer = Mp4Writer(video, FPS, HEIGHT, WIDTH)
        writer.write(clip(3))
        writer.close()
        video.unlink()
        writer.close()
        assert not video.exists()
        with pytest.raises(ValueError, match="closed"):
            writer.write(clip(1))

    def test_an_error_elsewhere_keeps_the_frames_so_far(self, video):
        def generate() -> None:
            with Mp4Writer(video, FPS, HEIGHT, WIDTH) as writer:
                writer.write(clip(21))
                raise RuntimeError("the engine failed")

        with pytest.raises(RuntimeError, match="engine"):
            generate()
        assert len(decoded(video)) == 21

    def test_what_a_killed_run_leaves_behind_plays(self, video):
        writer = Mp4Writer(video, FPS, HEIGHT, WIDTH)
        writer.write(clip(100))
        (partial,) = video.parent.glob(".*.partial.mp4")
        assert len(decoded(partial)) >= 32
        writer.close()

    def test_the_copy_finds_no_room(self, video, monkeypatch):
        hidden = Mp4Writer._hidden
        places = {"copy": Path("/dev/full")}
        monkeypatch.setattr(
            Mp4Writer, "_hidden", lambda writer, name: places.get(name) or hidden(writer, name)
        )
        monkeypatch.setattr(Path, "unlink", _unlink_regular_files_only)
        with Mp4Writer(video, FPS, HEIGHT, WIDTH) as writer:
            writer.write(clip(40))
        assert "fragmented" in writer.notices[0]
        frames = decoded(video)
        assert len(frames) == 40
        assert psnr(frames, clip(40)) > 30
        assert left_in(video.parent) == ["video.mp4"]

    def test_permissions_follow_the_umask(self, video):
        with Mp4Writer(video, FPS, HEIGHT, WIDTH) as writer:
            writer.write(clip(1))
        umask = os.umask(0)
        os.umask(umask)
        assert stat.S_IMODE(video.stat().st_mode) == 0o666 & ~umask


_unlink = Path.unlink


def _unlink_regular_files_only(path: Path, missing_ok: bool = False) -> None:
    # The test runs as root in some places, and /dev/full must survive it.
    if path.is_file():
        _unlink(path, missing_ok)


class TestInterrupts:
    @pytest.fixture(autouse=True)
    def python_handler(self):
        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, previous)

    def test_ctrl_c_inside_an_encoder_loses_no_frame(self, video, monkeypatch):
        encode = Mp4Writer._write_frame

        def interrupted(writer, frame):
            encode(writer, frame)
            if writer.frames_written == 7:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(Mp4Writer, "_write_frame", interrupted)
        writer = Mp4Writer(video, FPS, HEIGHT, WIDTH)
        with pytest.raises(KeyboardInterrupt), writer:
            writer.write(clip(12))
        assert len(decoded(video)) == 12
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_ctrl_c_while_closing_waits_for_the_file(self, video, monkeypatch):
        remux = mp4.remux

        def interrupted(*arguments):
            signal.raise_signal(signal.SIGINT)
            remux(*arguments)

        monkeypatch.setattr(mp4, "remux", interrupted)
        writer = Mp4Writer(video, FPS, HEIGHT, WIDTH)
        writer.write(clip(5))
        with pytest.raises(KeyboardInterrupt):
            writer.close()
        assert len(decoded(video)) == 5
        assert left_in(video.parent) == ["video.mp4"]


class TestPngFolder:
    def test_frames_are_exact_and_numbered(self, tmp_path):
        frames = clip(12, 31, 37)
        with open_writer(f"{tmp_path}/frames/", FPS, 31, 37, overwrite=False) as writer:
            writer.write(frames[:9])
            assert not (tmp_path / "frames").exists()
            writer.write(frames[9:])
        assert isinstance(writer, PngFolderWriter)
        names = left_in(tmp_path / "frames")
        assert names == [f"frame_{index:06d}.png" for index in range(12)]
        for name, frame in zip(names, frames, strict=True):
            np.testing.assert_array_equal(decoded(tmp_path / "frames" / name)[0], frame)
        assert left_in(tmp_path) == ["frames"]

    def test_mp4_shows_the_same_pictures(self, tmp_path, video):
        frames = clip(25)
        for path in (video, tmp_path / "frames"):
            with open_writer(path, FPS, HEIGHT, WIDTH, overwrite=False) as writer:
                writer.write(frames)
        from_png = np.concatenate([decoded(p) for p in sorted((tmp_path / "frames").iterdir())])
        from_mp4 = decoded(video)
        assert min(psnr(a, b) for a, b in zip(from_mp4, from_png, strict=True)) > 30

    def test_overwriting_replaces_all_old_frames(self, tmp_path):
        target = tmp_path / "frames"
        for count, value in ((5, 10), (2, 20)):
            with open_writer(target, FPS, 8, 8, overwrite=True) as writer:
                writer.write(np.full((count, 8, 8, 3), value, np.uint8))
        assert len(left_in(target)) == 2
        assert decoded(target / "frame_000001.png").max() == 20
        assert left_in(tmp_path) == ["frames"]

    def test_an_empty_folder_is_filled(self, tmp_path):
        (tmp_path / "frames").mkdir()
        with open_writer(tmp_path / "frames", FPS, 8, 8, overwrite=False) as writer:
            writer.write(np.zeros((1, 8, 8, 3), np.uint8))
        assert left_in(tmp_path / "frames") == ["frame_000000.png"]

    def test_a_folder_with_other_files_is_never_replaced(self, tmp_path):
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(UsageError, match=r"holds other files than frames \(thesis.tex\)"):
            open_writer(f"{tmp_path}/", FPS, 8, 8, overwrite=True)
        assert left_in(tmp_path) == ["thesis.tex"]

    def test_a_file_that_appears_during_the_run_survives(self, tmp_path):
        target = tmp_path / "frames"
        target.mkdir()
        writer = open_writer(target, FPS, 8, 8, overwrite=False)
        writer.write(np.zeros((1, 8, 8, 3), np.uint8))
        (target / "notes.txt").write_text("keep me")
        writer.close()
        writer.close()
        assert (target / "notes.txt").read_text() == "keep me"
        assert left_in(tmp_path) == ["frames", "frames-2"]
        assert left_in(tmp_path / "frames-2") == ["frame_000000.png"]
        assert "frames: appeared while the video was made" in writer.notices[0]

    def test_a_file_that_appears_among_old_frames_survives(self, tmp_path):
        target = tmp_path / "frames"
        for appears in (False, True):
            with open_writer(target, FPS, 8, 8, overwrite=True) as writer:
                writer.write(np.zeros((1, 8, 8, 3), np.uint8))
                if appears:
                    (target / "notes.txt").write_text("keep me")
        assert left_in(target) == ["frame_000000.png"]
        assert (tmp_path / "frames-replaced" / "notes.txt").read_text() == "keep me"

    def test_nothing_written_leaves_nothing(self, tmp_path):
        PngFolderWriter(tmp_path / "frames", 8, 8).close()
        assert left_in(tmp_path) == []


class TestGif:
    def test_frames_rate_and_colors(self, tmp_path):
        path = tmp_path / "video.gif"
        frames = clip(32)
        with open_writer(path, FPS, HEIGHT, WIDTH, overwrite=False) as writer:
            assert isinstance(writer, GifWriter)
            writer.write(frames)
            assert not path.exists()
        shown = decoded(path)
        assert shown.shape == frames.shape
        assert min(psnr(a, b) for a, b in zip(shown, frames, strict=True)) > 28
        with av.open(path) as container:
            assert container.duration == pytest.approx(2 * av.time_base, abs=0.01 * av.time_base)
        assert left_in(tmp_path) == ["video.gif"]

    def test_few_colors_stay_exact(self, tmp_path):
        colors = np.random.default_rng(0).integers(0, 8, (3, 8, 8, 3)) * 32 + 16
        frames = np.kron(colors, np.ones((1, 6, 8, 1))).astype(np.uint8)
        with GifWriter(tmp_path / "video.gif", FPS, HEIGHT, WIDTH) as writer:
            writer.write(frames)
        np.testing.assert_allclose(decoded(tmp_path / "video.gif"), frames, atol=1)

    @pytest.mark.parametrize("fps", [60, Fraction(60)])
    def test_too_fast_for_a_gif(self, tmp_path, fps):
        with pytest.raises(UsageError, match="at most 50 frames/s, and this video has 60"):
            open_writer(tmp_path / "video.gif", fps, 8, 8, overwrite=False)
        assert left_in(tmp_path) == []

    def test_nothing_written_leaves_nothing(self, tmp_path):
        GifWriter(tmp_path / "video.gif", FPS, 8, 8).close()
        assert left_in(tmp_path) == []


class TestNull:
    def test_it_counts(self):
        with open_writer(None, FPS, 8, 8, overwrite=False) as writer:
            writer.write(clip(4, 8, 8))
        assert isinstance(writer, NullWriter)
        assert writer.frames_written == 4


class TestFrames:
    @pytest.mark.parametrize(
        "frames",
        [np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 8, 9, 3), np.uint8), clip(1, 8, 8)[0]],
    )
    def test_other_frames_than_promised_are_refused(self, frames):
        with pytest.raises(ValueError, match=r"expected uint8 \[n, 8, 8, 3\]"):
            NullWriter(8, 8).write(frames)

    def test_any_memory_layout_is_taken(self, tmp_path):
        channels_first = np.ascontiguousarray(np.moveaxis(clip(3), -1, 1))
        with PngFolderWriter(tmp_path / "frames", HEIGHT, WIDTH) as writer:
            writer.write(np.moveaxis(channels_first, 1, -1))
        shown = decoded(tmp_path / "frames" / "frame_000002.png")[0]
        np.testing.assert_array_equal(shown, picture(2))


class TestCheck:
    def test_an_existing_file_needs_overwrite(self, video):
        video.write_bytes(b"precious")
        with pytest.raises(UsageError, match=r"video.mp4: already exists; add --overwrite"):
            check_output(video, overwrite=False)
        check_output(video, overwrite=True)
        with open_writer(video, FPS, 16, 16, overwrite=True) as writer:
            assert video.read_bytes() == b"precious"
            writer.write(clip(2, 16, 32)[:, :, :16])
        assert len(decoded(video)) == 2

    def test_existing_frames_need_overwrite(self, tmp_path):
        (tmp_path / "frame_000000.png").touch()
        with pytest.raises(UsageError, match="already holds frames; add --overwrite"):
            check_output(f"{tmp_path}/", overwrite=False)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("video.avi", r"ending '.avi'; use one of .mp4, .mov, .gif, or end the name with /"),
            ("folder.mp4", "is a folder; give the name of a file"),
            ("file", "is a file, not a folder"),
            ("file/", "is a file, not a folder"),
            ("pipe.mp4", "is not an ordinary file"),
        ],
    )
    def test_impossible_names(self, tmp_path, name, message):
        (tmp_path / "folder.mp4").mkdir()
        (tmp_path / "file").touch()
        os.mkfifo(tmp_path / "pipe.mp4")
        with pytest.raises(UsageError, match=message):
            check_output(f"{tmp_path}/{name}", overwrite=True)

    @pytest.mark.parametrize("name", ["file/video.mp4", "file/frames/", "x" * 300 + ".mp4"])
    def test_impossible_places(self, tmp_path, name):
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="choose another"):
            check_output(f"{tmp_path}/{name}", overwrite=False)

    @pytest.mark.parametrize("place", ["/proc/longlive", "/dev", "/dev/../sys"])
    def test_a_place_that_is_the_systems(self, place):
        with pytest.raises(UsageError, match="a place of the system's own"):
            check_output(f"{place}/video.mp4", overwrite=False)

    def test_a_place_that_takes_no_files(self, tmp_path, monkeypatch):
        def refuse(**_: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
        with pytest.raises(OutputError, match="cannot be written to"):
            check_output(tmp_path / "video.mp4", overwrite=False)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_read_only_folder(self, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(OutputError, match="cannot be written to"):
            check_output(tmp_path / "video.mp4", overwrite=False)

    def test_parents_are_made_by_the_writer_and_not_by_the_check(self, tmp_path):
        target = tmp_path / "a" / "b" / "video.mp4"
        check_output(target, overwrite=False)
        assert left_in(tmp_path) == []
        with open_writer(target, FPS, 16, 16, overwrite=False) as writer:
            writer.write(np.zeros((1, 16, 16, 3), np.uint8))
        assert target.is_file()

    def test_a_long_name_leaves_room_for_the_temporary_one(self, tmp_path):
        target = tmp_path / ("ü" * 120 + ".mp4")
        with open_writer(target, FPS, 16, 16, overwrite=False) as writer:
            writer.write(np.zeros((1, 16, 16, 3), np.uint8))
        assert target.is_file()

    def test_other_files(self, tmp_path):
        check_file_output(tmp_path / "latents.safetensors", overwrite=False)
        (tmp_path / "latents.safetensors").touch()
        with pytest.raises(UsageError, match="already exists"):
            check_file_output(tmp_path / "latents.safetensors", overwrite=False)

    def test_names_relative_to_the_working_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with open_writer("video.mp4", FPS, 16, 16, overwrite=False) as writer:
            writer.write(np.zeros((1, 16, 16, 3), np.uint8))
        assert left_in(tmp_path) == ["video.mp4"]


class TestData:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_latents_are_float32(self, tmp_path, dtype):
        latents = np.arange(24, dtype=dtype).reshape(1, 2, 3, 4).transpose(0, 3, 2, 1)
        write_latents(tmp_path / "new" / "latents.safetensors", latents)
        stored = load_file(tmp_path / "new" / "latents.safetensors")
        assert list(stored) == ["latents"]
        assert stored["latents"].dtype == np.float32
        np.testing.assert_array_equal(stored["latents"], latents)
        assert left_in(tmp_path / "new") == ["latents.safetensors"]

    def test_the_sidecar_lies_beside_the_video(self, video):
        values = {"seed": 7, "prompts": ["köd"], "bundle": Path("b")}
        path = write_sidecar(video, values)
        assert path.name == "video.mp4.json"
        assert json.loads(path.read_text(encoding="utf-8")) == {**values, "bundle": "b"}
        assert left_in(video.parent) == ["video.mp4.json"]

    def test_a_failed_write_leaves_the_old_file(self, video, monkeypatch):
        path = write_sidecar(video, {"seed": 1})
        monkeypatch.setattr(Path, "write_text", lambda *_, **__: _write_to_a_full_disk())
        with pytest.raises(OutputError, match=r"video.mp4.json: cannot be written \(No space left"):
            write_sidecar(video, {"seed": 2})
        assert json.loads(path.read_bytes()) == {"seed": 1}
        assert left_in(video.parent) == ["video.mp4.json"]


def _write_to_a_full_disk() -> None:
    with Path("/dev/full").open("w") as file:
        file.write("x")
