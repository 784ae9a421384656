"""``longlive-trt eval`` on a model of a few thousand weights."""

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longlive_trt.cli import main
from longlive_trt.commands._voice import Voice
from longlive_trt.commands.running import eval as eval_command
from longlive_trt.engines.bundles.bundle import MANIFEST_NAME, read_manifest
from longlive_trt.loading import load
from longlive_trt.quality import evaluation
from longlive_trt.quality.rolling import Maker
from tests.commands.conftest import Refused
from tests.commands.running import snapshot

SMALL = ("--prompts", 2, "--timelines", 1, "--seconds", 1, "--long", 1, "--long-seconds", 3)
FASTER = ("--set", "rollout.steps=[1000]")


@pytest.fixture
def prompts(in_empty_folder: Path) -> Path:
    asked = [{"prompt": f"a cat, number {n}"} for n in range(3)]
    Path("prompts.json").write_text(
        json.dumps({"format": 1, "prompts": asked, "timelines": [asked]})
    )
    return Path("prompts.json")


def run(*arguments: object) -> int:
    return main(["eval", *map(str, arguments)])


def report(path: str = "out/report.json") -> Any:
    return json.loads(Path(path).read_text())


def test_a_setting_against_the_bundle_itself(
    video_bundle: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(video_bundle, *SMALL, *FASTER, "--prompt-set", prompts, "--out", "out") == 0
    assert {str(path) for path in Path().rglob("*") if path.is_file()} == {
        *("prompts.json", "out/report.json", "out/report.md", "out/report.html")
    }
    values = report()
    assert values["videos"] == {"prompt": 2, "timeline": 1, "long": 1}
    found = {metric["name"]: metric for metric in values["metrics"]}
    assert 5 < found["psnr"]["own"]["mean"] < 99 and found["psnr"]["own"]["count"] == 3
    assert found["flicker"]["other"] is not None
    assert values["bundle"]["overrides"] == ["rollout.steps=[1000]"]
    shown = capsys.readouterr()
    assert "PSNR, dB" in shown.out and "timeline 1: video 3 of 4" in shown.err


def test_a_bundle_alone_and_a_bundle_that_is_the_same(video_bundle: Path, prompts: Path) -> None:
    few = ("--prompts", 1, "--timelines", 0, "--seconds", 1, "--long", 0, "--prompt-set", prompts)
    assert run(video_bundle, *few, "--out", "alone.html") == 0
    names = {metric["name"] for metric in report("alone.json")["metrics"]}
    assert names == {"flicker", "sharpness", "saturation", "motion"}
    assert report("alone.json")["clips_read_by"] == read_manifest(video_bundle).config.name
    shutil.copytree(video_bundle, "copy")
    assert run(video_bundle, "--against", "copy", *few, "--out", "same.md") == 0
    found = {metric["name"]: metric["own"] for metric in report("same.json")["metrics"]}
    assert found["psnr"]["mean"] == 100 and found["ssim"]["mean"] == pytest.approx(1)


def test_distances_of_clips(video_bundle: Path, prompts: Path) -> None:
    """Of as many videos as a distance needs, and of one less."""
    asked = [{"prompt": f"a cat, number {n}"} for n in range(8)]
    prompts.write_text(json.dumps({"format": 1, "prompts": asked}))
    few = ("--seconds", 1, "--long", 0, "--prompt-set", prompts)
    assert run(video_bundle, *few, "--set", "rollout.steps=[1000]", "--out", "all.json") == 0
    values = report("all.json")
    (found,) = (metric for metric in values["metrics"] if metric["name"] == "frechet")
    assert found["own"]["mean"] > 0 and found["own"]["count"] == 8
    assert found["own"]["chance"] is not None and "means and spreads alone" in found["note"]
    assert run(video_bundle, *few, *FASTER, "--prompts", 7, "--out", "few.json") == 0
    (found,) = (m for m in report("few.json")["metrics"] if m["name"] == "frechet")
    assert found["own"] is None and found["note"].startswith("too few videos: 7")
    assert "too few videos: 7" in Path("few.html").read_text()


@pytest.mark.usefixtures("in_empty_folder")
def test_without_an_encoder_the_demo_reads_the_clips(
    video_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here any other bundle is called the demo."""
    graphs = read_manifest(video_bundle).graphs
    without = changed(
        video_bundle, graphs={n: g for n, g in graphs.items() if not n.startswith("encode")}
    )
    monkeypatch.setattr(eval_command, "find_bundle", lambda _path, _voice: video_bundle)
    with ExitStack() as stack, load(without) as pipeline:
        reader = eval_command._clip_reader(Maker(pipeline), None, stack, Voice())
        assert reader.pictures == 9
        assert len(reader(np.zeros((9, 70, 90, 3), np.uint8))) == 3 * 16


def test_an_interrupted_run_goes_on(
    video_bundle: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = (video_bundle, *SMALL, *FASTER, "--prompt-set", prompts, "--out", "out/r.html")
    roll, rolled = evaluation.roll, list[str]()

    def stopping(case: Any, own: Any, other: Any, extras: Any, on_block: Any) -> Any:
        rolled.append(case.name)
        return None if len(rolled) == 3 else roll(case, own, other, extras, on_block)

    monkeypatch.setattr(evaluation, "roll", stopping)
    assert run(*arguments) == 130
    assert [path.name for path in Path("out").iterdir()] == [".r.html.eval"]
    assert "2 videos are measured; the same command goes on" in capsys.readouterr().err
    assert run(*arguments) == 0
    assert rolled == ["prompt 1", "prompt 2", "timeline 1", "timeline 1", "long 1"]
    assert {path.name for path in Path("out").iterdir()} == {"r.html", "r.md", "r.json"}


def test_another_decoder_against_the_bundle_as_it_is(two_decoders: Path, prompts: Path) -> None:
    few = ("--prompts", 1, "--timelines", 0, "--seconds", 1, "--long", 0, "--prompt-set", prompts)
    for number, options in enumerate((("--decoder", "light"), ("--preset", "light"))):
        assert run(two_decoders, *few, *options, "--out", f"{number}.json") == 0
    first, second = (report(f"{number}.json") for number in (0, 1))
    assert first["bundle"]["decoder"] == "light" and second["bundle"]["preset"] == "light"
    assert [m["own"] for m in first["metrics"]] == [m["own"] for m in second["metrics"]]
    assert first["reference"]["decoder"] is None


def test_a_report_is_not_replaced_unasked(
    video_bundle: Path, prompts: Path, refused: Refused
) -> None:
    Path("out").mkdir()
    Path("out/report.md").write_text("mine")
    refused("eval", video_bundle, "--out", "out", words=("out/report.md", "--overwrite"))


def changed(bundle: Path, **changes: Any) -> Path:
    """A copy of a bundle whose manifest says something else."""
    shutil.copytree(bundle, "changed")
    manifest = replace(read_manifest(Path("changed")), **changes)
    (Path("changed") / MANIFEST_NAME).write_text(manifest.to_json())
    return Path("changed")


def test_what_cannot_be_compared(
    video_bundle: Path, mini_bundle: Callable[[str], Path], refused: Refused
) -> None:
    config = read_manifest(video_bundle).config
    assert config.vae is not None
    small = replace(config.vae, multipliers=(1, 2), temporal_upsample=(True,))
    bundle = changed(video_bundle, config=replace(config, vae=small))
    words = ("makes pictures of 12 x 8 pixels", "of 48 x 32", "builds of one model")
    refused("eval", video_bundle, "--against", bundle, "--out", "out", words=words)
    shutil.rmtree("changed")
    slow = changed(video_bundle, config=replace(config, fps=8))
    words = ("videos of another length", "builds of one model")
    refused("eval", video_bundle, "--against", slow, "--out", "out", words=words)
    words = ("has no VAE",)
    refused("eval", mini_bundle("relative"), "--out", "out", words=words)


def test_a_reference_is_asked_for_where_there_is_none(video_bundle: Path, refused: Refused) -> None:
    half = changed(video_bundle, precision="fp16")
    refused("eval", half, "--out", "out", words=("built in fp16", "--against BUNDLE"))
    words = ("BUNDLE itself", "--preset")
    refused("eval", video_bundle, "--against", video_bundle, "--out", "out", words=words)


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        (("--lpips", "gone.pth"), ("--lpips gone.pth", "cannot be read"), 2),
        (("--clip", "gone"), ("--clip gone", "no such folder"), 2),
        (("--prompt-set", "gone.json"), ("gone.json", "cannot be read"), 2),
        (("--preset", "nothing"), ("nothing", "no such preset"), 2),
    ],
)
def test_bad_input(
    video_bundle: Path,
    refused: Refused,
    options: tuple[str, ...],
    words: tuple[str, ...],
    code: int,
) -> None:
    refused("eval", video_bundle, *options, "--out", "out", words=words, code=code)


def test_the_demo_is_judged_only_where_torch_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from longlive_trt.demo.geometry import model_config

    class Demo:
        config = model_config()

    assert eval_command._judges(Demo(), Voice())  # type: ignore[arg-type]
    monkeypatch.setattr(eval_command, "can_judge", lambda: False)
    assert not eval_command._judges(Demo(), Voice())  # type: ignore[arg-type]
    assert "pip install" in capsys.readouterr().err


def test_nothing_is_left_of_a_run_that_is_refused(video_bundle: Path, refused: Refused) -> None:
    before = snapshot(Path())
    refused("eval", video_bundle, "--switch", "never", "--out", "out", words=("'never'",))
    assert snapshot(Path()) == before
