"""Where the entries and windows of device tensors lie, for copies on the device."""

from math import prod

from longlive_trt.plugins.cuda.streams import DeviceTensor, Rows, Windows
from longlive_trt.runtime.memory.base import Patch, Span


def rows_of(target: DeviceTensor, source: DeviceTensor, span: Span) -> Rows:
    """Entries of the second axis, in every row of the batch."""
    entry = prod(target.shape[2:]) * target.item_bytes
    return Rows(
        target=target.pointer + span.target_start * entry,
        source=source.pointer + span.source_start * entry,
        size_bytes=span.count * entry,
        count=target.shape[0],
        target_pitch_bytes=target.shape[1] * entry,
        source_pitch_bytes=source.shape[1] * entry,
    )


def windows_of(patch: Patch) -> Windows:
    (target, target_pitch), (source, source_pitch) = (
        _window_at(tensor, patch.axis, start)
        for tensor, start in (
            (patch.target, patch.target_start),
            (patch.source, patch.source_start),
        )
    )
    rows, columns = patch.size
    axis, shape = patch.axis, patch.target.shape
    return Windows(
        target=target,
        source=source,
        size_bytes=columns * prod(shape[axis + 2 :]) * patch.target.item_bytes,
        rows=rows,
        layers=prod(shape[:axis]),
        target_pitch_bytes=target_pitch,
        source_pitch_bytes=source_pitch,
        target_lines=shape[axis],
        source_lines=patch.source.shape[axis],
    )


def _window_at(tensor: DeviceTensor, axis: int, start: tuple[int, int]) -> tuple[int, int]:
    """Where a window begins, and how far its rows are apart, in bytes."""
    place = prod(tensor.shape[axis + 2 :]) * tensor.item_bytes
    pitch = tensor.shape[axis + 1] * place
    return tensor.pointer + start[0] * pitch + start[1] * place, pitch
