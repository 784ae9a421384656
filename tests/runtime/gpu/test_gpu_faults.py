"""What goes wrong on a GPU ends a command at once: one message, whole files, nothing kept.

On an imagined GPU the command runs here; a few runs, and all on a real GPU (marked ``gpu``), are
processes of their own (faults.py). A real GPU is one that nobody else may use meanwhile: ``python
-m pytest -m gpu tests/runtime/gpu/test_gpu_faults.py``. There LONGLIVE_TRT_TEST_EXPORT may name an
export folder with all five graphs, such as ``export --config tiny --random-weights 1`` makes.
"""

import fcntl
import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from longlive_trt.engines.build import build
from longlive_trt.engines.compiler import BuildOptions
from tests.fakes.cuda import FakeCuda
from tests.fakes.engines import put_in_place
from tests.runtime.gpu import faults

pytestmark = pytest.mark.usefixtures("few_objects")

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).parent / "faults.py"
EXPORT_ENVIRONMENT = "LONGLIVE_TRT_TEST_EXPORT"
BLOCKS, SWITCHES = 14, (8, 11)
"""A block more than the first of them is made, before memory is gone, that reserves something."""
FAULT_AT = 6
EXIT_LIMIT_S = {"imagined": 120, "real": 30}
LITTLE_BYTES = 64 << 20
"""So much less may be free afterwards: drivers keep a little for themselves, and for graphs."""
SET_PIPE_SIZE = 1031

FULL = (
    r"of GPU memory are (needed, and .* are )?free.*[;:] close what else|OUT_OF_MEMORY \(2\): close"
)
LOST = r"CUDA_ERROR_.*: the GPU gave up what this process runs there; start again"


@dataclass(frozen=True)
class Case:
    fault: str
    message: str
    fewest: int = 0
    """Blocks that are in the video."""
    most: int = 0
    at: int = FAULT_AT
    options: tuple[str, ...] = ()
    only_real: bool = False


CASES = {
    "a budget": Case("little memory", r"about .* GiB of memory are needed \(.*, and 0\.\d GiB are"),
    "no memory for engines": Case("no memory after the budget", FULL),
    "no memory for a session": Case("no memory after the engines", FULL),
    "no memory for captures": Case("no memory", FULL, 1, BLOCKS, at=1),
    "no memory for a re-cache": Case("no memory", FULL, SWITCHES[0], SWITCHES[0]),
    "no memory for an encoder": Case(
        "no memory", FULL, *SWITCHES, options=("--low-memory", "--switch", "none")
    ),
    "a graph that fails": Case(
        "broken kernels",
        r"graph step failed on the GPU: .*CUDA could not launch a kernel: a test.*-vv",
        SWITCHES[0],
        SWITCHES[0],
    ),
    **{
        f"a lost context, {stream}": Case(
            f"trap on {stream}", LOST, FAULT_AT - 1, FAULT_AT, only_real=stream != "transformer"
        )
        for stream in ("transformer", "decoding", "leaving", "arriving", "prompts")
    },
}


@dataclass(frozen=True)
class Outcome:
    code: int
    errors: str
    ended_s: float


class Place(Protocol):
    """Where a bundle runs."""

    bundle: Path
    is_real: bool

    def generate(self, folder: Path, fault: str, at: int, options: Sequence[str]) -> Outcome: ...

    def scenario(self, name: str) -> dict[str, Any]:
        """A video that no command makes."""
        ...


def generate_arguments(bundle: Path, folder: Path, device: str) -> list[str]:
    names = {"--out": "v.mp4", "--latents-out": "latents", "--save-state": "state"}
    outputs = [part for option, name in names.items() for part in (option, str(folder / name))]
    return ["--bundle", str(bundle), "--device", device, *outputs]


