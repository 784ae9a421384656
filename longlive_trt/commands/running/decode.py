"""``longlive-trt decode``."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np

from longlive_trt.basics import Array, Report
from longlive_trt.cli import INTERRUPTED
from longlive_trt.commands._bundle import HELP as BUNDLE_HELP
from longlive_trt.commands._bundle import find_bundle
from longlive_trt.commands._device import decoder_option, device_option
from longlive_trt.commands._voice import PATIENCE_S, Voice, examples, overwrite_option, speaking
from longlive_trt.console.wording import counted
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.bundles.fit import require_fit
from longlive_trt.engines.loader import DeviceChoice
from longlive_trt.errors import UsageError
from longlive_trt.files import real_path
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.decoding.choice import DecoderName, decoder_named
from longlive_trt.runtime.decoding.latents import LatentsDecoding, LatentsFile
from longlive_trt.runtime.generation import Outputs
from longlive_trt.runtime.interrupts import StopRequest, stop_on_signals
from longlive_trt.runtime.output import FrameWriter, check_file_output, check_fps, check_output
from longlive_trt.runtime.output.choice import open_writer
from longlive_trt.runtime.output.frames import frames_file

_PATH = click.Path(path_type=Path)
_EXAMPLES = examples(
    "longlive-trt decode --bundle bundle/ --latents video.safetensors --out video.mp4",
    "longlive-trt decode --bundle bundle/ --latents video.safetensors --frames-out f.safetensors",
)

Pieces = Iterator[tuple[int, Array]]


@click.command(epilog=_EXAMPLES)
@click.option("--bundle", required=True, type=_PATH, help=BUNDLE_HELP)
@click.option("--latents", required=True, type=_PATH, help="What `generate --latents-out` wrote.")
@click.option(
    "--out", help="video.mp4, .mov or .gif, a folder/ for PNG files, or - for Y4M to stdout."
)
@click.option(
    "--frames-out",
    type=_PATH,
    help="The frames as numbers instead: a safetensors file, in the decoder's own range (-1 to 1; "
    "TAEHV's is 0 to 1).",
)
@decoder_option
@device_option
@click.option(
    "--low-memory",
    is_flag=True,
    help="Decode in tiles, in a fraction of the memory, where the bundle has graphs for them.",
)
@overwrite_option
@speaking
def command(
    bundle: Path,
    latents: Path,
    out: str | None,
    frames_out: Path | None,
    decoder: DecoderName | None,
    device: DeviceChoice,
    low_memory: bool,
    overwrite: bool,
    voice: Voice,
) -> int:
    """Make pictures of latents that were kept, with a bundle's decoder.

    Of several videos in one file, each becomes one of its own: video.0.mp4, video.1.mp4.
    """
    if (out is None) == (frames_out is None):
        raise UsageError("give --out video.mp4, or --frames-out FILE, and not both")
    source, outputs = LatentsFile.open(latents), Outputs(out, overwrite=overwrite)
    if voice.as_json and outputs.to_stdout:
        raise UsageError("--json and --out -: both write to stdout; leave one of them out")
    folder = find_bundle(bundle, voice)
    with voice.reporting(patience_s=PATIENCE_S) as report:
        opened = open_bundle(folder, report.bytes)
    require_fit(opened.folder, opened.config, opened.manifest.graphs)
    work = LatentsDecoding(source, opened, decoder_named(opened, decoder))
    _check_outputs(work, outputs, frames_out)
    with (
        voice.reporting() as report,
        Engines(opened, device, low_memory=low_memory, report=report.stages) as engines,
        stop_on_signals(voice.note) as stop,
    ):
        pieces = _told(work, work.pieces(engines, as_numbers=out is None), report.stages)
        if frames_out is not None:
            _write_frames(work, pieces, frames_out, overwrite, stop)
            shown = [str(frames_out)]
        else:
            shown = _write_videos(work, pieces, outputs, stop)
    if outputs.to_stdout:
        voice.note(_described(work, shown, stop))
    else:
        voice.result(_described(work, shown, stop), _values(work, shown, stop))
    return INTERRUPTED if stop.is_asked else 0


def _check_outputs(work: LatentsDecoding, outputs: Outputs, frames_out: Path | None) -> None:
    """Everything that can be refused, before engines are loaded."""
    fps, source = work.bundle.config.fps, work.latents
    if outputs.to_stdout and source.rows > 1:
        raise UsageError(f"--out -: stdout takes one video, and these are {source.rows}")
    for video in outputs.videos(source.rows):
        if video is not None:
            check_output(video, outputs.overwrite)
            check_fps(video, fps)
    if frames_out is not None:
        check_file_output(frames_out, outputs.overwrite)
        if real_path(frames_out) == real_path(source.path):
            raise UsageError(f"{frames_out}: read by this run, so it cannot be its output too")


def _told(work: LatentsDecoding, pieces: Pieces, report: Report) -> Pieces:
    total = work.latents.rows * work.latents.frames
    for done, piece in enumerate(pieces):
        report("decoding", done, total)
        yield piece


def _write_frames(
    work: LatentsDecoding, pieces: Pieces, path: Path, overwrite: bool, stop: StopRequest
) -> None:
    shape = (work.latents.rows, work.video_frames, 3, *work.video_size)
    with frames_file(path, shape, overwrite=overwrite) as file:
        for row, frames in pieces:
            if stop.is_asked:
                # A part of them is no such file.
                raise KeyboardInterrupt
            file.write(row, frames)


def _write_videos(
    work: LatentsDecoding, pieces: Pieces, outputs: Outputs, stop: StopRequest
) -> list[str]:
    """The videos that hold anything; what was decoded before a stop or a failure is kept."""
    fps, names = work.bundle.config.fps, outputs.videos(work.latents.rows)
    writers: list[FrameWriter] = []
    try:
        for name in names:
            writers.append(open_writer(name, fps, *work.video_size, outputs.overwrite))
        for row, pictures in pieces:
            writers[row].write(np.asarray(pictures, np.uint8))
            if stop.is_asked:
                break
    finally:
        _close_all(writers)
    if outputs.to_stdout:
        return ["stdout"]
    return [str(writer.path) for writer in writers if writer.frames_kept]


def _close_all(writers: Sequence[FrameWriter]) -> None:
    with ExitStack() as closing:
        for writer in writers:
            close: Callable[[], None] = writer.close
            closing.callback(close)


def _described(work: LatentsDecoding, shown: Sequence[str], stop: StopRequest) -> str:
    height, width = work.video_size
    if not shown:
        return "stopped; nothing was kept"
    ended = "stopped early: " if stop.is_asked else ""
    of_each = counted(work.video_frames, "frame")
    return f"{ended}decoded {', '.join(shown)}: {of_each} of {width} x {height}, " + (
        f"{work.decoder.name} decoder ({work.decoder.config.kind})"
    )


def _values(work: LatentsDecoding, shown: Sequence[str], stop: StopRequest) -> dict[str, Any]:
    height, width = work.video_size
    return {
        "bundle": str(work.bundle.folder),
        "bundle_key": work.bundle.manifest.key,
        "decoder": work.decoder.name,
        "kind": work.decoder.config.kind,
        "videos": work.latents.rows,
        "frames": work.video_frames,
        "height": height,
        "width": width,
        "outputs": list(shown),
        "interrupted": stop.is_asked,
    }
