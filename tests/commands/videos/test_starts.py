"""``generate --start`` as a user runs it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.commands.running import OUT, PROMPT, generate_latents, succeeds
from tests.fakes.clips import shades, write_clip, write_picture
from tests.videos import SIZE

Refused = Callable[..., str]

pytestmark = pytest.mark.usefixtures("in_empty_folder")


def test_a_clip_goes_on_in_a_file(video_bundle: Path, capsys: Any) -> None:
    write_clip(Path("clip.mp4"), shades(21, SIZE))
    arguments = ("--bundle", video_bundle, *PROMPT, "--frames", 6, "--start", "clip.mp4")
    succeeds("generate", *arguments, "--out", "v.mp4")
    error = capsys.readouterr().err
    assert "clip.mp4: 48 x 32, as it is; the video begins with all 21 pictures (1.31 s)" in error
    assert "made 2 blocks, 24 video frames" in error
    succeeds("generate", *arguments, "--include-start", "--out", "whole.mp4")
    assert "made 4 blocks, 45 video frames" in capsys.readouterr().err
    for name, count in (("v.mp4", 24), ("whole.mp4", 45)):
        with av.open(name) as video:
            assert sum(1 for _ in video.decode(video=0)) == count
        start = json.loads(Path(f"{name}.json").read_text())["start"]
        assert start["file"] == "clip.mp4" and start["blocks"] == 2
        assert start["is_shown"] is (name == "whole.mp4") and len(start["sha256"]) == 64


def test_kept_latents_go_on_and_are_kept_again(video_bundle: Path) -> None:
    whole = generate_latents(video_bundle, *PROMPT, "--frames", 12)
    save_file({"latents": whole[:, :6].copy()}, "first.safetensors")
    start = ("--start", "first.safetensors")
    rest = generate_latents(video_bundle, *PROMPT, "--frames", 6, *start, out="rest.safetensors")
    assert np.array_equal(rest, whole[:, 6:])
    state = ("--save-state", "state")
    generate_latents(video_bundle, *PROMPT, "--frames", 3, *start, *state)
    later = generate_latents(video_bundle, "--resume", "state", "--frames", 3)
    assert np.array_equal(later, whole[:, 9:])


def test_a_length_in_seconds_counts_what_is_made(video_bundle: Path, capsys: Any) -> None:
    write_picture(Path("p.png"), shades(1, SIZE)[0])
    arguments = ("--bundle", video_bundle, *PROMPT, "--seconds", 1.5, "--start", "p.png")
    succeeds("generate", *arguments, *OUT, "--out", "v.mp4")
    assert load_file("l.safetensors")["latents"].shape[1] == 6
    assert "24 video frames" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.mp4", ("none.mp4", "cannot be read")),
        ("short.mp4", ("short.mp4: 8 pictures", "begins with 9 (0.56 s) or more", "held for so")),
        ("text.mp4", ("text.mp4: not a picture or a clip to be read", "MP4", "give another")),
        ("cut.mp4", ("cut.mp4: not a picture or a clip",)),
        ("out.safetensors", ("read by this run",)),
    ],
)
def test_starts_that_are_refused(
    video_bundle: Path, refused: Refused, name: str, words: tuple[str, ...]
) -> None:
    write_clip(Path("short.mp4"), shades(8, SIZE))
    Path("text.mp4").write_text("a letter to somebody " * 20)
    whole = write_clip(Path("whole.mp4"), shades(20, SIZE)).read_bytes()
    Path("cut.mp4").write_bytes(whole[: len(whole) // 2])
    zeros = np.zeros((1, 3, 16, 4, 6), np.float32)
    save_file({"latents": zeros}, "out.safetensors")
    out = ("--latents-out", "out.safetensors", "--overwrite")
    refused("generate", "--bundle", video_bundle, *PROMPT, *out, "--start", name, words=words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--resume", "s", "--start", "c.mp4"), ("--resume", "leave out --start")),
        ((*PROMPT, "--include-start"), ("--include-start", "--start FILE")),
    ],
)
def test_options_that_do_not_go_together(
    video_bundle: Path, refused: Refused, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused("generate", "--bundle", video_bundle, *arguments, *OUT, words=words)


def test_a_bundle_without_an_encoder(mini_bundle: Callable[[str], Path], refused: Refused) -> None:
    words = ("beginning with a picture or a clip needs the vae encoder", "--vae (of a file that")
    arguments = ("--bundle", mini_bundle("relative"), *PROMPT, *OUT, "--start", "c.mp4")
    refused("generate", *arguments, words=words)