@dataclass
class Here:
    """An imagined GPU, in this process."""

    bundle: Path
    cuda: FakeCuda
    machine: faults.ImaginedMachine
    patch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    is_real: bool = False

    def generate(self, folder: Path, fault: str, at: int, options: Sequence[str]) -> Outcome:
        arguments = [*generate_arguments(self.bundle, folder, "cuda"), *options]
        with self.patch.context() as patch:
            setting = faults.Setting(self.machine, at, folder / "struck", patch)
            code = faults.generate(setting, fault, arguments)
        self.machine.empty()
        self.cuda.finish_all()
        gc.collect()
        if self.cuda.queues.fault is None:
            assert self.cuda.leaks() == {}
        return Outcome(code, self.capsys.readouterr().err, time.time())

    def scenario(self, name: str) -> dict[str, Any]:
        if name == "unread":
            return faults.unread(self.bundle, self.patch)
        return faults.second_session(self.machine, self.bundle)


@dataclass(frozen=True)
class Elsewhere:
    """A process of its own, for each run."""

    bundle: Path
    options: tuple[str, ...]
    free_bytes: int | None
    """To a new process, while nothing runs; None where the GPU is imagined."""
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    @property
    def is_real(self) -> bool:
        return self.free_bytes is not None

    def start(self, *arguments: object) -> "subprocess.Popen[str]":
        command = [sys.executable, str(SCRIPT), *self.options]
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def end_all(self) -> None:
        """A test that failed may leave an endless video behind."""
        while self.started:
            process = self.started.pop()
            process.kill()
            process.communicate()

    @property
    def exit_limit_s(self) -> int:
        return EXIT_LIMIT_S["real" if self.is_real else "imagined"]

    def arguments(self, folder: Path) -> list[str]:
        return generate_arguments(self.bundle, folder, "auto" if self.is_real else "cuda")

    def generate(self, folder: Path, fault: str, at: int, options: Sequence[str]) -> Outcome:
        given = (*self.arguments(folder), *options)
        process = self.start("generate", fault, at, folder / "struck", *given)
        _, errors = process.communicate(timeout=200)
        return Outcome(process.returncode, errors, time.time())

    def scenario(self, name: str) -> dict[str, Any]:
        process = self.start(name, self.bundle)
        output, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        found: dict[str, Any] = json.loads(output)
        return found

    def require_given_back(self) -> None:
        if self.free_bytes is None:
            return
        deadline = time.monotonic() + 10
        while (free := probed().get("free", 0)) < self.free_bytes - LITTLE_BYTES:
            assert time.monotonic() < deadline, f"{free} of {self.free_bytes} bytes are free"
            time.sleep(0.5)


def environment() -> dict[str, str]:
    folders = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}


def probed() -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), "probe"]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="module")
def gpu(request: pytest.FixtureRequest, make_once: Callable[..., Path]) -> Elsewhere:
    found = probed()
    if "missing" in found:
        pytest.skip(found["missing"])
    given = os.environ.get(EXPORT_ENVIRONMENT)
    exported = Path(given) if given else request.getfixturevalue("tiny_export")
    options = BuildOptions(gpu=found["architecture"])
    bundle = make_once(
        "faults-gpu", lambda path: build(exported, path, "fp16", "onnxruntime", options=options)
    )
    return Elsewhere(bundle, (), found["free"])


