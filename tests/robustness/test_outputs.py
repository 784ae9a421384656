"""Files that commands write: what is there stays, and what is written is whole and agrees."""

import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from longlive_trt.engines.bundles.archive import pack
from longlive_trt.runtime.progress import PlainProgress
from longlive_trt.runtime.transformer import TransformerPasses
from tests.robustness.support.places import MakeBundle, frames_in, run, snapshot, write

PROMPT = ("--prompt", "a cat")
BLOCKS = ("--frames", "9")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bundle(here: Path, video_bundle: Path) -> Path:
    shutil.copytree(video_bundle, here / "b")
    return Path("b")


@contextmanager
def disk_of(size_bytes: int) -> Iterator[None]:
    """No file grows larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ---- what is in the way ------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, ...]] = {
    "latents over the manifest": ("generate", "--latents-out", "b/manifest.json", "--overwrite"),
    "latents over the weights": ("generate", "--latents-out", "b/step.weights", "--overwrite"),
    "a state over a graph": ("generate", "--out", "v.mp4", "--save-state", "b/step.onnx"),
    "a video in a bundle": ("generate", "--out", "b/v.mp4"),
    "a video deep in a bundle": ("generate", "--out", "b/videos/v.mp4"),
    "frames in a bundle": ("generate", "--out", "b/frames/"),
    "a video in a bundle by a link": ("generate", "--out", "link/v.mp4"),
    "a report over the manifest": ("bench", "--out", "b/manifest.json", "--overwrite"),
    "a plot in a bundle": ("bench", "--plot", "b/p.png"),
    "a name that ends with a dot": ("generate", "--out", "v.mp4."),
    "a device": ("generate", "--out", "/dev/full.mp4"),
    "a device by its name": ("generate", "--latents-out", "/dev/full", "--overwrite"),
    "the kernel's folder": ("generate", "--save-state", "/proc/self/s", "--out", "v.mp4"),
    "standard output": ("generate", "--latents-out", "-"),
    "a report to standard output": ("bench", "--out", "-"),
    "a loop of links": ("generate", "--out", "loop.mp4", "--overwrite"),
    "a loop of links as a folder": ("generate", "--out", "loop.mp4/v.mp4"),
    "a file of the record's name": ("generate", "--out", "mine.mp4"),
    "a folder of the record's name": ("generate", "--out", "ours.mp4", "--overwrite"),
    "frames among other files": ("generate", "--out", "folder/", "--overwrite"),
    "too fast": ("generate", "--out", "v.mp4", "--set", "fps=5000"),
    "much too fast": ("generate", "--out", "v.mov", "--set", "fps=20000"),
    "too slow": ("generate", "--out", "v.mp4", "--set", "fps=0.0004"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_output_where_none_belongs_is_refused(
    case: str, bundle: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "link").symlink_to("b")
    (here / "loop.mp4").symlink_to("loop.mp4")
    write(here / "mine.mp4.json", json.dumps({"mine": True}))
    (here / "ours.mp4.json").mkdir()
    write(here / "folder" / "thesis.tex")
    command, *arguments = REFUSED[case]
    wanted = (*PROMPT, *BLOCKS) if command == "generate" else ("--quick",)
    before = snapshot(here)
    assert run(command, "--bundle", bundle, *wanted, *arguments) in (1, 2)
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert snapshot(here) == before


def a_foreign_archive(path: Path, _: Path) -> None:
    import zstandard

    path.write_bytes(zstandard.compress(b"of somebody else"))


def a_pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)


def an_archive_that_was_cut(path: Path, bundle: Path) -> None:
    pack(bundle, path)
    os.truncate(path, path.stat().st_size - 5)


ARCHIVES: dict[str, Callable[[Path, Path], None]] = {
    "another archive": a_foreign_archive,
    "an archive that was cut": an_archive_that_was_cut,
    "a text": lambda path, _: path.write_text("mine") and None,
    "an empty file": lambda path, _: path.touch(),
    "a folder": lambda path, _: path.mkdir(),
    "a pipe": a_pipe,
    "a link to a device": lambda path, _: path.symlink_to("/dev/full"),
    "a loop of links": lambda path, _: path.symlink_to(path),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_pack_replaces_archives_of_bundles_only(
    case: str, here: Path, fake_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = fake_bundle(here / "b")
    ARCHIVES[case](here / "a.tar.zst", bundle)
    before = snapshot(here)
    assert run("pack", "b", "--out", "a.tar.zst") in (1, 2)
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: a.tar.zst: ")
    assert snapshot(here) == before


def test_pack_replaces_an_older_archive(here: Path, fake_bundle: MakeBundle) -> None:
    for number in range(2):
        fake_bundle(here / f"b{number}", {"a": bytes([number])})
        assert run("pack", f"b{number}", "--out", "a.tar.zst") == 0
    assert run("unpack", "a.tar.zst", "--out", "out") == 0
    assert Path("out/a").read_bytes() == b"\x01"
    assert run("pack", "b0", "--out", "/dev/full") == 2


# ---- two at once, and what appears meanwhile ---------------------------------------------------


def during_the_first_block(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    told: list[object] = []

    def block(_: PlainProgress, event: object) -> None:
        told.append(event)
        if len(told) == 1:
            act()

    monkeypatch.setattr(PlainProgress, "block", block)


@pytest.mark.parametrize("outputs", [("--out", "v.mp4"), ("--out", "f/"), ("--latents-out", "l")])
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_second_run_to_one_file_is_refused(
    outputs: tuple[str, ...],
    overwrite: tuple[str, ...],
    bundle: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("generate", "--bundle", bundle, *PROMPT, *BLOCKS, *outputs, *overwrite)
    codes: list[int] = []
    during_the_first_block(monkeypatch, lambda: codes.append(run(*arguments)))
    assert run(*arguments) == 0
    assert codes == [2]
    assert "another run is writing it" in capsys.readouterr().err
    assert not [path.name for path in here.iterdir() if path.name.startswith(".")]


def test_what_appears_meanwhile_stays(
    bundle: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("v.mp4", "l.safetensors", "s")
    during_the_first_block(monkeypatch, lambda: [write(here / name) for name in names] and None)
    outputs = ("--out", "v.mp4", "--latents-out", "l.safetensors", "--save-state", "s")
    assert run("generate", "--bundle", bundle, *PROMPT, *BLOCKS, *outputs) == 0
    assert [Path(name).read_text() for name in names] == ["mine"] * 3
    record = json.loads(Path("v-2.mp4.json").read_text())
    assert frames_in(Path("v-2.mp4")) == record["video_frames"] == 33
    assert load_file("l-2.safetensors")["latents"].shape[1] == 9
    assert Path("s-2").is_file()


# ---- full disks --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2_000, 20_000])
@pytest.mark.parametrize("older", [False, True])
def test_on_a_full_disk_the_record_tells_what_the_video_holds(
    size: int, older: bool, bundle: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("generate", "--bundle", bundle, *PROMPT, "--out", "v.mp4", "--overwrite")
    if older:
        assert run(*arguments, "--frames", "3") == 0
    before = snapshot(here)
    with disk_of(size):
        assert run(*arguments, "--frames", "90") == 1
    assert "v.mp4: writing failed" in capsys.readouterr().err
    if snapshot(here) == before:
        return
    frames = frames_in(here / "v.mp4")
    record = here / "v.mp4.json"
    assert not record.exists() or json.loads(record.read_text())["video_frames"] == frames
    assert not [path.name for path in here.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "--onnx", "onnx", "--out", "new"),
        ("build", "--onnx", "onnx", "--out", "new", "--precision", "fp16"),
        ("push", "built", "new"),
        ("export-triton", "built", "--out", "new"),
        ("pack", "built", "--out", "new"),
        ("unpack", "b.tar.zst", "--out", "new"),
    ],
    ids=" ".join,
)
def test_a_full_disk_is_blamed_on_what_is_written(
    arguments: tuple[str, ...],
    here: Path,
    mini_bundle: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    built = mini_bundle("relative")
    (here / "built").symlink_to(built)
    (here / "onnx").symlink_to(built.with_name("mini-relative-export"))
    pack(built, here / "b.tar.zst")
    capsys.readouterr()
    with disk_of(4_000):
        assert run(*arguments) == 1
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith(("error: new: cannot be written", f"error: {here / 'new'}"))
    assert "free some space" in complaint
    left = [path for path in here.rglob("*") if path.is_file() and "new" in path.parts]
    assert left == []


# ---- blocks that are no numbers ----------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, at: int, value: float) -> None:
    denoise = TransformerPasses.denoise

    def spoiled(passes: TransformerPasses, plan: Any) -> Any:
        made = denoise(passes, plan)
        if plan.frames[0] == 3 * at:
            made[..., 0, 0] = value
        return made

    monkeypatch.setattr(TransformerPasses, "denoise", spoiled)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_block_that_is_not_finite_ends_the_run_and_what_was_good_stays(
    value: float,
    at: int,
    bundle: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(monkeypatch, at, value)
    outputs = ("--out", "v.mp4", "--latents-out", "l", "--save-state", "s")
    before = snapshot(here)
    assert run("generate", "--bundle", bundle, *PROMPT, "--frames", "15", *outputs) == 1
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith(f"error: block {at + 1}: its latents are not finite")
    assert not Path("s").exists()
    if at == 0:
        assert snapshot(here) == before
        return
    latents = load_file("l")["latents"]
    record: Mapping[str, Any] = json.loads(Path("v.mp4.json").read_text())
    assert (latents.shape[1], bool(np.isfinite(latents).all())) == (3 * at, True)
    assert frames_in(Path("v.mp4")) == record["video_frames"] == 9 + 12 * (at - 1)
    assert record["blocks"] == at


def test_latents_alone_are_looked_at_too(
    bundle: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, 1, np.nan)
    assert run("generate", "--bundle", bundle, *PROMPT, *BLOCKS, "--latents-out", "l") == 1
    assert "error: block 2: " in capsys.readouterr().err
    assert load_file("l")["latents"].shape[1] == 3


def test_looking_at_a_block_takes_no_time() -> None:
    """Latents of 832 x 480 pixels, in the type that numpy is slowest at."""
    import ml_dtypes

    from longlive_trt.runtime.session import require_finite

    latents = np.ones((1, 3, 16, 60, 104), ml_dtypes.bfloat16)
    begun = time.perf_counter()
    for _ in range(10):
        require_finite(latents, "block 1")
    assert (time.perf_counter() - begun) / 10 < 0.05
