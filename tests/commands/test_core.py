"""export, build and generate as a user runs them, golden results and bad input included."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from longlive_trt.cli import main
from longlive_trt.configs import ModelConfig
from longlive_trt.configs.dump import config_values

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parents[1] / "data" / "transformer"
ONE_BLOCK = ("--frames", "3")

Error = Callable[[object, object], float]
Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must fail with one line and leave every file as it was."""

    def run(*arguments: object, words: tuple[str, ...], code: int = 2) -> str:
        before = snapshot(Path())
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        *stages, error = capsys.readouterr().err.splitlines()
        assert error.startswith("error: ") and all(s.startswith("building ") for s in stages)
        for word in words:
            assert word in error
        assert snapshot(Path()) == before
        return error

    return run


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def succeeds(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def generate_latents(bundle: Path, *arguments: object, out: str = "latents.safetensors") -> Any:
    succeeds(
        "generate", "--bundle", bundle, *arguments, "--latents-out", out, "--overwrite", "--quiet"
    )
    return load_file(out)["latents"]


def changed_copy(bundle: Path, name: str = "changed") -> Path:
    shutil.copytree(bundle, name)
    return Path(name)


# ---- golden results --------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["noswitch", "switch15_global_sink", "switch6"])
def test_golden_replays(
    golden_bundle_fp32: Path, golden_bundle_fp16: Path, relative_error: Error, case: str
) -> None:
    expected = load_file(GOLDEN / f"{case}.expected.safetensors")["latents"]
    replay = ("--replay", GOLDEN / f"{case}.replay.safetensors")
    exact = generate_latents(golden_bundle_fp32, *replay)
    assert (exact.dtype, exact.shape) == (np.float32, expected.shape)
    assert relative_error(exact, expected) <= 1e-5
    half = generate_latents(golden_bundle_fp16, *replay)
    assert 1e-5 < relative_error(half, expected) <= 5e-3


@pytest.fixture(scope="session")
def lora_bundle(make_once: Any, golden_config: ModelConfig) -> Path:
    def make(folder: Path) -> None:
        exported, config = folder.with_name("lora-export"), folder.with_name("golden.json")
        config.write_text(json.dumps(config_values(golden_config)))
        checkpoints = ("--transformer", GOLDEN / "transformer.safetensors")
        lora = ("--lora", GOLDEN / "lora.safetensors")
        succeeds("export", "--config", config, *checkpoints, *lora, "--out", exported)
        succeeds("build", "--onnx", exported, "--out", folder)

    return make_once("lora-bundle", make)


def test_golden_lora(lora_bundle: Path, golden_bundle_fp32: Path, relative_error: Error) -> None:
    expected = load_file(GOLDEN / "lora.expected.safetensors")["latents"]
    replay = ("--replay", GOLDEN / "lora.replay.safetensors")
    assert relative_error(generate_latents(lora_bundle, *replay), expected) <= 1e-5
    assert relative_error(generate_latents(golden_bundle_fp32, *replay), expected) > 1e-3


# ---- a video ---------------------------------------------------------------------------------


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


def test_progress_as_json_lines(tiny_bundle: Path, capsys: Any) -> None:
    arguments = ("--prompt", "", "--frames", 4, "--latents-out", "l.safetensors", "--json")
    succeeds("generate", "--bundle", tiny_bundle, *arguments)
    output = capsys.readouterr()
    events = [json.loads(line) for line in output.out.splitlines()]
    assert [event["event"] for event in events].count("block") == 2
    notices = [event["text"] for event in events if event["event"] == "notice"]
    assert any("the prompt is empty" in text for text in notices)
    assert any("4 latent frames are no whole number of blocks; making 6" in t for t in notices)
    assert output.err == ""


def test_quiet_is_quiet(tiny_bundle: Path, capsys: Any) -> None:
    generate_latents(tiny_bundle, "--prompt", "", *ONE_BLOCK)
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

OUT = ("--latents-out", "l.safetensors")
PROMPT = ("--prompt", "a cat")


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
        ((*PROMPT, "--set", "transformer.dim=64", *OUT), ("export and build",)),
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
    tiny_bundle: Path, refused: Refused, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused("generate", "--bundle", tiny_bundle, *arguments, words=words)


def test_absolute_positions_end_before_the_run_begins(
    golden_bundle_fp32: Path, refused: Refused
) -> None:
    for length in (("--seconds", "inf"), ("--frames", "1024")):
        arguments = ("--prompt", "a", *length, "--out", "v.mp4")
        refused("generate", "--bundle", golden_bundle_fp32, *arguments, words=("1023",))


def test_a_timeline_that_is_not_text_is_refused(tiny_bundle: Path, refused: Refused) -> None:
    Path("t.yaml").write_bytes(b"- {frame: 0, prompt: caf\xe9}\n")
    arguments = ("--timeline", "t.yaml", *OUT)
    refused("generate", "--bundle", tiny_bundle, *arguments, words=("t.yaml", "UTF-8", "line 1"))


def test_a_prompt_that_is_not_text_is_refused(tiny_bundle: Path, refused: Refused) -> None:
    arguments = ("--prompt", os.fsdecode(b"caf\xe9"), *OUT)
    refused("generate", "--bundle", tiny_bundle, *arguments, words=("--prompt", "UTF-8"))


def test_existing_outputs_are_kept(tiny_bundle: Path, refused: Refused) -> None:
    Path("there").write_text("precious")
    Path("there.mp4").write_text("precious")
    for option, name in (
        ("--out", "there.mp4"),
        ("--latents-out", "there"),
        ("--save-state", "there"),
    ):
        more = () if option != "--save-state" else ("--latents-out", "elsewhere")
        arguments = (*PROMPT, option, name, *more)
        refused("generate", "--bundle", tiny_bundle, *arguments, words=(name, "--overwrite"))


def test_a_place_that_cannot_be_written_is_found_before_work(
    tiny_bundle: Path, refused: Refused
) -> None:
    Path("file").write_text("")
    for option, name in (("--out", "file/v.mp4"), ("--latents-out", "/proc/l.safetensors")):
        arguments = (*PROMPT, option, name)
        refused("generate", "--bundle", tiny_bundle, *arguments, words=("cannot be",), code=1)


def test_a_component_that_was_never_exported_is_named(
    golden_bundle_fp32: Path, golden_vae_bundle: Path, refused: Refused
) -> None:
    replay = ("--replay", GOLDEN / "switch6.replay.safetensors")
    for bundle, arguments, option in (
        (golden_bundle_fp32, (*PROMPT, *OUT, *ONE_BLOCK), "--text-encoder"),
        (golden_bundle_fp32, (*replay, "--out", "v.mp4"), "--vae"),
        (golden_vae_bundle, (*PROMPT, *OUT, *ONE_BLOCK), "--transformer"),
    ):
        words = ("longlive-trt export", option)
        refused("generate", "--bundle", bundle, *arguments, words=words)


# ---- generate: bundles that are not whole ----------------------------------------------------


def test_a_missing_file_of_a_bundle_is_named(tiny_bundle: Path, refused: Refused) -> None:
    names = json.loads((tiny_bundle / "manifest.json").read_text())["files"]
    assert {"step.onnx", "tokenizer.json", "vae_next.onnx"} <= names.keys()
    bundle = changed_copy(tiny_bundle)
    for name in names:
        kept = (bundle / name).rename("kept")
        words = (f"{name}: missing",)
        refused("generate", "--bundle", bundle, *PROMPT, *OUT, words=words, code=1)
        kept.rename(bundle / name)


def test_a_truncated_file_of_a_bundle_is_named(tiny_bundle: Path, refused: Refused) -> None:
    bundle = changed_copy(tiny_bundle)
    size = (bundle / "step.onnx").stat().st_size
    with (bundle / "step.onnx").open("r+b") as file:
        file.truncate(size - 1)
    words = ("step.onnx", f"{size - 1} bytes, expected {size}")
    refused("generate", "--bundle", bundle, *PROMPT, *OUT, words=words, code=1)


def test_an_altered_file_of_a_bundle_is_named_with_both_hashes(
    tiny_bundle: Path, refused: Refused
) -> None:
    bundle = changed_copy(tiny_bundle)
    entries = json.loads((bundle / "manifest.json").read_text())["files"]
    path = max(bundle.iterdir(), key=lambda path: path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    words = (path.name, "altered", entries[path.name]["sha256"])
    error = refused("generate", "--bundle", bundle, *PROMPT, *OUT, words=words, code=1)
    assert error.count("sha256") == 1 and "expected" in error


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"format": 1', '"format": 2', ("format 2", "update longlive-trt")),
        ('"format": 1', '"format": 0', ("format 0", "build the bundle again")),
        ('"fps": 16.0', '"fps": 24.0', ("manifest.json", "altered")),
        ("{", "", ("manifest.json", "not a readable manifest")),
    ],
)
def test_a_changed_manifest_is_refused(
    tiny_bundle: Path, refused: Refused, old: str, new: str, words: tuple[str, ...]
) -> None:
    bundle = changed_copy(tiny_bundle)
    text = (bundle / "manifest.json").read_text()
    assert old in text
    (bundle / "manifest.json").write_text(text.replace(old, new, 1))
    refused("generate", "--bundle", bundle, *PROMPT, *OUT, words=words, code=1)


