"""Commands that are killed (-9): nothing half-written is visible, and the next run succeeds.

``LONGLIVE_TRT_KILLS`` is how many kills there are in all, and ``LONGLIVE_TRT_KILLS_SEED`` chooses
their moments. Half of them come at a moment of the clock, the others at one of the program's own
calls that open, rename or remove files.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from longlive_trt.engines.bundles.archive import check_seal, pack
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.bundles.contents import require_complete
from longlive_trt.engines.bundles.transfer import push
from longlive_trt.exports import check_export, read_export
from tests.conftest import MINIS
from tests.robustness.places import Tree, frames_in, snapshot, write

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("LONGLIVE_TRT_KILLS", "14"))
SEED = int(os.environ.get("LONGLIVE_TRT_KILLS_SEED", "0"))

# Counts its calls on files in the folder; at the one whose number is given, it kills itself.
CHILD = """
import os, signal, sys
at, folder, counted = int(sys.argv[1]), sys.argv[2], sys.argv[3]
calls = 0
events = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod",
          "ctypes.dlopen", "fcntl.flock"}
def hook(event, arguments):
    global calls
    if event in events and (folder in str(arguments[:2]) or event in ("ctypes.dlopen",
                                                                      "fcntl.flock")):
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
os.chdir(folder)
from longlive_trt.cli import main
code = main(sys.argv[4:])
open(counted, "w").write(str(calls))
sys.exit(code)
"""

Check = Callable[[Path], None]


@dataclass(frozen=True)
class Work:
    arguments: tuple[object, ...]
    out: tuple[str, ...]
    """All names that may be visible."""
    check: Check
    """Fails where what is visible is not whole."""


def check_bundle(folder: Path) -> None:
    if (folder / "out").exists():
        require_complete(open_bundle(folder / "out"))


def check_exported(folder: Path) -> None:
    if (folder / "out").exists():
        check_export(folder / "out", read_export(folder / "out"))


def check_archive(folder: Path) -> None:
    if (folder / "out").exists():
        check_seal(folder / "out")


def check_store(folder: Path) -> None:
    for manifest in (folder / "out").glob("*/manifest.json"):
        open_bundle(manifest.parent)
    for index in (folder / "out").glob("index.json"):
        json.loads(index.read_text())


def check_video(folder: Path) -> None:
    video, record = folder / "out.mp4", folder / "out.mp4.json"
    if video.exists():
        assert frames_in(video) == 69
    if record.exists():
        assert json.loads(record.read_text())["video_frames"] == frames_in(video)


@pytest.fixture(scope="module")
def works(
    tmp_path_factory: pytest.TempPathFactory,
    mini_bundle: Callable[[str], Path],
    video_bundle: Path,
) -> dict[str, Work]:
    folder = tmp_path_factory.mktemp("works")
    bundle = mini_bundle("relative")
    onnx = bundle.with_name("mini-relative-export")
    archive, store, config = folder / "a.tar.zst", folder / "store", folder / "mini.yaml"
    pack(bundle, archive)
    push(bundle, str(store))
    config.write_text(yaml.safe_dump(MINIS["relative"]))
    to = ("--out", "out")
    outputs = ("--out", "out.mp4", "--latents-out", "out.l", "--save-state", "out.s")
    prompt = ("--prompt", "a cat", "--frames", "18", "--overwrite")
    return {
        "export": Work(
            ("export", "--config", config, "--random-weights", 1, "--no-check", *to),
            ("out",),
            check_exported,
        ),
        "build": Work(("build", "--force", "--onnx", onnx, *to), ("out",), check_bundle),
        "pack": Work(("pack", bundle, *to), ("out",), check_archive),
        "unpack": Work(("unpack", archive, *to), ("out",), check_bundle),
        "pull": Work(("pull", store, *to), ("out",), check_bundle),
        "push": Work(("push", bundle, "out"), ("out",), check_store),
        "generate": Work(
            ("generate", "--bundle", video_bundle, *prompt, *outputs),
            ("out.mp4", "out.mp4.json", "out.l", "out.s"),
            check_video,
        ),
    }


def start(work: Work, folder: Path, counted: Path, at: int = 0) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(at), str(folder), str(counted)]
        + [str(argument) for argument in work.arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(work: Work, folder: Path, counted: Path) -> float:
    begun = time.monotonic()
    process = start(work, folder, counted)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()
    return time.monotonic() - begun


def foreign_in(folder: Path, work: Work) -> Tree:
    """What is neither the command's output nor one of its hidden names."""
    stems = ("..out.pull.", *(f".{name}." for name in (*work.out, "out")))
    mine = (*work.out, *(f"{name}/" for name in work.out))
    return {
        name: entry
        for name, entry in snapshot(folder).items()
        if not name.startswith((*mine, *stems))
    }


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "command", ["export", "build", "pack", "unpack", "pull", "push", "generate"]
)
def test_a_killed_run_leaves_nothing_half(
    command: str, works: dict[str, Work], tmp_path: Path
) -> None:
    work, folder, counted = works[command], tmp_path / "folder", tmp_path / "calls"
    write(folder / "thesis.tex")
    write(folder / ".hidden.partial")
    write(folder / "sub" / "notes.txt")
    before = foreign_in(folder, work)
    seconds = finish(work, folder, counted)
    calls = int(counted.read_text())
    chance = random.Random(f"{SEED} {command}")
    for number in range(-(-KILLS // 7)):
        if number % 4 < 2:
            for name in work.out:
                remove(folder / name)
        if number % 2:
            process = start(work, folder, counted, at=chance.randint(1, calls))
        else:
            process = start(work, folder, counted)
            time.sleep(chance.uniform(0, seconds))
            process.send_signal(signal.SIGKILL)
        _, said = process.communicate(timeout=300)
        assert process.returncode in (0, -signal.SIGKILL), said.decode()
        work.check(folder)
        assert foreign_in(folder, work) == before
        if number % 3 == 0:
            finish_and_check(work, folder, counted, before)
    finish_and_check(work, folder, counted, before)


def finish_and_check(work: Work, folder: Path, counted: Path, before: Tree) -> None:
    finish(work, folder, counted)
    work.check(folder)
    assert foreign_in(folder, work) == before
    names = {path.name for path in folder.iterdir()}
    assert names == {"thesis.tex", ".hidden.partial", "sub", *work.out}


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
