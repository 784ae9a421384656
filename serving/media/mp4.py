"""MP4 around samples that are H.264 already: fragments for streaming, whole files for keeping.

Written by hand (ISO/IEC 14496-12 and -15), because nothing is to be encoded or held twice: a whole
file's index is known before its first byte is sent.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from longlive_trt.serving.media.h264 import Sample, StreamFacts

_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
_KEY_FLAGS, _OTHER_FLAGS = 0x02000000, 0x01010000
_32_BITS = 1 << 32


@dataclass(frozen=True)
class Timing:
    """A tick is one picture's share of a second, so that rates over 1001 are exact."""

    fps: Fraction

    @property
    def timescale(self) -> int:
        return self.fps.numerator

    @property
    def frame_ticks(self) -> int:
        return self.fps.denominator


def box(kind: bytes, *parts: bytes) -> bytes:
    size = 8 + sum(len(part) for part in parts)
    return struct.pack(">I4s", size, kind) + b"".join(parts)


def full_box(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def initialization(stream: StreamFacts, timing: Timing) -> bytes:
    """What comes before the first fragment."""
    tables = [
        full_box(b"stts", 0, 0, struct.pack(">I", 0)),
        full_box(b"stsc", 0, 0, struct.pack(">I", 0)),
        full_box(b"stsz", 0, 0, struct.pack(">II", 0, 0)),
        full_box(b"stco", 0, 0, struct.pack(">I", 0)),
    ]
    extends = box(b"mvex", full_box(b"trex", 0, 0, struct.pack(">5I", 1, 1, 0, 0, 0)))
    kinds = b"iso5" + struct.pack(">I", 512) + b"iso5iso6avc1mp41"
    return box(b"ftyp", kinds) + _movie(stream, timing, 0, tables, extends)


def fragment(number: int, start_frame: int, samples: Sequence[Sample], timing: Timing) -> bytes:
    """``number`` counts from 1; ``start_frame`` from where the stream begins."""
    header = full_box(b"mfhd", 0, 0, struct.pack(">I", number))
    base_is_moof, duration_size_flags = 0x020000, 0x000701
    track = full_box(b"tfhd", 0, base_is_moof, struct.pack(">I", 1))
    time = full_box(b"tfdt", 1, 0, struct.pack(">Q", start_frame * timing.frame_ticks))
    entries = b"".join(
        struct.pack(
            ">III",
            timing.frame_ticks,
            len(sample.data),
            _KEY_FLAGS if sample.is_key else _OTHER_FLAGS,
        )
        for sample in samples
    )
    # The samples' place counts from the start of moof, whose size does not depend on the place.
    run_bytes = 8 + 4 + 8 + len(entries)
    moof_bytes = 8 + len(header) + 8 + len(track) + len(time) + run_bytes
    numbers = struct.pack(">Ii", len(samples), moof_bytes + 8)
    run = full_box(b"trun", 0, duration_size_flags, numbers, entries)
    moof = box(b"moof", header, box(b"traf", track, time, run))
    return moof + box(b"mdat", *(sample.data for sample in samples))


def file_head(
    stream: StreamFacts, timing: Timing, sizes: Sequence[int], keys: Sequence[int]
) -> bytes:
    """All of a whole file but the samples, which follow in order. ``keys`` count from 0."""
    ftyp = box(b"ftyp", b"isom" + struct.pack(">I", 512) + b"isomiso2avc1mp41")
    payload = sum(sizes)
    data_header = _data_header(payload)
    # The index says where the samples begin, which depends on its own size.
    moov = _index(stream, timing, sizes, keys, 0)
    start = len(ftyp) + len(moov) + len(data_header)
    return ftyp + _index(stream, timing, sizes, keys, start) + data_header


def _data_header(payload: int) -> bytes:
    if payload + 8 < _32_BITS:
        return struct.pack(">I4s", payload + 8, b"mdat")
    return struct.pack(">I4sQ", 1, b"mdat", payload + 16)


def _index(
    stream: StreamFacts, timing: Timing, sizes: Sequence[int], keys: Sequence[int], start: int
) -> bytes:
    count = len(sizes)
    tables = [
        full_box(b"stts", 0, 0, struct.pack(">III", 1, count, timing.frame_ticks)),
        full_box(
            b"stss", 0, 0, struct.pack(f">{1 + len(keys)}I", len(keys), *(k + 1 for k in keys))
        ),
        full_box(b"stsc", 0, 0, struct.pack(">4I", 1, 1, count, 1)),
        full_box(b"stsz", 0, 0, struct.pack(f">{2 + count}I", 0, count, *sizes)),
        full_box(b"co64", 0, 0, struct.pack(">IQ", 1, start)),
    ]
    return _movie(stream, timing, count * timing.frame_ticks, tables, b"")


def _movie(
    stream: StreamFacts, timing: Timing, duration: int, tables: Sequence[bytes], extends: bytes
) -> bytes:
    scale = timing.timescale
    movie_header = full_box(
        b"mvhd",
        1,
        0,
        struct.pack(">QQIQIH10x", 0, 0, scale, duration, 0x10000, 0x100),
        _MATRIX,
        bytes(24),
        struct.pack(">I", 2),
    )
    in_movie = 7
    track_header = full_box(
        b"tkhd",
        1,
        in_movie,
        struct.pack(">QQIIQ8xHHHH", 0, 0, 1, 0, duration, 0, 0, 0, 0),
        _MATRIX,
        struct.pack(">II", stream.width << 16, stream.height << 16),
    )
    undetermined = 0x55C4
    media = box(
        b"mdia",
        full_box(b"mdhd", 1, 0, struct.pack(">QQIQHH", 0, 0, scale, duration, undetermined, 0)),
        full_box(b"hdlr", 0, 0, struct.pack(">I4s12x", 0, b"vide"), b"video\0"),
        box(
            b"minf",
            full_box(b"vmhd", 0, 1, bytes(8)),
            box(b"dinf", full_box(b"dref", 0, 0, struct.pack(">I", 1), full_box(b"url ", 0, 1))),
            box(b"stbl", full_box(b"stsd", 0, 0, struct.pack(">I", 1), _entry(stream)), *tables),
        ),
    )
    return box(b"moov", movie_header, box(b"trak", track_header, media), extends)


def _entry(stream: StreamFacts) -> bytes:
    resolution, color_depth, no_palette = 0x480000, 24, -1
    numbers = struct.pack(
        ">6xH16xHHIIIH32xHh",
        1,
        stream.width,
        stream.height,
        resolution,
        resolution,
        0,
        1,
        color_depth,
        no_palette,
    )
    bt709 = box(b"colr", b"nclx", struct.pack(">HHHB", 1, 1, 1, 0))
    return box(b"avc1", numbers, box(b"avcC", stream.description), bt709)