def test_what_is_no_bundle_is_refused(refused: Refused) -> None:
    Path("empty").mkdir()
    for folder, word in (("empty", "no manifest.json"), ("nowhere", "no such folder")):
        words = (folder, word, "longlive-trt build")
        refused("generate", "--bundle", folder, *PROMPT, *OUT, words=words)


# ---- generate: replay files ------------------------------------------------------------------


def replay_tensors() -> dict[str, Any]:
    return {
        "noise": np.zeros((1, 3, 16, 8, 12), np.float32),
        "renoise": np.zeros((1, 3, 1, 3, 16, 8, 12), np.float32),
        "prompt.0": np.zeros((1, 16, 64), np.float32),
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"noise": None}, ("tensor noise is missing",)),
        ({"renoise": None}, ("tensor renoise is missing",)),
        ({"prompt.0": None}, ("tensor prompt.0 is missing",)),
        ({"noise": np.zeros(4)}, ("noise is [4]",)),
        ({"noise": np.zeros(())}, ("noise is []",)),
        ({"noise": np.zeros((0, 3, 16, 8, 12))}, ("noise is [0, 3",)),
        ({"noise": np.zeros((1, 0, 16, 8, 12))}, ("0 frames",)),
        ({"noise": np.zeros((1, 4, 16, 8, 12))}, ("4 frames", "blocks of 3")),
        ({"noise": np.zeros((1, 3, 16, 8, 10))}, ("noise is [1, 3, 16, 8, 10]", "8, 12]")),
        ({"renoise": np.zeros((1, 2, 1, 3, 16, 8, 12))}, ("renoise is [1, 2",)),
        ({"renoise": np.zeros((1, 3, 2, 3, 16, 8, 12))}, ("renoise is [1, 3, 2",)),
        ({"renoise": np.zeros(())}, ("renoise is []",)),
        ({"prompt.0": np.zeros((1, 16, 63))}, ("prompt.0 is [1, 16, 63]",)),
        ({"prompt.0": np.zeros((3, 16, 64))}, ("prompt.0 is [3, 16, 64]",)),
        ({"prompt.0": np.zeros(())}, ("prompt.0 is []",)),
        ({"noise": np.full((1, 3, 16, 8, 12), np.nan)}, ("noise holds NaN",)),
        ({"prompt.0": np.full((1, 16, 64), np.inf)}, ("prompt.0 holds NaN",)),
    ],
)
def test_broken_replay_tensors(
    golden_bundle_fp32: Path, refused: Refused, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    tensors = {**replay_tensors(), **changes}
    tensors = {k: v.astype(np.float32) for k, v in tensors.items() if v is not None}
    save_file(tensors, "r.safetensors", {"schedule": '[{"frame": 0, "prompt": 0}]'})
    arguments = ("--bundle", golden_bundle_fp32, "--replay", "r.safetensors", *OUT)
    refused("generate", *arguments, words=("r.safetensors", *words))


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (None, ("schedule", "missing")),
        ("", ("schedule", "JSON")),
        ("{", ("schedule", "JSON")),
        ("5", ("schedule", "JSON")),
        ("[]", ("begin with frame 0",)),
        ('{"frame": 0, "prompt": 0}', ("schedule", "JSON")),
        ('[{"frame": 0}]', ("schedule", "JSON")),
        ('[{"frame": "0", "prompt": 0}]', ("schedule", "JSON")),
        ('[{"frame": 0.0, "prompt": 0}]', ("schedule", "JSON")),
        ('[{"frame": Infinity, "prompt": 0}]', ("schedule", "JSON")),
        ('[{"frame": 3, "prompt": 0}]', ("begin with frame 0",)),
        ('[{"frame": -3, "prompt": 0}]', ("begin with frame 0",)),
        ('[{"frame": 0, "prompt": 1}]', ("prompt.1", "not in the file")),
        (
            '[{"frame": 0, "prompt": 0}, {"frame": 6, "prompt": 0}, {"frame": 3, "prompt": 0}]',
            ("frame 3 comes after frame 6",),
        ),
    ],
)
def test_broken_replay_schedules(
    golden_bundle_fp32: Path, refused: Refused, schedule: str | None, words: tuple[str, ...]
) -> None:
    metadata = None if schedule is None else {"schedule": schedule}
    save_file(replay_tensors(), "r.safetensors", metadata)
    arguments = ("--bundle", golden_bundle_fp32, "--replay", "r.safetensors", *OUT)
    refused("generate", *arguments, words=("r.safetensors", *words))


