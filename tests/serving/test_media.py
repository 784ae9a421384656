"""H.264, JPEG and MP4 as other programs read them, and recordings on disk."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from longlive_trt.runtime.output.h264 import yuv_frame
from longlive_trt.serving.live.kept.recording import Recording
from longlive_trt.serving.media.h264 import BlockEncoder, Sample
from longlive_trt.serving.media.jpeg import encode_jpeg
from longlive_trt.serving.media.mp4 import Timing, file_head, fragment, initialization

FPS = Fraction(16)
COLORS = ((200, 40, 40), (40, 160, 60), (40, 60, 200))


def block(color: tuple[int, ...], frames: int, height: int = 48, width: int = 64) -> Any:
    pixels = np.empty((frames, height, width, 3), np.uint8)
    pixels[:] = color
    return pixels


def blocks(encoder: BlockEncoder) -> list[list[Sample]]:
    counts = (9, 12, 12)
    pairs = zip(COLORS, counts, strict=True)
    return [list(encoder.encode(block(color, count))) for color, count in pairs]


def decoded(data: bytes) -> list[tuple[float, Any]]:
    with av.open(io.BytesIO(data)) as container:
        return [
            (float(frame.time or 0), frame.to_ndarray(format="rgb24").mean((0, 1)))
            for frame in container.decode(video=0)
        ]


def assert_plays(data: bytes, first: int = 0, frames: int = 33) -> None:
    found = decoded(data)
    assert len(found) == frames
    assert [time for time, _ in found] == pytest.approx([n / 16 for n in range(frames)])
    for number, (_, color) in enumerate(found):
        index = 0 if first + number < 9 else 1 if first + number < 21 else 2
        assert color == pytest.approx(COLORS[index], abs=8)


@pytest.fixture(scope="module")
def encoder() -> BlockEncoder:
    return BlockEncoder(64, 48, FPS)


def test_every_block_begins_with_its_only_key_frame(encoder: BlockEncoder) -> None:
    for samples in blocks(encoder):
        assert [sample.is_key for sample in samples] == [True] + [False] * (len(samples) - 1)


def test_a_blocks_bytes_depend_on_its_pictures_alone(encoder: BlockEncoder) -> None:
    alone = list(BlockEncoder(64, 48, FPS).encode(block(COLORS[1], 12)))
    assert blocks(encoder)[1] == alone


def test_a_picture_comes_out_as_soon_as_it_went_in(encoder: BlockEncoder) -> None:
    pixels = block(COLORS[0], 12)
    asked: list[int] = []

    class Watched(list[Any]):
        def __iter__(self) -> Any:
            for number, picture in enumerate(pixels):
                asked.append(number)
                yield picture

    samples = encoder.encode(Watched())  # type: ignore[arg-type]
    next(samples)
    assert asked == [0]


def test_odd_sizes_are_padded() -> None:
    encoder = BlockEncoder(33, 21, FPS)
    assert (encoder.facts.width, encoder.facts.height) == (34, 22)
    assert len(list(encoder.encode(block(COLORS[0], 9, 21, 33)))) == 9


def test_what_a_decoder_is_told(encoder: BlockEncoder) -> None:
    facts = encoder.facts
    assert facts.codec.startswith("avc1.64") and len(facts.codec) == 11
    # An avcC record: version 1, then profile and level as the codec's name has them.
    assert facts.description[0] == 1 and facts.description[1:4].hex() == facts.codec[5:]


def test_fragments_in_their_order_are_a_video(encoder: BlockEncoder) -> None:
    timing, start = Timing(FPS), 0
    data = initialization(encoder.facts, timing)
    for number, samples in enumerate(blocks(encoder), 1):
        data += fragment(number, start, samples, timing)
        start += len(samples)
    assert_plays(data)


def test_a_rate_over_1001_is_exact() -> None:
    timing = Timing(Fraction(24000, 1001))
    assert (timing.timescale, timing.frame_ticks) == (24000, 1001)


def test_a_whole_file_has_its_index_first(encoder: BlockEncoder) -> None:
    samples = [sample for one in blocks(encoder) for sample in one]
    keys = [number for number, sample in enumerate(samples) if sample.is_key]
    sizes = [len(sample.data) for sample in samples]
    head = file_head(encoder.facts, Timing(FPS), sizes, keys)
    assert head[4:8] == b"ftyp" and head[-4:] == b"mdat"
    assert_plays(head + b"".join(sample.data for sample in samples))


def test_a_picture_as_jpeg() -> None:
    data = encode_jpeg(block(COLORS[1], 1)[0], 80)
    assert data[:2] == b"\xff\xd8"
    (picture,) = decoded(data)
    assert picture[1] == pytest.approx(COLORS[1], abs=6)
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    assert len(encode_jpeg(noise, 20)) < len(encode_jpeg(noise, 95))


# ---- recordings ------------------------------------------------------------------------------


@pytest.fixture
def recording(tmp_path: Path, encoder: BlockEncoder) -> Any:
    recording = Recording(tmp_path / "samples", encoder.facts, Timing(FPS))
    frame = 0
    for samples in blocks(encoder):
        for sample in samples:
            recording.add(frame, sample)
            frame += 1
    yield recording
    recording.close()
    assert not list(tmp_path.iterdir())


def test_all_of_a_recording(recording: Recording) -> None:
    excerpt = recording.excerpt()
    assert excerpt is not None
    data = b"".join(excerpt.read())
    assert len(data) == excerpt.size_bytes
    assert_plays(data)


def test_the_last_of_a_recording_begins_with_a_key_frame(recording: Recording) -> None:
    excerpt = recording.excerpt(last_s=1.0)
    assert excerpt is not None and (excerpt.first_frame, excerpt.frames) == (9, 24)
    assert_plays(b"".join(excerpt.read()), first=9, frames=24)


def test_what_was_taken_back_is_not_in_it(recording: Recording, encoder: BlockEncoder) -> None:
    before = recording.excerpt()
    assert before is not None
    recording.cut(21)
    stray, *_ = encoder.encode(block(COLORS[0], 1))
    # What does not follow is of an earlier line.
    recording.add(30, stray)
    assert recording.frames == 21
    for number, sample in enumerate(encoder.encode(block(COLORS[0], 12))):
        recording.add(21 + number, sample)
    # A download that began before is still whole.
    assert_plays(b"".join(before.read()))
    after = recording.excerpt()
    assert after is not None
    colors = [color for _, color in decoded(b"".join(after.read()))]
    assert len(colors) == 33 and colors[-1] == pytest.approx(COLORS[0], abs=8)


def test_a_recording_that_cannot_go_on_keeps_what_it_has(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def write(self, _data: bytes) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(recording._kept._segments[-1], "file", Full())
    recording.add(33, Sample(b"x", True))
    assert recording.failure == "No space left on device" and recording.frames == 33


def test_of_a_long_recording_the_last_stays(tmp_path: Path, encoder: BlockEncoder) -> None:
    most_bytes = 160_000
    recording = Recording(
        tmp_path / "samples", encoder.facts, Timing(FPS), begin=5, most_bytes=most_bytes
    )
    noise, frame, before = np.random.default_rng(0), 5, None
    for number in range(60):
        for sample in encoder.encode(noise.integers(0, 256, (2, 48, 64, 3), np.uint8)):
            recording.add(frame, sample)
            frame += 1
        if number == 3:
            before = recording.excerpt()
        kept = sum(path.stat().st_size for path in tmp_path.iterdir())
        assert kept <= most_bytes * 1.5
    excerpt = recording.excerpt()
    assert excerpt is not None and before is not None
    assert recording.begin > 5 and excerpt.first_frame == recording.begin
    assert excerpt.first_frame + excerpt.frames == frame
    assert recording.total == frame - 5 > recording.frames
    assert len(decoded(b"".join(excerpt.read()))) == excerpt.frames
    assert recording.excerpt(until=5) is None
    # A download that began before the beginning went is still whole.
    assert len(decoded(b"".join(before.read()))) == before.frames
    recording.cut(recording.begin)
    assert recording.frames == 0 and len(list(tmp_path.iterdir())) == 1
    recording.close()
    assert recording.excerpt() is None and not list(tmp_path.iterdir())


def test_nothing_recorded(tmp_path: Path, encoder: BlockEncoder) -> None:
    recording = Recording(tmp_path / "samples", encoder.facts, Timing(FPS))
    assert recording.excerpt() is None
    recording.close()


@pytest.mark.parametrize(("height", "width"), [(48, 64), (95, 161), (480, 832)])
def test_a_reformatter_that_is_kept_changes_no_bit(height: int, width: int) -> None:
    random, kept = np.random.default_rng(3), VideoReformatter()
    for _ in range(3):
        picture = random.integers(0, 256, (height, width, 3), np.uint8)
        padded = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        fresh = av.VideoFrame.from_ndarray(padded, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame = yuv_frame(picture, reformatter=kept)
        assert np.array_equal(frame.to_ndarray(), fresh.to_ndarray())
