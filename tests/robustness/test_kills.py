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
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from longlive_trt.engines.bundles.archive import check_seal, pack
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.bundles.contents import require_complete
from longlive_trt.engines.bundles.transfer import push
from longlive_trt.exports import check_export, read_export
from tests.robustness.support.places import Tree, frames_in, snapshot, write
from tests.shared import MINIS

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("LONGLIVE_TRT_KILLS", "14"))
COMMANDS = ("export", "build", "pack", "unpack", "pull", "push", "generate")
SEED = int(os.environ.get("LONGLIVE_TRT_KILLS_SEED", "0"))

# Forks a process for each command that comes in a line, so that none imports everything anew. One
# that is given a number kills itself at that call of its own on files in the folder.
FORKING = """
import importlib, json, os, signal, sys
from longlive_trt.cli import COMMANDS, main
for entry in COMMANDS.values():
    importlib.import_module(f"longlive_trt.commands.{entry.module}")
import onnxruntime, torch.export, torch.onnx, longlive_trt.export.tracing

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod",
          "ctypes.dlopen", "fcntl.flock"}
calls = 0

def run(at, folder, counted, said, arguments):
    def hook(event, values):
        global calls
        is_on_files = event in ("ctypes.dlopen", "fcntl.flock") or folder in str(values[:2])
        if event in EVENTS and is_on_files:
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(2, 1)
    os.chdir(folder)
    sys.addaudithook(hook)
    code = main(arguments)
    with open(counted, "w") as file:
        file.write(str(calls))
    return code

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = run(**json.loads(line))
        finally:
            os._exit(code)
    os.write(1, b"%d\\n" % pid)
    os.write(1, b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


class Forking:
    """Runs commands, one at a time, each in a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORKING],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def start(self, work: "Work", folder: Path, at: int = 0) -> int:
        """The number of the process."""
        assert self._process.stdin is not None
        values = {
            "at": at,
            "folder": str(folder),
            "counted": str(folder.with_name("calls")),
            "said": str(folder.with_name("said")),
            "arguments": [str(argument) for argument in work.arguments],
        }
        self._process.stdin.write(json.dumps(values) + "\n")
        return self._number()

    def wait(self) -> int:
        """The exit code; negative for a signal."""
        return self._number()

    def finish(self, work: "Work", folder: Path) -> float:
        begun = time.monotonic()
        self.start(work, folder)
        assert self.wait() == 0, folder.with_name("said").read_text()
        return time.monotonic() - begun

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=60)

    def _number(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@pytest.fixture(scope="module")
def forking() -> Iterator[Forking]:
    processes = Forking()
    yield processes
    processes.close()


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
@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_run_leaves_nothing_half(
    command: str, works: dict[str, Work], forking: Forking, tmp_path: Path
) -> None:
    work, folder = works[command], tmp_path / "folder"
    write(folder / "thesis.tex")
    write(folder / ".hidden.partial")
    write(folder / "sub" / "notes.txt")
    before = foreign_in(folder, work)
    seconds = forking.finish(work, folder)
    calls = int((tmp_path / "calls").read_text())
    chance = random.Random(f"{SEED} {command}")
    kills = 0
    for number in range(-(-KILLS // len(COMMANDS))):
        if number % 4 < 2:
            for name in work.out:
                remove(folder / name)
        if number % 2:
            forking.start(work, folder, at=chance.randint(1, calls))
        else:
            pid = forking.start(work, folder)
            time.sleep(chance.uniform(0, seconds))
            # It may be over already.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        code = forking.wait()
        assert code in (0, -signal.SIGKILL), (tmp_path / "said").read_text()
        kills += code != 0
        work.check(folder)
        assert foreign_in(folder, work) == before
        if number % 3 == 0:
            finish_and_check(forking, work, folder, before)
    assert kills > 0
    finish_and_check(forking, work, folder, before)


def finish_and_check(forking: Forking, work: Work, folder: Path, before: Tree) -> None:
    forking.finish(work, folder)
    work.check(folder)
    assert foreign_in(folder, work) == before
    names = {path.name for path in folder.iterdir()}
    assert names == {"thesis.tex", ".hidden.partial", "sub", *work.out}


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
