"""Where a video goes: an MP4 or MOV file, a GIF, a folder of PNG files, or nowhere."""

from .base import FrameWriter, NullWriter
from .choice import check_file_output, check_output, open_writer
from .data import sidecar_path, write_latents, write_sidecar
from .gif import GifWriter
from .mp4 import Mp4Writer
from .png import PngFolderWriter

__all__ = [
    "FrameWriter",
    "GifWriter",
    "Mp4Writer",
    "NullWriter",
    "PngFolderWriter",
    "check_file_output",
    "check_output",
    "open_writer",
    "sidecar_path",
    "write_latents",
    "write_sidecar",
]