@pytest.fixture
def here(
    video_bundle: Path,
    fake_cuda: Callable[..., FakeCuda],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Here:
    cuda, on_run = fake_cuda(), dict[str, Callable[[], None]]()
    put_in_place(cuda, monkeypatch, on_run)
    machine = faults.ImaginedMachine(cuda, on_run)
    return Here(video_bundle, cuda, machine, monkeypatch, capsys)


GPU = pytest.param("gpu", marks=pytest.mark.gpu)


@pytest.fixture(params=["imagined", GPU])
def elsewhere(request: pytest.FixtureRequest) -> Iterator[Elsewhere]:
    if request.param == "imagined":
        there = Elsewhere(request.getfixturevalue("video_bundle"), ("--imagined",), None)
    else:
        there = request.getfixturevalue("gpu")
    yield there
    there.end_all()
    there.require_given_back()


@pytest.fixture(params=["imagined", GPU])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "imagined":
        yield request.getfixturevalue("here")
        return
    there: Elsewhere = request.getfixturevalue("gpu")
    yield there
    there.end_all()
    there.require_given_back()


def video_frames(blocks: int) -> int:
    return 12 * blocks - 3 if blocks else 0


def frames_in(video: Path) -> int:
    with av.open(str(video)) as container:
        return sum(1 for _ in container.decode(video=0))


def prompts(*options: str) -> tuple[str, ...]:
    cues = [part for block in SWITCHES for part in ("--prompt-at", str(3 * block), f"no. {block}")]
    return ("--prompt", "a fox", *cues, "--frames", str(3 * BLOCKS), *options)


FAULTLESS: dict[Path, np.ndarray[Any, Any]] = {}


def faultless_latents(place: Place, folder: Path) -> Any:
    """What the first blocks are with any options: no prompt has changed by then."""
    if place.bundle not in FAULTLESS:
        folder.mkdir()
        outcome = place.generate(folder, "none", 0, prompts())
        assert outcome.code == 0, outcome.errors
        FAULTLESS[place.bundle] = load_file(folder / "latents")["latents"]
    return FAULTLESS[place.bundle][:, : 3 * SWITCHES[0]]


def require_one_error(errors: str, message: str) -> None:
    lines = errors.strip().splitlines()
    assert "Traceback" not in errors, errors
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], errors
    assert re.search(message, lines[-1]), errors


@pytest.mark.parametrize("name", CASES)
def test_a_fault(place: Place, tmp_path: Path, name: str) -> None:
    if CASES[name].only_real and not place.is_real:
        pytest.skip("all streams of an imagined GPU are alike")
    require_fault(place, tmp_path, CASES[name])


def test_a_fault_ends_a_process(elsewhere: Elsewhere, tmp_path: Path) -> None:
    """The others may run here, on an imagined GPU; this one shows that a process ends so too."""
    if not elsewhere.is_real:
        require_fault(elsewhere, tmp_path, CASES["a lost context, transformer"])


def require_fault(place: Place, tmp_path: Path, case: Case) -> None:
    expected = faultless_latents(place, tmp_path / "faultless")
    folder = tmp_path / "made"
    folder.mkdir()
    outcome = place.generate(folder, case.fault, case.at, prompts(*case.options))
    errors = outcome.errors
    require_one_error(errors, case.message)
    assert outcome.code == 1
    limit_s = EXIT_LIMIT_S["real" if place.is_real else "imagined"]
    assert outcome.ended_s - float((folder / "struck").read_text()) < limit_s
    names = {path.name for path in folder.iterdir()} - {"struck"}
    if not case.most:
        assert names == set(), errors
        return
    assert names == {"v.mp4", "v.mp4.json", "latents"}, errors
    assert re.search("note: .*state: not written; ", errors), errors
    frames = frames_in(folder / "v.mp4")
    blocks = (frames + 3) // 12
    assert frames == video_frames(blocks)
    assert case.fewest <= blocks <= case.most, errors
    assert f"made {blocks} blocks, {frames} video frames" in errors
    latents = load_file(folder / "latents")["latents"]
    assert latents.shape[1] >= 3 * blocks
    compared = min(latents.shape[1], expected.shape[1])
    assert np.array_equal(latents[:, :compared], expected[:, :compared])


# ---- Ctrl-C, and readers that stop -----------------------------------------------------------


