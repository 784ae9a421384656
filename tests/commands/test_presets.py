"""``longlive-trt presets``, and presets in other commands."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longlive_trt.cli import main
from longlive_trt.commands.running import presets as presets_command
from longlive_trt.configs import load_preset
from longlive_trt.engines.bundles.bundle import MANIFEST_NAME, open_bundle, read_manifest
from longlive_trt.quality.measured import Figures, Measured, Rate
from longlive_trt.runtime import presets
from longlive_trt.runtime.bench.kept import keep_speed, kept_speeds
from longlive_trt.runtime.pipeline import Pipeline
from tests.commands.conftest import Refused
from tests.commands.running import generate_latents, succeeds

BUILD = "longlive-trt build --onnx EXPORT --preset turbo-fp8 --out BUNDLE"
VIDEO = ("--prompt", "a cat", "--frames", "6")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def changed(bundle: Path, **changes: Any) -> Path:
    """A copy of a bundle whose manifest says something else."""
    shutil.copytree(bundle, "changed")
    manifest = replace(read_manifest(Path("changed")), **changes)
    (Path("changed") / MANIFEST_NAME).write_text(manifest.to_json())
    return Path("changed")


def test_a_preset_is_its_settings(video_bundle: Path, in_empty_folder: Path) -> None:
    settings = ("rollout.steps=[1000,500]",)
    first = "rollout.first_steps=[1000,750,500,250]"
    same = [part for one in (*settings, first) for part in ("--set", one)]
    by_preset = generate_latents(video_bundle, *VIDEO, "--preset", "turbo")
    assert (generate_latents(video_bundle, *VIDEO, *same) == by_preset).all()
    assert (generate_latents(video_bundle, *VIDEO) != by_preset).any()


def test_low_memory_is_part_of_a_preset(
    video_bundle: Path, in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longlive_trt.commands.running import generate

    asked: list[bool] = []

    class Noting(Pipeline):
        def __init__(self, *arguments: Any, low_memory: bool, **options: Any) -> None:
            asked.append(low_memory)
            super().__init__(*arguments, low_memory=low_memory, **options)

    monkeypatch.setattr(generate, "Pipeline", Noting)
    generate_latents(video_bundle, *VIDEO, "--preset", "low-memory")
    generate_latents(video_bundle, *VIDEO, "--preset", "balanced")
    assert asked == [True, False]


def test_a_bundle_that_cannot_serve_a_preset(video_bundle: Path, refused: Refused) -> None:
    for command in ("generate", "bench"):
        options = (*VIDEO, "--out", "v.mp4") if command == "generate" else ()
        words = ("preset turbo-fp8: needs a bundle with precision fp8", "has fp32", BUILD)
        refused(command, "--bundle", video_bundle, *options, "--preset", "turbo-fp8", words=words)
    words = ("preset turbo-fp8", BUILD)
    refused("eval", video_bundle, "--preset", "turbo-fp8", "--out", "out", words=words)


def test_positions_cannot_be_changed_any_more(mini_bundle: Any, refused: Refused) -> None:
    words = ("preset endless", "exported with absolute", "export again with --set")
    options = ("--prompt", "a", "--latents-out", "l", "--preset", "endless")
    refused("generate", "--bundle", mini_bundle("absolute"), *options, words=words)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        ("cache: fp8", "a cache in fp8"),
        ("attention: plugin", "attention plugin"),
        ("decoder: light", "the decoder light"),
    ],
)
def test_everything_that_a_preset_may_need(
    build: str, words: str, video_bundle: Path, refused: Refused
) -> None:
    Path("p.yaml").write_text(f"build: {{{build}}}\n")
    options = (*VIDEO, "--out", "v.mp4", "--preset", "p.yaml")
    refused("generate", "--bundle", video_bundle, *options, words=(words, "build --onnx EXPORT"))


def test_a_bundle_that_has_what_is_needed_serves(video_bundle: Path, in_empty_folder: Path) -> None:
    half = open_bundle(changed(video_bundle, precision="fp8", options={"attention": "plugin"}))
    assert "turbo-fp8" in presets.served_presets(half)
    assert "turbo-fp8" not in presets.served_presets(open_bundle(video_bundle))
    Path("p.yaml").write_text("build: {precision: fp8, attention: plugin, decoder: full}\n")
    assert presets.unserved(half, load_preset("p.yaml")) is None


def test_build_makes_what_a_preset_needs(
    small_export: Path,
    refused: Refused,
) -> None:
    Path("p.yaml").write_text("build: {precision: fp16}\n")
    succeeds("build", "--onnx", small_export, "--preset", "p.yaml", "--out", "half")
    assert read_manifest(Path("half")).precision == "fp16"
    succeeds("build", "--onnx", small_export, "--preset", "turbo", "--out", "plain")
    assert read_manifest(Path("plain")).precision == "fp32"
    given = ("build", "--onnx", small_export, "--out", "b")
    words = ("--precision bf16: preset p.yaml needs fp16",)
    refused(*given, "--preset", "p.yaml", "--precision", "bf16", words=words)
    Path("c.yaml").write_text("build: {precision: fp8, cache: fp8}\n")
    words = ("preset c.yaml needs cache in fp8", "longlive-trt calibrate", "--cache fp8")
    refused(*given, "--preset", "c.yaml", words=words)
    Path("d.yaml").write_text("build: {decoder: light}\n")
    refused(*given, "--preset", "d.yaml", words=("needs the light decoder", "--light-vae"))


def listed(*options: object, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    succeeds("presets", *options, "--json")
    return {row["preset"]: row for row in json.loads(capsys.readouterr().out)["presets"]}


def test_the_list(video_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed("--bundle", video_bundle, capsys=capsys)
    assert "needs a bundle with precision fp8" in rows["turbo-fp8"]["missing"]
    assert rows["turbo"]["missing"] is None and rows["turbo"]["here"] == {}
    assert rows["turbo"]["measured"] is None, "nothing is known of this model"
    succeeds("presets", "--bundle", video_bundle)
    shown = capsys.readouterr().out
    assert f"Nothing is measured here yet: longlive-trt bench --bundle {video_bundle}" in shown
    assert f"No quality is known of these weights: longlive-trt eval {video_bundle}" in shown
    lines = reversed(shown.splitlines())
    table = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert table["turbo"][:4] == ["2", "(4)", "12", "full"], "as a video would be made"
    assert table["low-memory"][:3] == ["4", "12", "full"]


def test_shipped_figures_are_listed_by_device(
    video_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = Figures(
        presets={"turbo": Measured(shown=93.5, psnr_db=28.62, ssim=0.83, videos=40)},
        speeds={"2 x CPU": {"turbo": Rate(391.4, 30.7)}, "NVIDIA L4": {"ultra": Rate(20.0)}},
    )
    monkeypatch.setattr(presets_command, "shipped_figures", lambda _model, _sums: figures)
    rows = listed("--bundle", video_bundle, capsys=capsys)
    assert rows["turbo"]["measured"]["shown"] == 93.5
    assert rows["turbo"]["elsewhere"] == {
        "2 x CPU": {"block_ms": 391.4, "video_frames_per_s": 30.7}
    }
    succeeds("presets", "--bundle", video_bundle)
    shown = capsys.readouterr().out
    assert "2 x CPU" in shown and "NVIDIA L4" in shown and "No quality is known" not in shown
    lines = shown.splitlines()
    turbo, ultra = (next(x for x in lines if x.startswith(n)).split() for n in ("turbo ", "ultra "))
    assert turbo[5:] == ["93.5", "28.6", "0.830", "391", "(30.7)", "-"]
    assert ultra[-2:] == ["-", "20"]


def test_what_bench_measured_is_listed(
    video_bundle: Path, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("--blocks", 2, "--switches", 0, "--seconds", 0, "--warmup", 0)
    succeeds("bench", "--bundle", video_bundle, *quick, "--preset", "ultra")
    row = listed("--bundle", video_bundle, capsys=capsys)["ultra"]
    ((device, here),) = row["here"].items()
    assert here["block_ms"] > 0 and here["memory_bytes"] > 0
    assert here["rollout"]["steps"] == [1000]
    succeeds("presets", "--bundle", video_bundle)
    shown = capsys.readouterr().out
    assert f"{here['block_ms']:.0f}" in shown and "here, " in shown
    key = read_manifest(video_bundle).key
    assert set(kept_speeds(key)) == {"ultra"}
    # Another machine with the same home folder.
    keep_speed(key, "ultra", "NVIDIA L4", replace(kept_speeds(key)["ultra"][device], block_ms=7))
    here = listed("--bundle", video_bundle, capsys=capsys)["ultra"]["here"]
    assert here["NVIDIA L4"]["block_ms"] == 7 and device in here
    path = next(Path(p) for p in _cache().rglob(f"{key}.json"))
    path.write_text(path.read_text().replace("1000", "900"))
    assert listed("--bundle", video_bundle, capsys=capsys)["ultra"]["here"] == {}
    path.write_text("{")
    assert kept_speeds(key) == {}


def _cache() -> Path:
    from longlive_trt.files import cache_folder

    return cache_folder("bench")


def test_a_cache_that_cannot_be_written_is_no_failure(
    video_bundle: Path, in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    Path("file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("file").absolute()))
    quick = ("--blocks", 1, "--switches", 0, "--seconds", 0, "--warmup", 0)
    assert main(["bench", "--bundle", str(video_bundle), *map(str, quick)]) == 0
    assert "the speed is not kept" in capsys.readouterr().err
