"""Writes that fail for real: a child process may not make a file larger than a limit."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from longlive_trt.runtime.output.gif import whole_pictures
from longlive_trt.runtime.output.mp4 import end_of_last_fragment

ROOT = Path(__file__).resolve().parents[3]

CHILD = """
import resource, sys
import numpy as np
from longlive_trt.errors import OutputError
from longlive_trt.runtime.output import open_writer, write_latents

path, limit, frames = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
noise = np.random.default_rng(0)
try:
    if path.endswith(".safetensors"):
        write_latents(path, np.zeros((1, 30, 16, 32, 32)))
    else:
        with open_writer(path, 16, 64, 64, overwrite=False) as writer:
            for _ in range(frames):
                writer.write(noise.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8))
    print("no error")
except OutputError as error:
    print(error)
"""


def run_child(path: Path, limit: int, frames: int = 200) -> str:
    command = [sys.executable, "-W", "error", "-c", CHILD, str(path), str(limit), str(frames)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert child.returncode == 0, child.stderr
    assert child.stderr == ""
    return child.stdout.strip()


def count_frames(path: Path) -> int:
    with av.open(path) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize("name", ["video.mp4", "video.mov", "video.gif"])
@pytest.mark.parametrize("limit", [70_000, 100_001])
def test_what_was_written_is_kept_and_plays(tmp_path, name, limit):
    path = tmp_path / name
    message = run_child(path, limit)
    assert f"{path}: writing failed" in message
    assert "File too large" in message
    kept = count_frames(path)
    assert kept > 0
    assert f"the first {kept} are kept there" in message
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["video.mp4", "video.gif"])
def test_a_disk_that_was_full_from_the_start(tmp_path, name):
    message = run_child(tmp_path / name, 100)
    assert "none could be kept" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "frames", "kept"), [("video.mp4", 40, 16), ("video.gif", 8, 7)])
def test_an_error_of_the_very_last_write_is_not_lost(tmp_path, name, frames, kept):
    assert run_child(tmp_path / name, 10**9, frames) == "no error"
    size = (tmp_path / name).stat().st_size
    (tmp_path / name).unlink()
    # The fragmented file of an MP4 is a little larger than the final one.
    message = run_child(tmp_path / name, size - 1, frames)
    assert "writing failed" in message
    assert count_frames(tmp_path / name) >= kept


def test_png_frames_before_the_failure_are_kept(tmp_path):
    # Noise does not compress: the first frame is already too large.
    message = run_child(f"{tmp_path}/frames/", 5_000)
    assert "none could be kept" in message
    assert list(tmp_path.iterdir()) == []


def test_latents_are_whole_or_absent(tmp_path):
    message = run_child(tmp_path / "latents.safetensors", 10_000)
    assert "latents.safetensors: cannot be written" in message
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def gif(tmp_path_factory):
    from longlive_trt.runtime.output import GifWriter

    path = tmp_path_factory.mktemp("gif") / "video.gif"
    with GifWriter(path, 16, 16, 16) as writer:
        noise = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
        writer.write(noise)
    return path.read_bytes()


def test_a_whole_gif_is_all_pictures(gif):
    assert whole_pictures(gif) == (5, len(gif) - 1)


def test_a_gif_cut_anywhere_is_cut_back_to_whole_pictures(gif):
    found = [whole_pictures(gif[:size]) for size in range(len(gif))]
    assert all(end <= size for size, (_, end) in enumerate(found))
    counts = [pictures for pictures, _ in found]
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3, 4, 5}


def test_a_fragmented_file_cut_anywhere_is_cut_back_to_whole_fragments(tmp_path):
    boxes = [
        (b"ftyp", 20),
        (b"moov", 30),
        (b"moof", 12),
        (b"mdat", 40),
        (b"moof", 12),
        (b"mdat", 9),
    ]
    data = b"".join(size.to_bytes(4, "big") + name + bytes(size - 8) for name, size in boxes)
    path = tmp_path / "video.mp4"
    ends = []
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        ends.append(end_of_last_fragment(path))
    assert ends == [0] * 102 + [102] * 21 + [123]
