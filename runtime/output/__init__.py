"""Where a video goes: an MP4 or MOV file, a GIF, a folder of PNG files, stdout, or nowhere."""

from longlive_trt.runtime.output.base import FrameWriter, NullWriter
from longlive_trt.runtime.output.choice import (
    check_file_output,
    check_fps,
    check_output,
    open_writer,
)
from longlive_trt.runtime.output.data import write_latents, write_sidecar
from longlive_trt.runtime.output.gif import GifWriter
from longlive_trt.runtime.output.mp4 import Mp4Writer
from longlive_trt.runtime.output.png import PngFolderWriter
from longlive_trt.runtime.output.sidecar import free_name, sidecar_path

__all__ = [
    "FrameWriter",
    "GifWriter",
    "Mp4Writer",
    "NullWriter",
    "PngFolderWriter",
    "check_file_output",
    "check_fps",
    "check_output",
    "free_name",
    "open_writer",
    "sidecar_path",
    "write_latents",
    "write_sidecar",
]
