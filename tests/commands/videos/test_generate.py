"""``generate`` as a user runs it: videos, and bad input."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from safetensors.numpy import load_file

from longlive_trt.exports import GraphInfo, TensorInfo
from tests.commands.running import GOLDEN, ONE_BLOCK, OUT, PROMPT, generate_latents, succeeds

Refused = Callable[..., str]

pytestmark = pytest.mark.usefixtures("in_empty_folder")

# ---- videos ---------------------------------------------------------------------------------


def test_a_video_with_its_latents_and_its_record(tiny_bundle: Path, capsys: Any) -> None:
    prompts = ("--prompt", "a fox", "--prompt-at", 3, "a hare")
    outputs = ("--out", "fox.mp4", "--latents-out", "fox.safetensors")
    succeeds("generate", "--bundle", tiny_bundle, *prompts, "--frames", 6, *outputs, "--seed", 7)
    assert "made 2 blocks, 21 video frames" in capsys.readouterr().err
    with av.open("fox.mp4") as video:
        assert sum(1 for _ in video.decode(video=0)) == 21
        assert video.streams.video[0].average_rate == 16
    record = json.loads(Path("fox.mp4.json").read_text())
    assert record["seed"] == 7
    assert record["prompts"] == [
        {"frame": 0, "prompt": "a fox"},
        {"frame": 3, "prompt": "a hare"},
    ]
    assert record["video_frames"] == 21
    assert not list(Path().glob(".*"))
    again = generate_latents(tiny_bundle, *prompts, "--frames", 6, "--seed", 7)
    assert np.array_equal(again, load_file("fox.safetensors")["latents"])


def test_progress_as_json_lines(video_bundle: Path, capsys: Any) -> None:
    arguments = ("--prompt", "", "--frames", 4, "--latents-out", "l.safetensors", "--json")
    succeeds("generate", "--bundle", video_bundle, *arguments)
    output = capsys.readouterr()
    events = [json.loads(line) for line in output.out.splitlines()]
    assert [event["event"] for event in events].count("block") == 2
    notices = [event["text"] for event in events if event["event"] == "notice"]
    assert any("the prompt is empty" in text for text in notices)
    assert any("4 latent frames are no whole number of blocks; making 6" in t for t in notices)
    assert output.err == ""


def test_quiet_is_quiet(video_bundle: Path, capsys: Any) -> None:
    generate_latents(video_bundle, "--prompt", "", *ONE_BLOCK)
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "")


def test_a_long_prompt_is_cut_and_the_cut_is_shown(tiny_bundle: Path, capsys: Any) -> None:
    words = " ".join(f"word{number}" for number in range(40))
    arguments = ("--prompt", words, *ONE_BLOCK, "--latents-out", "l.safetensors")
    succeeds("generate", "--bundle", tiny_bundle, *arguments)
    notice = next(line for line in capsys.readouterr().err.splitlines() if "longer than" in line)
    assert "64 tokens" in notice
    # One byte is a token here, and the last of 64 is the end mark.
    assert words[:63].rstrip()[-20:] in notice
    assert words[63:73] not in notice


# ---- generate: bad input ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (PROMPT, ("--out", "--latents-out")),
        ((), ("nowhere to put the result",)),
        (OUT, ("nothing to show", "--prompt")),
        ((*PROMPT, "--timeline", "t.yaml", *OUT), ("--prompt and --timeline",)),
        ((*PROMPT, "--replay", "r.safetensors", *OUT), ("--prompt and --replay",)),
        (("--prompt-at", "3", "b", *OUT), ("--prompt-at", "--prompt TEXT")),
        ((*PROMPT, "--line", "2", *OUT), ("--line", "--timeline")),
        ((*PROMPT, "--switch-frames", "3", *OUT), ("--switch-frames", "--timeline")),
        ((*PROMPT, "--seconds", "1", "--frames", "3", *OUT), ("length once",)),
        ((*PROMPT, "--seconds", "0", *OUT), ("0 seconds",)),
        ((*PROMPT, "--seconds", "-2", *OUT), ("-2 seconds",)),
        ((*PROMPT, "--seconds", "nan", *OUT), ("nan seconds",)),
        ((*PROMPT, "--frames", "0", *OUT), ("0 latent frames",)),
        ((*PROMPT, "--frames", "-3", *OUT), ("-3 latent frames",)),
        ((*PROMPT, "--seconds", "inf", *OUT), ("--latents-out", "finite")),
        ((*PROMPT, "--prompt-at", "90", "b", *ONE_BLOCK, *OUT), ("--prompt-at 90", "past the end")),
        (
            (*PROMPT, "--prompt-at", "6", "b", "--prompt-at", "3", "c", "--frames", "9", *OUT),
            ("--prompt-at 3", "comes after frame 6"),
        ),
        ((*PROMPT, "--prompt-at", "-3", "b", *OUT), ("-3 is negative",)),
        (("--timeline", "none.yaml", *OUT), ("none.yaml", "cannot be read")),
        (("--replay", "none.safetensors", *OUT), ("none.safetensors", "no such replay file")),
        (("--resume", "none.state", *OUT), ("none.state", "no such state file")),
        (("--replay", "r", "--frames", "3", *OUT), ("--replay fixes the length",)),
        (("--replay", "r", "--save-state", "s", *OUT), ("--replay", "--save-state")),
        ((*PROMPT, "--resume", "s", "--seed", "1", *OUT), ("--resume", "--seed")),
        ((*PROMPT, "--out", "v.avi"), ("v.avi", ".mp4")),
        ((*PROMPT, "--latents-out", "s", "--save-state", "./s"), ("s", "two outputs")),
        ((*PROMPT, "--set", "rollout.rope=absolute", *OUT), ("rollout.rope", "export and build")),
        ((*PROMPT, "--set", "transformer.dim=72", *OUT), ("export and build",)),
        ((*PROMPT, "--set", "rollout.stepz=[1]", *OUT), ("rollout.stepz", "rollout.steps")),
        ((*PROMPT, "--set", "rollout.steps=[1, 2]", *OUT), ("rollout.steps", "falling")),
        ((*PROMPT, "--set", "rollout.window_frames=2000", *OUT), ("2000", "1024")),
        ((*PROMPT, "--set", "rollout.frames_per_block=2", *OUT), ("rollout.sink_frames",)),
        (
            (*PROMPT, "--seconds", "inf", "--out", "v.mp4", "--set", "rollout.window_frames=-1"),
            ("endless", "rollout.rope=relative"),
        ),
        (
            (*PROMPT, *OUT, "--save-state", "s", "--set", "rollout.window_frames=-1"),
            ("global attention", "set a window"),
        ),
        ((*PROMPT, "--preset", "nothing", *OUT), ("nothing", "preset")),
    ],
)
def test_generate_refuses(
    video_bundle: Path, refused: Refused, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused("generate", "--bundle", video_bundle, *arguments, words=words)


def test_absolute_positions_end_before_the_run_begins(
    golden_bundle_fp32: Path, refused: Refused
) -> None:
    for length in (("--seconds", "inf"), ("--frames", "1024")):
        arguments = ("--prompt", "a", *length, "--out", "v.mp4")
        refused("generate", "--bundle", golden_bundle_fp32, *arguments, words=("1023",))


def test_a_timeline_that_is_not_text_is_refused(video_bundle: Path, refused: Refused) -> None:
    Path("t.yaml").write_bytes(b"- {frame: 0, prompt: caf\xe9}\n")
    arguments = ("--timeline", "t.yaml", *OUT)
    refused("generate", "--bundle", video_bundle, *arguments, words=("t.yaml", "UTF-8", "line 1"))


def test_a_prompt_that_is_not_text_is_refused(video_bundle: Path, refused: Refused) -> None:
    arguments = ("--prompt", os.fsdecode(b"caf\xe9"), *OUT)
    refused("generate", "--bundle", video_bundle, *arguments, words=("--prompt", "UTF-8"))


def test_existing_outputs_are_kept(video_bundle: Path, refused: Refused) -> None:
    Path("there").write_text("precious")
    Path("there.mp4").write_text("precious")
    for option, name in (
        ("--out", "there.mp4"),
        ("--latents-out", "there"),
        ("--save-state", "there"),
    ):
        more = () if option != "--save-state" else ("--latents-out", "elsewhere")
        arguments = (*PROMPT, option, name, *more)
        refused("generate", "--bundle", video_bundle, *arguments, words=(name, "--overwrite"))


def test_a_place_that_cannot_be_written_is_found_before_work(
    video_bundle: Path, refused: Refused
) -> None:
    Path("file").write_text("")
    for option, name, words, code in (
        ("--out", "file/v.mp4", ("cannot be",), 1),
        ("--latents-out", "/proc/l.safetensors", ("the system's own",), 2),
    ):
        arguments = (*PROMPT, option, name)
        refused("generate", "--bundle", video_bundle, *arguments, words=words, code=code)


def test_a_component_that_was_never_exported_is_named(
    golden_bundle_fp32: Path, fake_bundle: Callable[..., Path], refused: Refused
) -> None:
    replay = ("--replay", GOLDEN / "switch6.replay.safetensors")
    latents = TensorInfo("latents", "float", ("batch", "latent_frames", 16, 4, 6))
    vae_alone = fake_bundle(Path("vae"), graphs={"vae_first": GraphInfo((latents,), ())})
    for bundle, arguments, option in (
        (golden_bundle_fp32, (*PROMPT, *OUT, *ONE_BLOCK), "--text-encoder"),
        (golden_bundle_fp32, (*replay, "--out", "v.mp4"), "--vae"),
        (vae_alone, (*PROMPT, *OUT, *ONE_BLOCK), "--transformer"),
    ):
        words = ("longlive-trt export", option)
        refused("generate", "--bundle", bundle, *arguments, words=words)


def test_a_time_to_hold(
    video_bundle: Path, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = ("generate", "--bundle", video_bundle, *PROMPT, "--frames", 30, "--overwrite")
    succeeds(*video, "--out", "v.mp4", "--target-ms", 60_000)
    assert "a block took" in capsys.readouterr().err
    assert json.loads(Path("v.mp4.json").read_text())["pace"]["target_ms"] == 60_000
    succeeds(*video, "--out", "v.mp4", "--realtime", "--preset", "balanced")
    assert json.loads(Path("v.mp4.json").read_text())["pace"]["target_ms"] == 750
    succeeds(*video, "--out", "v.mp4")
    assert "pace" not in json.loads(Path("v.mp4.json").read_text())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--target-ms", "100", "--realtime"), ("--target-ms and --realtime", "one of them")),
        (("--target-ms", "100", "--save-state", "s"), ("leave out --save-state",)),
        (("--realtime", "--preset", "ultra"), ("faster than ultra", "--preset balanced")),
    ],
)
def test_times_that_cannot_be_held(
    video_bundle: Path, refused: Refused, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused("generate", "--bundle", video_bundle, *PROMPT, "--out", "v.mp4", *options, words=words)