def test_a_replay_file_that_is_cut_short_or_something_else(
    golden_bundle_fp32: Path, refused: Refused
) -> None:
    whole = (GOLDEN / "switch6.replay.safetensors").read_bytes()
    for content in (b"", b"junk", whole[:1000], whole[:-1]):
        Path("r.safetensors").write_bytes(content)
        arguments = ("--bundle", golden_bundle_fp32, "--replay", "r.safetensors", *OUT)
        refused("generate", *arguments, words=("r.safetensors", "safetensors file"))


def test_a_replay_tensor_of_another_name_does_no_harm(golden_bundle_fp32: Path) -> None:
    tensors = {**replay_tensors(), "prompt.\u00b2": np.zeros(1, np.float32)}
    save_file(tensors, "r.safetensors", {"schedule": '[{"frame": 0, "prompt": 0}]'})
    assert generate_latents(golden_bundle_fp32, "--replay", "r.safetensors").shape[1] == 3


# ---- build -----------------------------------------------------------------------------------


def test_building_again_changes_nothing_and_says_so(golden_export: Path, capsys: Any) -> None:
    build = ("build", "--onnx", golden_export, "--out", "bundle")
    succeeds(*build)
    assert "built bundle" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in Path("bundle").iterdir()}
    succeeds(*build)
    assert "nothing has changed" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in Path("bundle").iterdir()}
    succeeds(*build, "--force")
    assert "built bundle" in capsys.readouterr().out
    assert not list(Path().glob(".*"))


