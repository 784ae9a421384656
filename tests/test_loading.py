"""The demo's bundle by its name: built when it is first asked for, and kept."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from longlive_trt.cli import main
from longlive_trt.demo.shipped import write_sums
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.errors import UsageError
from longlive_trt.loading import find_bundle, is_demo
from longlive_trt.making import demo

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_TORCH = """
import sys, time
from pathlib import Path
sys.modules["torch"] = None
from longlive_trt.making import demo
demo.WEIGHTS = Path(sys.argv[1])
if len(sys.argv) > 2:
    def assemble(folder, **_):
        (folder / "begun").touch()
        print("begun", flush=True)
        time.sleep(60)
    demo.assemble = assemble
print(demo.demo_bundle(print, lambda *_: None))
"""


@pytest.fixture(scope="module")
def built(demo_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which a process without torch has built the bundle."""
    cache = tmp_path_factory.mktemp("cache")
    process = start(demo_weights, cache)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "building the demo's bundle, once, in " in output
    return cache


@pytest.fixture
def cache(demo_weights: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As it was left, for a test to change."""
    copy = shutil.copytree(built, tmp_path / "cache")
    monkeypatch.setattr(demo, "WEIGHTS", demo_weights)
    monkeypatch.setenv("XDG_CACHE_HOME", str(copy))
    return copy


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], tuple[Path, list[str]]]]:
    told: list[str] = []

    def find() -> tuple[Path, list[str]]:
        told.clear()
        return find_bundle("demo", notify=told.append), list(told)

    yield find


Find = Callable[[], tuple[Path, list[str]]]


def start(weights: Path, cache: Path, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WITHOUT_TORCH, str(weights), *more],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_it_is_kept(cache: Path, find: Find) -> None:
    folder, told = find()
    assert folder.parent == cache / "longlive-trt" / "bundles"
    assert told == []
    assert open_bundle(folder).config.name == "demo"


def test_a_damaged_one_is_built_again(cache: Path, find: Find) -> None:
    folder, _ = find()
    (folder / "step.weights").write_bytes(b"")
    assert find()[1] == [f"building the demo's bundle, once, in {folder}"]
    assert open_bundle(folder)
    assert find()[1] == []
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_other_weights_are_another_bundle(
    cache: Path, find: Find, demo_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = find()
    other = shutil.copytree(demo_weights, tmp_path / "other")
    shutil.copyfile(other / "vae.safetensors", other / "more.safetensors")
    write_sums(other)
    monkeypatch.setattr(demo, "WEIGHTS", other)
    after, told = find()
    assert after != before and len(told) == 1
    assert open_bundle(before) and open_bundle(after)


def test_those_who_ask_at_once_wait_for_one_build(cache: Path, find: Find) -> None:
    shutil.rmtree(find()[0])
    told: list[str] = []
    threads = [
        threading.Thread(target=find_bundle, args=("demo",), kwargs={"notify": told.append})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 1
    assert find()[1] == []


def test_a_killed_build_leaves_nothing_in_the_way(
    cache: Path, find: Find, demo_weights: Path
) -> None:
    folder, _ = find()
    shutil.rmtree(folder)
    process = start(demo_weights, cache, "slowly")
    assert process.stdout is not None
    while "begun" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(folder.parent.glob(".*.scratch/begun"))
    began = time.monotonic()
    assert find() == (folder, [f"building the demo's bundle, once, in {folder}"])
    assert time.monotonic() - began < 60
    assert not list(folder.parent.glob(".*.partial"))


def test_where_nothing_can_be_kept_it_is_built_for_this_run(
    cache: Path, find: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(demo.tempfile, "tempdir", str(tmp_path))
    folder, told = find()
    assert folder.parent.parent == tmp_path and open_bundle(folder)
    assert "cannot be written (Not a directory), so the demo is built for this run alone" in told[0]


def test_a_user_without_a_home_is_told(
    find: Find, monkeypatch: pytest.MonkeyPatch, demo_weights: Path
) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.setattr(demo, "WEIGHTS", demo_weights)
    with pytest.raises(UsageError, match="set XDG_CACHE_HOME"):
        find()


def test_a_bundle_in_a_folder_of_that_name_is_another_one(
    tmp_path: Path, fake_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_demo("demo") and is_demo(Path("demo")) and not is_demo("./demo/x")
    (tmp_path / "demo").mkdir()
    assert is_demo("demo")
    fake_bundle(tmp_path / "demo")
    assert not is_demo("demo")
    assert find_bundle("demo") == Path("demo")


def test_the_commands_know_it_by_name(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prompt = "a zebra in a red car at night"
    asked = ["generate", "--bundle", "demo", "--prompt", prompt, "--frames", "3"]
    assert main([*asked, "--latents-out", "l.safetensors"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "zebra" in line]
    assert line.startswith("note: the model demo has no word for 'zebra' and leaves that out")
    assert "it knows places (sea, desert, " in line
    assert main(["verify", "demo"]) == 0
