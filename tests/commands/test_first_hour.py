"""What somebody meets who tries the program for the first time."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longlive_trt.commands._voice import Voice
from longlive_trt.commands.making.build import show_result
from longlive_trt.engines.build import BuildResult
from longlive_trt.engines.bundles.bundle import read_manifest
from longlive_trt.exports import GraphInfo
from longlive_trt.files import facts
from longlive_trt.making import estimates
from tests.commands.running import ONE_BLOCK, PROMPT, succeeds
from tests.shared import MINIS

Refused = Callable[..., str]

pytestmark = pytest.mark.usefixtures("in_empty_folder")

EXPORT = ("export", "--config", "mini.yaml", "--random-weights", 0, "--no-check")


@pytest.fixture
def mini_config() -> None:
    Path("mini.yaml").write_text(json.dumps(MINIS["relative"]))


@pytest.fixture
def exported(mini_bundle: Callable[[str], Path]) -> Path:
    return mini_bundle("relative").with_name("mini-relative-export")


def test_a_hub_s_name_in_the_place_of_the_tokenizer(refused: Refused) -> None:
    words = ("export", "--config", "tiny", "--transformer", "t.pt", "--out", "onnx", "--tokenizer")
    hint = "`hf download google/umt5-xxl tokenizer.json --local-dir umt5-xxl`"
    said = ("--tokenizer takes the folder", "looks like a model on a hub", hint)
    refused(*words, "google/umt5-xxl", words=said)
    Path("mine/tokenizer").mkdir(parents=True)
    said = ("mine/tokenizer/tokenizer.json: no such file",)
    assert "hub" not in refused(*words, "mine/tokenizer", words=said)


@pytest.mark.exhaustive
def test_an_export_ends_with_what_to_do_next(mini_config: None, capsys: Any) -> None:
    succeeds(*EXPORT, "--out", "my onnx")
    said = capsys.readouterr().out.splitlines()
    summary = r"exported my onnx: 2 graphs \(step, prompt\), fp32, [\d.]+ [kM]B; "
    assert re.fullmatch(summary + "not compared with torch", said[0])
    assert said[1:] == ["next: longlive-trt build --onnx 'my onnx' --out bundle/"]


def test_an_export_in_the_place_of_a_bundle_names_build(exported: Path, refused: Refused) -> None:
    for words in (("generate", *PROMPT, "--out", "v.mp4", "--bundle"), ("verify",)):
        refused(*words, exported, words=("an export", f"longlive-trt build --onnx {exported}"))


def test_a_build_names_the_next_command(fake_bundle: Callable[..., Path], capsys: Any) -> None:
    bundle = fake_bundle(Path("my bundle"), graphs={"text": GraphInfo((), ())})
    show_result(BuildResult(read_manifest(bundle), was_current=False), bundle, Voice())
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "next: longlive-trt generate --bundle 'my bundle' --prompt \"...\" --out v.mp4"


@pytest.mark.parametrize("command", ["export", "build", "unpack", "pull"])
def test_space_is_looked_for_first(
    command: str,
    exported: Path,
    mini_config: None,
    video_bundle: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    succeeds("pack", video_bundle, "--out", "b.tar.zst", "--quiet")
    succeeds("push", video_bundle, "store", "--quiet")
    monkeypatch.setattr(facts, "free_bytes", lambda _path: 1234)
    words = {
        "export": EXPORT,
        "build": ("build", "--onnx", exported),
        "unpack": ("unpack", "b.tar.zst"),
        "pull": ("pull", "store"),
    }[command]
    error = refused(*words, "--out", "o", words=("are needed and 1.2 kB are free",), code=1)
    assert re.search(r"o: [\d.]+ [kM]B are needed", error)


@pytest.mark.exhaustive
def test_a_calibration_says_how_long_it_will_take(
    small_export: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "_measured_rate", lambda *_: 1e5)
    Path("prompts.txt").write_text("a cat\na dog\n")
    options = ("--precision", "fp8", "--prompts", "prompts.txt", "--blocks", 2, "--no-check")
    succeeds("calibrate", "--onnx", small_export, *options, "--out", "onnx-fp8")
    captured = capsys.readouterr()
    first = captured.err.splitlines()[0]
    assert re.fullmatch(r"note: 1 rollout of 2 blocks on cpu, about \d+ (minutes|hours)", first)
    assert captured.out.splitlines()[-1] == (
        "next: longlive-trt build --onnx onnx-fp8 --precision fp8 --out bundle/"
    )


def test_an_estimate_grows_with_the_work(small_config: Any, monkeypatch: Any) -> None:
    from longlive_trt.calibration.calibrator import CalibrationRequest
    from longlive_trt.calibration.recipes import recipe_named

    monkeypatch.setattr(estimates, "_measured_rate", lambda *_: 1e6)

    def hours(prompts: int) -> str:
        request = CalibrationRequest(recipe_named("fp8"), ("a cat",) * prompts)
        return estimates.describe_calibration(small_config, request)

    few, many = hours(2), hours(200)
    assert few.startswith("1 rollout of ") and many.startswith("100 rollouts of ")
    assert few != many and "about" in many


def test_the_rate_is_that_of_this_machine() -> None:
    assert 1e8 < estimates._measured_rate("cpu", "fp32") < 1e15


# ---- quiet, and for scripts --------------------------------------------------------------------


def commands(bundle: Path, exported: Path) -> dict[str, tuple[object, ...]]:
    return {
        "build": ("build", "--onnx", exported, "--out", "built"),
        "pack": ("pack", bundle, "--out", "b.tar.zst"),
        "unpack": ("unpack", "b.tar.zst", "--out", "unpacked"),
        "push": ("push", bundle, "store"),
        "pull": ("pull", "store", "--out", "pulled"),
        "inspect": ("inspect", bundle),
        "verify": ("verify", bundle),
        "export-triton": ("export-triton", bundle, "--out", "models"),
        "doctor": ("doctor",),
    }


def test_quiet_shows_errors_only(exported: Path, capsys: Any) -> None:
    for words in commands(exported.with_name("mini-relative"), exported).values():
        succeeds(*words, "--quiet")
        assert capsys.readouterr() == ("", ""), words


def test_every_result_is_json(exported: Path, capsys: Any) -> None:
    for words in commands(exported.with_name("mini-relative"), exported).values():
        succeeds(*words, "--json", "--quiet")
        captured = capsys.readouterr()
        assert isinstance(json.loads(captured.out), dict) and captured.err == "", words


def test_one_block_is_no_blocks(video_bundle: Path, capsys: Any) -> None:
    succeeds("generate", "--bundle", video_bundle, *PROMPT, *ONE_BLOCK, "--out", "v.mp4")
    said = capsys.readouterr().err
    assert "making 1 block, 9 video frames" in said and "made 1 block, 9 video frames" in said