def edited_record(exported: Path, **changes: Any) -> Path:
    folder = changed_copy(exported, "edited-export")
    values = json.loads((folder / "export.json").read_text())
    values.update(changes)
    (folder / "export.json").write_text(json.dumps(values))
    return folder


def test_any_change_builds_again(golden_export: Path, capsys: Any) -> None:
    build = ("build", "--onnx", golden_export, "--out", "bundle")
    succeeds(*build)
    succeeds(*build, "--precision", "fp16")
    # The configuration decides what is made, even where the graphs stay the same.
    config = json.loads((golden_export / "export.json").read_text())["config"]
    config["rollout"]["window_frames"] = 9
    other = edited_record(golden_export, config=config)
    succeeds("build", "--onnx", other, "--out", "bundle", "--precision", "fp16")
    output = capsys.readouterr().out
    assert output.count("built bundle") == 3
    manifest = json.loads(Path("bundle/manifest.json").read_text())
    assert manifest["config"]["rollout"]["window_frames"] == 9
    assert manifest["precision"] == "fp16"


def test_a_bundle_that_was_damaged_is_built_again(golden_export: Path, capsys: Any) -> None:
    build = ("build", "--onnx", golden_export, "--out", "bundle")
    succeeds(*build)
    Path("bundle/step.onnx").write_bytes(b"")
    succeeds(*build)
    assert capsys.readouterr().out.count("built bundle") == 2
    assert Path("bundle/step.onnx").stat().st_size > 0


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("", ("not a readable export record",)),
        ("null", ("not a readable export record",)),
        ("[]", ("not a readable export record",)),
        ('"text"', ("not a readable export record",)),
        ('{"format": 1}', ("not a readable export record",)),
        ('{"format": 1, "graphs": []}', ("not a readable export record",)),
        ('{"format": 99}', ("another version",)),
    ],
)
def test_build_refuses_a_broken_record(
    refused: Refused, record: str, words: tuple[str, ...]
) -> None:
    Path("onnx").mkdir()
    Path("onnx/export.json").write_text(record)
    refused("build", "--onnx", "onnx", "--out", "b", words=("onnx/export.json", *words))