def events(process: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def wait_for_blocks(process: "subprocess.Popen[str]", count: int) -> None:
    for event in events(process):
        count -= event["event"] == "block"
        if not count:
            return
    assert process.stderr is not None
    pytest.fail(process.stderr.read())


def endless(place: Elsewhere, folder: Path, *options: str) -> "subprocess.Popen[str]":
    arguments = place.arguments(folder)
    # Latents of an endless video would be kept in memory.
    at = arguments.index("--latents-out")
    del arguments[at : at + 2]
    video = ("--prompt", "a fox", "--seconds", "inf", "--json", *options)
    return place.start("generate", "none", 0, folder / "struck", *arguments, *video)


PRESSES = [
    pytest.param(1, 9),
    *(pytest.param(*each, marks=pytest.mark.exhaustive) for each in ((1, 1), (2, 1), (2, 9))),
]
"""In the first blocks Python makes every launch; later, graphs are replayed."""


@pytest.mark.parametrize(("times", "after"), PRESSES)
def test_ctrl_c(elsewhere: Elsewhere, tmp_path: Path, times: int, after: int) -> None:
    place = elsewhere
    process = endless(place, tmp_path)
    wait_for_blocks(process, after)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    pressed_s = time.monotonic()
    output, errors = process.communicate(timeout=200)
    assert time.monotonic() - pressed_s < place.exit_limit_s
    # The second may come when all is done and Python is on its way out, which it then leaves by it.
    codes = (130, -signal.SIGINT) if times == 2 else (130,)
    assert process.returncode in codes, errors
    assert errors.strip() in ("", "interrupted")
    finished = json.loads(output.splitlines()[-1])
    assert finished["event"] == "finished" and finished["interrupted"]
    assert frames_in(tmp_path / "v.mp4") == finished["video_frames"]
    assert finished["video_frames"] == video_frames(finished["blocks"])
    names = {path.name for path in tmp_path.iterdir()}
    assert names - {"state"} == {"v.mp4", "v.mp4.json"}
    assert times == 2 or "state" in names


def test_a_reader_of_progress_that_stops(elsewhere: Elsewhere, tmp_path: Path) -> None:
    """The run stands still and takes no more memory; then it goes on."""
    process = endless(elsewhere, tmp_path, "--debug-steady")
    assert process.stdout is not None
    fcntl.fcntl(process.stdout.fileno(), SET_PIPE_SIZE, 4096)
    wait_for_blocks(process, 12)
    watched = psutil.Process(process.pid)
    wait_until_idle(watched)
    resident_bytes = watched.memory_info().rss
    time.sleep(1)
    assert watched.memory_info().rss - resident_bytes < 4 << 20
    wait_for_blocks(process, 40)
    wait_until_idle(watched)
    # It comes while a line is being written.
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    output, errors = process.communicate(timeout=200)
    assert (process.returncode, errors) == (130, "")
    finished = json.loads(output.splitlines()[-1])
    assert frames_in(tmp_path / "v.mp4") == finished["video_frames"] >= video_frames(52)


def wait_until_idle(process: psutil.Process) -> None:
    deadline = time.monotonic() + 60
    while True:
        before_s = sum(process.cpu_times()[:2])
        time.sleep(0.5)
        if sum(process.cpu_times()[:2]) - before_s < 0.05:
            return
        assert time.monotonic() < deadline, "it goes on, though nobody reads"


def test_pictures_that_nobody_reads(place: Place) -> None:
    """A clear failure after a while, in the memory of a few blocks; what was made can be read."""
    told = place.scenario("unread")
    assert re.match(r"nobody has read the pictures of the last 4 blocks for .* s", told["message"])
    assert 4 <= len(told["found"]) <= 6
    assert min(told["free"][3:]) >= told["free"][3] - LITTLE_BYTES
    assert told["found"] == told["expected"][: len(told["found"])]


def test_no_memory_for_a_second_session(place: Place) -> None:
    told = place.scenario("second-session")
    assert re.search(FULL, told["message"])
    assert told["found"] == told["expected"]
    assert told["there"] == told["expected"][:2]
