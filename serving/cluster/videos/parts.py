"""Parts of a recording as files: a block's pictures are encoded to the same bytes on every host, so
parts that several of them made fit together.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

from longlive_trt.errors import BundleError
from longlive_trt.files import publish_file
from longlive_trt.reading.failures import ReadingError, refusing
from longlive_trt.reading.files import read_bytes
from longlive_trt.serving.media.h264 import Sample

_MAGIC = b"LLT1"
_HEAD = struct.Struct("<4sI")
_SAMPLE = struct.Struct("<I?")
_MOST_BYTES = 4 << 30
_ADVICE = "begin the video anew"


def write_part(path: Path, samples: Sequence[Sample]) -> None:
    with publish_file(path) as partial, partial.open("wb") as file:
        file.write(_HEAD.pack(_MAGIC, len(samples)))
        for sample in samples:
            file.write(_SAMPLE.pack(len(sample.data), sample.is_key))
        file.writelines(sample.data for sample in samples)


def read_part(path: Path) -> list[Sample]:
    with refusing(BundleError, path, _ADVICE):
        data = read_bytes(path, _MOST_BYTES)
        try:
            return _samples(data)
        except struct.error as error:
            raise ReadingError(f"not a part of a recording ({error})") from None


def _samples(data: bytes) -> list[Sample]:
    magic, count = _HEAD.unpack_from(data)
    at = _HEAD.size + count * _SAMPLE.size
    if magic != _MAGIC or at > len(data):
        raise ReadingError("not a part of a recording")
    samples = []
    for size, is_key in _SAMPLE.iter_unpack(data[_HEAD.size : at]):
        samples.append(Sample(data[at : at + size], is_key))
        at += size
    if at != len(data):
        raise ReadingError(f"{len(data)} bytes of a part of {at}")
    return samples