def test_build_refuses_files_that_are_not_those_exported(
    golden_export: Path, refused: Refused
) -> None:
    folder = changed_copy(golden_export)
    weights = folder / "transformer.weights"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused("build", "--onnx", folder, "--out", "b", words=("transformer.weights", "altered"))
    weights.unlink()
    refused("build", "--onnx", folder, "--out", "b", words=("transformer.weights", "missing"))


def test_build_refuses(golden_export: Path, refused: Refused, tmp_path: Path) -> None:
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("precious")
    Path("file").write_text("precious")
    for onnx, out, words in (
        ("nowhere", "b", ("nowhere", "no such folder")),
        ("mine", "b", ("mine", "no export.json")),
        (golden_export, "mine", ("mine", "not empty and not a bundle")),
        (golden_export, "file", ("file", "in the way")),
    ):
        refused("build", "--onnx", onnx, "--out", out, words=words)
    Path("here").mkdir()
    os.chdir("here")
    refused("build", "--onnx", golden_export, "--out", ".", words=("the folder you are in",))
    os.chdir(tmp_path)


def test_a_failed_build_keeps_the_old_bundle(
    golden_export: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeeds("build", "--onnx", golden_export, "--out", "bundle")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device", "bundle")

    monkeypatch.setattr("longlive_trt.engines.build.bundle_entries", full_disk)
    other = ("--out", "bundle", "--precision", "fp16")
    refused("build", "--onnx", golden_export, *other, words=("No space", "free some"), code=1)


# ---- export ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--config", "tiny"), ("nothing to export", "--random-weights")),
        (("--config", "nothing", "--random-weights", "1"), ("nothing", "tiny")),
        (("--config", "tiny", "--random-weights", "1", "--vae", "v.pth"), ("without checkpoints",)),
        (("--config", "tiny", "--lora", "l.pt"), ("--lora", "--transformer")),
        (("--config", "tiny", "--transformer", "none.pt"), ("none.pt",)),
        (
            ("--config", "tiny", "--random-weights", "1", "--set", "latent.height=15"),
            ("latent.height", "multiple of the patch size (2)"),
        ),
        (
            ("--config", "tiny", "--random-weights", "1", "--set", "transformer.heds=2"),
            ("transformer.heds", "transformer.heads"),
        ),
        (
            ("--config", "tiny", "--random-weights", "1", "--tokenizer", "nowhere"),
            ("nowhere", "--tokenizer"),
        ),
    ],
)
def test_export_refuses(
    refused: Refused, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused("export", *arguments, "--out", "onnx", words=words)


def test_export_replaces_no_folder_of_somebody_else(refused: Refused) -> None:
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("precious")
    export = ("export", "--config", "tiny", "--random-weights", 1)
    refused(*export, "--out", "mine", words=("mine", "not empty and not an export"))
    refused(*export, "--out", "mine/letter.txt", words=("letter.txt", "in the way"))


def test_export_names_tensors_that_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = GOLDEN / "transformer.safetensors"
    sizes = ("--set", "transformer.text_len=16", "--set", "transformer.ffn_dim=640")
    export = ("export", "--config", "tiny", "--transformer", str(checkpoint), "--out", "onnx")
    assert main([*export, *sizes]) == 1
    error = capsys.readouterr().err
    for part in ("blocks.0.ffn.0.weight: expected [640, 256], found [512, 256]", "check --config"):
        assert part in error
    assert not list(Path().iterdir())


# ---- interrupts, in a process of its own -----------------------------------------------------


def start(*arguments: object, cwd: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_blocks(process: "subprocess.Popen[str]", count: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        count -= json.loads(line)["event"] == "block"
        if count == 0:
            return
    pytest.fail(process.stderr.read() if process.stderr else "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_all_that_was_made(
    tiny_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    arguments = (
        "--prompt",
        "a",
        "--seconds",
        "inf",
        "--out",
        "v.mp4",
        "--save-state",
        "s",
        "--json",
    )
    process = start("generate", "--bundle", tiny_bundle, *arguments, cwd=tmp_path)
    wait_for_blocks(process, 2)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    finished = json.loads(output.splitlines()[-1])
    assert finished["interrupted"] is True
    with av.open(str(tmp_path / "v.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == finished["video_frames"]
    record = json.loads((tmp_path / "v.mp4.json").read_text())
    assert record["video_frames"] == finished["video_frames"]
    assert {path.name for path in tmp_path.iterdir()} == {"v.mp4", "v.mp4.json", "s"}
    latents = 3 * finished["blocks"]
    assert finished["video_frames"] == 1 + 4 * (latents - 1)
    resumed = generate_latents(tiny_bundle, "--resume", tmp_path / "s", *ONE_BLOCK)
    whole = generate_latents(tiny_bundle, "--prompt", "a", "--frames", latents + 3)
    assert np.array_equal(resumed, whole[:, latents:])


def test_two_interrupts_stop_at_once_and_keep_a_video(tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ("--prompt", "a", "--seconds", "inf", "--out", "v.mp4", "--json")
    process = start("generate", "--bundle", tiny_bundle, *arguments, cwd=tmp_path)
    wait_for_blocks(process, 1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    with av.open(str(tmp_path / "v.mp4")) as video:
        frames = sum(1 for _ in video.decode(video=0))
    assert frames >= 9 and (frames - 9) % 12 == 0


def test_the_command_line_of_a_bare_checkout(tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ("--prompt", "a", *ONE_BLOCK, "--out", "v.gif")
    process = start("generate", "--bundle", tiny_bundle, *arguments, cwd=tmp_path)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (0, "")
    assert "made 1 blocks, 9 video frames" in errors
    assert (tmp_path / "v.gif").stat().st_size > 0
