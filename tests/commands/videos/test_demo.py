"""``demo`` as a user runs it, in fewer blocks and with weights that have learned nothing."""

import shlex
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from longlive_trt.cli import INTERRUPTED, main
from longlive_trt.commands.running import demo as command
from longlive_trt.engines.loader import load_engine
from longlive_trt.making import demo
from longlive_trt.runtime import assembly


@pytest.fixture(autouse=True)
def short(
    demo_weights: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "WEIGHTS", demo_weights)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "demo-cache"))
    # Two threads beside other tests wait for each other.
    monkeypatch.setattr(assembly, "load_engine", partial(load_engine, threads=1))
    monkeypatch.setattr(command, "FRAMES", 9)
    monkeypatch.setattr(command, "PROMPTS", {0: "a red car", 3: "a blue car", 6: "a train"})


def test_it_leaves_a_video_and_its_contact_sheet(capsys: Any) -> None:
    folder = Path("out/demo")
    folder.mkdir(parents=True)
    assert main(["demo"]) == 0
    assert {path.name for path in folder.iterdir()} == {"video.mp4", "video.mp4.json", "sheet.png"}
    with av.open(str(folder / "video.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 33
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width > 1600
    output = capsys.readouterr().out
    (line,) = [line for line in output.splitlines() if "generate" in line]
    arguments = shlex.split(line)
    assert arguments[:4] == ["longlive-trt", "generate", "--bundle", "demo"]
    assert arguments[4] == "--prompt" and "car" in arguments[5]


def test_what_is_there_stays() -> None:
    folder = Path("out/demo")
    folder.mkdir(parents=True)
    for name in ("video.mp4", "sheet.png"):
        (folder / name).write_text("somebody's")
    assert main(["demo"]) == 0
    for name in ("video.mp4", "sheet.png"):
        assert (folder / name).read_text() == "somebody's"
    assert {path.name for path in folder.iterdir()} > {"video-2.mp4", "sheet-2.png"}


def test_an_interrupted_one_draws_no_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "generate", lambda *_: True)
    assert main(["demo"]) == INTERRUPTED
    assert not Path("out/demo/sheet.png").exists()


def test_weights_that_are_not_those_are_refused_in_one_line(
    tmp_path: Path, demo_weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    other = tmp_path / "weights"
    other.mkdir()
    for path in demo_weights.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    sums = other / "SHA256SUMS"
    sums.write_text(sums.read_text().replace("a", "b"))
    monkeypatch.setattr(demo, "WEIGHTS", other)
    assert main(["demo"]) == 1
    errors = capsys.readouterr().err.splitlines()
    (line,) = [line for line in errors if line.startswith("error: ")]
    assert "not the weights that SHA256SUMS lists; install the package again" in line
    assert not Path("out").exists()


def test_it_is_what_is_served_where_nothing_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from longlive_trt.serving import server

    served: list[Any] = []

    def serve(_settings: Any, load: Callable[[], Any], **_options: Any) -> int:
        with load() as model:
            served.append(model.facts)
        return signal.SIGTERM

    monkeypatch.setattr(server, "serve", serve)
    assert main(["serve", "--port", "0"]) == 0
    (facts,) = served
    assert facts.name == "demo" and (facts.width, facts.height) == (160, 96)
    assert "A red car drives through the desert at sunset" in facts.suggestions
