"""Where ``generate`` puts a video and how its times are given: stdout, previews, seconds, pipes."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import longlive_trt as ll
from longlive_trt.cli import main
from longlive_trt.engines.bundles.archive import pack
from longlive_trt.runtime.output.preview import Preview
from tests.commands.running import ONE_BLOCK, OUT, PROMPT, ROOT, generate_latents, succeeds
from tests.videos import SIZE

Refused = Callable[..., str]

pytestmark = pytest.mark.usefixtures("in_empty_folder")


class Pipe(io.TextIOWrapper):
    """Standard output or input as a program behind a pipe has it."""

    def __init__(self, data: bytes = b"") -> None:
        self.bytes = io.BytesIO(data)
        super().__init__(self.bytes, encoding="utf-8")


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def type_in(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", Pipe(text.encode()))

    return type_in


def pictures_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)


# ---- stdout ------------------------------------------------------------------------------------


def test_frames_to_stdout_are_a_video_that_players_take(
    video_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = Pipe()
    arguments = ("generate", "--bundle", video_bundle, *PROMPT, "--frames", 6)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        succeeds(*arguments, "--out", "-")
    Path("seen.y4m").write_bytes(out.bytes.getvalue())
    succeeds(*arguments, "--out", "frames/", "--quiet")
    assert [path.name for path in Path().iterdir() if path.suffix == ".json"] == ["frames.json"]
    with av.open("seen.y4m") as video:
        stream = video.streams.video[0]
        assert (stream.height, stream.width, stream.average_rate) == (*SIZE, 16)
    seen = pictures_of(Path("seen.y4m")).astype(int)
    exact = np.stack([pictures_of(path)[0] for path in sorted(Path("frames").glob("*.png"))])
    assert seen.shape == exact.shape == (21, *SIZE, 3)
    # One color sample for four pixels.
    assert np.abs(seen.mean((1, 2)) - exact.astype(int).mean((1, 2))).max() < 3


@pytest.mark.parametrize("frames", [3, 30])
def test_a_player_that_goes_away_ends_it_in_one_line(frames: int, video_bundle: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    words = ["generate", "--bundle", video_bundle, *PROMPT, "--frames", frames, "--out", "-"]
    process = subprocess.run(
        [sys.executable, ROOT / "cli.py", *map(str, words)],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(write_end)
    last = process.stderr.splitlines()[-1]
    assert process.returncode == 1
    assert last.startswith("error: stdout: took 0 frames and no more (Broken pipe)")


def test_stdout_is_refused_where_bytes_have_no_place(
    video_bundle: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("generate", "--bundle", video_bundle, *PROMPT, *ONE_BLOCK, "--out", "-")
    refused(*arguments, "--json", words=("--json and --out -",))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    refused(*arguments, words=("stdout, which is a terminal", "| ffplay -"))
    refused("pack", video_bundle, "--out", "-", words=("stdout, which is a terminal",))


def test_an_archive_to_stdout_is_the_one_of_a_file(
    video_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Pipe()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        succeeds("pack", video_bundle, "--out", "-", "--quiet")
    pack(video_bundle, Path("b.tar.zst"))
    assert out.bytes.getvalue() == Path("b.tar.zst").read_bytes()
    assert not Path("-").exists()


# ---- files -------------------------------------------------------------------------------------


def test_a_preview_is_renewed_at_every_block(
    video_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    renew = Preview.renew

    def renewed(preview: Preview, rows: Any) -> str | None:
        notice = renew(preview, rows)
        seen.append(pictures_of(Path("now.png"))[0])
        return notice

    monkeypatch.setattr(Preview, "renew", renewed)
    arguments = ("--frames", 9, "--out", "frames/", "--preview", "now.png", "--quiet")
    succeeds("generate", "--bundle", video_bundle, *PROMPT, *arguments)
    last_of_blocks = [f"frames/frame_{number:06d}.png" for number in (8, 20, 32)]
    for shown, name in zip(seen, last_of_blocks, strict=True):
        assert np.array_equal(shown, pictures_of(Path(name))[0])
    assert sorted(path.name for path in Path().iterdir()) == ["frames", "frames.json", "now.png"]


def test_a_preview_alone_shows_latents_in_the_making(video_bundle: Path) -> None:
    generate_latents(video_bundle, *PROMPT, *ONE_BLOCK, "--preview", "now.png")
    assert pictures_of(Path("now.png")).shape == (1, *SIZE, 3)


def test_a_preview_that_cannot_be_written_ends_no_video(
    video_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(_frame: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("longlive_trt.runtime.output.preview.encode_png", fail)
    arguments = ("--frames", 9, "--out", "v.mp4", "--preview", "now.png")
    succeeds("generate", "--bundle", video_bundle, *PROMPT, *arguments)
    said = capsys.readouterr().err
    assert said.count("now.png: no longer renewed") == 1
    assert pictures_of(Path("v.mp4")).shape[0] == 33


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out", "v"), ("v: no ending", "v.mp4", "v/")),
        (("--out", "http://example.com/v.mp4"), ("an address",)),
        (("--out", "s3://bucket/v.mp4"), ("an address", "longlive-trt push")),
        ((*OUT, "--preview", "now.jpg"), ("--preview now.jpg", ".png")),
        (("--out", "v.mp4", "--preview", "v.mp4"), ("two outputs of this name",)),
    ],
)
def test_names_that_lead_somewhere_else_are_refused(
    arguments: tuple[str, ...], words: tuple[str, ...], video_bundle: Path, refused: Refused
) -> None:
    refused("generate", "--bundle", video_bundle, *PROMPT, *ONE_BLOCK, *arguments, words=words)


@pytest.mark.parametrize("command", ["pack", "unpack", "pull", "export-triton"])
def test_no_folder_is_made_of_an_address(
    command: str, video_bundle: Path, refused: Refused
) -> None:
    refused(command, video_bundle, "--out", "https://example.com/b", words=("an address",))


def test_an_archive_in_the_place_of_a_bundle_names_unpack(
    video_bundle: Path, refused: Refused
) -> None:
    pack(video_bundle, Path("my bundle.tar.zst"))
    hint = "`longlive-trt unpack 'my bundle.tar.zst' --out 'my bundle'`"
    generate = ("generate", *PROMPT, *ONE_BLOCK, *OUT, "--bundle", "my bundle.tar.zst")
    for words in (generate, ("bench", "--bundle", "my bundle.tar.zst"), ("verify", generate[-1])):
        refused(*words, words=("an archive", hint))
    refused("export-triton", "my bundle.tar.zst", "--out", "m", words=(hint,))


def test_a_video_says_what_it_is(video_bundle: Path) -> None:
    prompts = ("--prompt", "a cat\x07", "--prompt-at", "0.5s", "a dog")
    succeeds(
        *("generate", "--bundle", video_bundle, *prompts, "--frames", 6, "--seed", 7),
        *("--out", "v.mp4", "--quiet"),
    )
    with av.open("v.mp4") as video:
        tags = dict(video.metadata)
    assert tags["title"] == "a cat\\x07"
    assert tags["description"] == "0.0 s: a cat\\x07\n0.6 s: a dog"
    assert tags["comment"].startswith("seed 7; longlive-trt ")


def test_prompts_that_were_not_shown_are_not_in_it(video_bundle: Path) -> None:
    with (
        ll.load(video_bundle) as pipeline,
        pipeline.video("a cat", frames=9) as video,
        video.writer("v.mp4") as writer,
    ):
        writer.write(next(video).frames)
        before = video.checkpoint()
        video.prompt("a mouse")
        next(video)
        video.rollback(before)
        video.prompt("a dog")
        writer.write(next(video).frames)
    with av.open("v.mp4") as opened:
        assert opened.metadata["description"] == "0.0 s: a cat\n0.6 s: a dog"


# ---- times -------------------------------------------------------------------------------------


def test_a_prompt_begins_at_a_time(video_bundle: Path, capsys: Any) -> None:
    options = ("--frames", 30, "--seed", 3)
    prompts = ("--prompt", "a cat", "--prompt-at", "5.1s", "a dog")
    by_time = generate_latents(video_bundle, *prompts, *options)
    # 5.1 s is picture 81, of latent frame 21: the start of a block.
    by_frame = generate_latents(video_bundle, *prompts[:3], 21, "a dog", *options)
    assert np.array_equal(by_time, by_frame)
    with ll.load(video_bundle) as pipeline:
        video = pipeline.video({"5.1s": "a dog", 0: "a cat"}, frames=30)
        assert [(cue.frame, cue.prompt) for cue in video.plan.cues] == [(0, "a cat"), (21, "a dog")]
    Path("story.yaml").write_text("0: a cat\n5.1s: a dog\n")
    assert np.array_equal(
        by_time, generate_latents(video_bundle, "--timeline", "story.yaml", *options)
    )


def test_messages_say_seconds_too(video_bundle: Path, refused: Refused, capsys: Any) -> None:
    common = ("generate", "--bundle", video_bundle, *PROMPT, *OUT)
    late = (*common, "--frames", 6, "--prompt-at", "9s", "a dog")
    refused(*late, words=("--prompt-at 9s", "(8.8 s)", "6 latent frames, 1.3 s"))
    succeeds(*common, "--frames", 9, "--prompt-at", "1s", "a dog")
    assert "--prompt-at 1s: the prompt starts at frame 6 (1.3 s)" in capsys.readouterr().err


@pytest.mark.parametrize("time", ["soon", "7.5", "-1s", "1e3s", "s", "", "nans", "infs", "9" * 99])
def test_what_is_no_time_is_refused(time: str, video_bundle: Path, capsys: Any) -> None:
    words = ("generate", "--bundle", video_bundle, *PROMPT, *OUT, "--prompt-at", time, "a dog")
    assert main([str(word) for word in words]) == 2
    assert "a time, such as 7.5s" in capsys.readouterr().err


# ---- timelines from a pipe ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "0: a cat\n3: a dog\n",
        '{"0": "a cat", "3": "a dog"}',
        '[{"frame": 0, "prompt": "a cat"}, {"seconds": 0.6, "prompt": "a dog"}]',
        "[{frame: 0, prompt: a cat}, {frame: 3, prompt: a dog}]",
        '{"prompts_list": ["a cat", "a dog"]}\n',
        '{"prompts": ["a cat", "a dog"]}\n{"prompt": "a mouse"}\n',
    ],
)
def test_a_timeline_from_a_pipe(
    text: str, piped: Callable[[str], None], video_bundle: Path
) -> None:
    piped(text)
    name = "/dev/stdin" if text.startswith("0") else "-"
    options = ("--frames", 6, "--out", "v.mp4", "--quiet")
    succeeds("generate", "--bundle", video_bundle, "--timeline", name, *options)
    shown = json.loads(Path("v.mp4.json").read_text())["prompts"]
    assert shown == [{"frame": 0, "prompt": "a cat"}, {"frame": 3, "prompt": "a dog"}]


@pytest.mark.parametrize("text", ["", "  \n", "a cat", "[1, 2", "\x00", "[" * 9000])
def test_a_pipe_with_no_timeline_is_refused(
    text: str, piped: Callable[[str], None], video_bundle: Path, refused: Refused
) -> None:
    piped(text)
    words = ("generate", "--bundle", video_bundle, "--timeline", "-", *OUT)
    refused(*words, words=("stdin",))
