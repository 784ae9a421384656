"""What goes wrong on a GPU ends in one clear error, with whole files and nothing left behind."""

import gc
import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.loader import DeviceChoice
from longlive_trt.errors import EngineError, LostGpuError, PluginError, UsageError
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.generation import Outputs, generate
from longlive_trt.runtime.memory import cuda as cuda_memory
from longlive_trt.runtime.noise import SeededNoise
from longlive_trt.runtime.pipeline import Pipeline
from longlive_trt.runtime.plan import Plan
from longlive_trt.runtime.progress import QuietProgress
from longlive_trt.runtime.prompting.timeline import Cue
from longlive_trt.runtime.session import Session
from tests.fakes.cuda import FakeCuda, Status
from tests.fakes.engines import FakeCudaEngine, put_in_place

pytestmark = pytest.mark.usefixtures("few_objects")

Array = np.ndarray[Any, np.dtype[Any]]
FIRST_FRAMES, FRAMES = 9, 12


@pytest.fixture(scope="module")
def bundle(video_bundle: Path) -> Bundle:
    return open_bundle(video_bundle)


@dataclass
class Machine:
    """One GPU, and what was loaded on it."""

    cuda: FakeCuda
    bundle: Bundle
    loaded: dict[str, FakeCudaEngine]
    on_run: dict[str, Callable[[], None]]
    """What happens before a graph's work is queued; not at replays of what was captured."""
    threads: set[threading.Thread] = field(default_factory=lambda: {*threading.enumerate()})

    def require_empty(self) -> None:
        self.require_quiet()
        assert self.cuda.leaks() == {}
        assert self.cuda.queues.fault is None

    def require_quiet(self) -> None:
        """Nothing keeps the process from its end."""
        gc.collect()
        assert {*threading.enumerate()} <= self.threads

    def at_call(self, name: str, number: int, work: Callable[[], None]) -> None:
        """Before one call of the driver, counted from now."""
        wanted = self.cuda.calls[name] + number

        def before() -> None:
            if self.cuda.calls[name] == wanted:
                del self.cuda.before[name]
                work()

        self.cuda.before[name] = before


@pytest.fixture
def machine(
    bundle: Bundle, fake_cuda: Callable[..., FakeCuda], monkeypatch: pytest.MonkeyPatch
) -> Machine:
    cuda = fake_cuda()
    on_run: dict[str, Callable[[], None]] = {}
    return Machine(cuda, bundle, put_in_place(cuda, monkeypatch, on_run), on_run)


@pytest.fixture
def engines(machine: Machine) -> Iterator[Engines]:
    with Engines(machine.bundle, "cuda") as engines:
        yield engines


def open_session(engines: Engines) -> Session:
    config = engines.bundle.config
    shape = (1, config.rollout.frames_per_block, *config.latent_shape)
    return engines.session(config, SeededNoise(0, shape, len(config.rollout.steps)))


def begin(engines: Engines) -> Session:
    sizes = engines.bundle.config.transformer
    states = np.ones((1, sizes.text_len, sizes.text_dim), np.float32)
    context = engines.contexts(1).of_states(states)
    session = open_session(engines)
    session.switch_prompt(context)
    return session


def made_on_cpu(bundle: Bundle, blocks: int) -> list[tuple[Array, Array]]:
    with Engines(bundle, "cpu") as engines, begin(engines) as session:
        return [values(session.step()) for _ in range(blocks)]


def values(block: Any) -> tuple[Array, Array]:
    return block.latents, block.pixels()


def require_same(found: list[tuple[Array, Array]], expected: list[tuple[Array, Array]]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


# ---- too little memory -----------------------------------------------------------------------


def test_too_little_memory_for_a_session(machine: Machine) -> None:
    """Wherever it runs out: what was reserved before is given back, and the next attempt works."""
    failed, enough = 0, False
    while not enough:
        machine.cuda.fail("cuMemAlloc", Status.CUDA_ERROR_OUT_OF_MEMORY, after=failed)
        with Engines(machine.bundle, "cuda") as engines:
            try:
                begin(engines).close()
                enough = True
            except EngineError as error:
                assert "MiB of GPU memory are needed, and 80.00 GiB are free" in str(error)
                failed += 1
        machine.require_empty()
    assert failed > 5


@pytest.mark.parametrize("allocation", [0, 9, -1, -3])
def test_too_little_pinned_memory_for_a_session(machine: Machine, allocation: int) -> None:
    """The last ones are places for the second block's noise."""
    if allocation < 0:
        with Engines(machine.bundle, "cuda") as engines:
            begin(engines).close()
        allocation += machine.cuda.calls["cuMemAllocHost"]
    machine.cuda.fail("cuMemAllocHost", Status.CUDA_ERROR_OUT_OF_MEMORY, after=allocation)
    with (
        Engines(machine.bundle, "cuda") as engines,
        pytest.raises(PluginError, match="of pinned memory"),
    ):
        begin(engines)
    machine.require_empty()


@pytest.mark.parametrize("allocation", [0, 1])
def test_too_little_memory_for_a_checkpoint(
    machine: Machine, engines: Engines, allocation: int
) -> None:
    """The session goes on without it, and has one when there is memory again."""
    with begin(engines) as session:
        made = [values(session.step()) for _ in range(2)]
        machine.cuda.fail("cuMemAlloc", Status.CUDA_ERROR_OUT_OF_MEMORY, after=allocation)
        with pytest.raises(EngineError, match=r"^a checkpoint: .* needed, and .* are free on"):
            session.checkpoint()
        checkpoint = session.checkpoint()
        session.step()
        session.rollback(checkpoint)
        made += [values(session.step()) for _ in range(2)]
    require_same(made, made_on_cpu(machine.bundle, 4))


def test_checkpoints_that_were_dropped_take_no_more_memory(
    machine: Machine, engines: Engines
) -> None:
    with begin(engines) as session:
        session.step()
        del (checkpoint := [session.checkpoint()])[:]
        taken = machine.cuda.memory.live("device")
        for _ in range(3):
            checkpoint = [session.checkpoint()]
            session.step()
            session.rollback(checkpoint.pop())
        gc.collect()
        assert machine.cuda.memory.live("device") == taken


# ---- engines that fail -----------------------------------------------------------------------


class Recorder(QuietProgress):
    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


@dataclass
class Files:
    folder: Path

    def generate(
        self, bundle: Bundle, progress: QuietProgress | None = None, device: DeviceChoice = "cuda"
    ) -> bool:
        outputs = Outputs(f"{self.folder}/frames/", self.folder / "latents", self.folder / "state")
        plan = Plan(bundle.config, 6, cues=(Cue(0, "a cat"), Cue(9, "a dog")))
        with Pipeline(bundle, device) as pipeline:
            return generate(pipeline, plan, outputs, progress or QuietProgress())

    def require_whole(self, expected: "Files", blocks: int) -> None:
        """The pictures and latents of so many blocks at least, as a run without fault has them."""
        found = self.pictures()
        assert len(found) >= (FIRST_FRAMES + FRAMES * (blocks - 1) if blocks else 0)
        for one, other in zip(found, expected.pictures(), strict=False):
            assert np.array_equal(one, other)
        latents = self.latents()
        assert len(latents) >= 3 * blocks
        for one, other in zip(latents, expected.latents(), strict=False):
            assert np.array_equal(one, other)

    def pictures(self) -> list[Array]:
        return [np.asarray(Image.open(p)) for p in sorted((self.folder / "frames").glob("*.png"))]

    def latents(self) -> list[Array]:
        """Of each frame; nothing is written where there are none."""
        path = self.folder / "latents"
        return [*load_file(path)["latents"][0]] if path.exists() else []


@pytest.fixture(scope="module")
def faultless(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Files:
    files = Files(tmp_path_factory.mktemp("faultless"))
    files.generate(bundle, device="cpu")
    return files


@pytest.mark.parametrize(
    ("run", "blocks"), [(0, 0), (2, 0), (5, 1), (9, 2), (10, 2), (14, 3), (15, 3)]
)
def test_a_pass_that_fails(
    machine: Machine, faultless: Files, tmp_path: Path, run: int, blocks: int
) -> None:
    """The blocks that were made before are there, the last of them too.

    Run 9 is a clean pass, 14 a re-cache.
    """
    files, runs = Files(tmp_path), itertools.count()

    def fail() -> None:
        if next(runs) == run:
            raise EngineError("graph step failed on the GPU: a test")

    machine.on_run["step"] = fail
    with pytest.raises(EngineError, match="graph step failed on the GPU: a test"):
        files.generate(machine.bundle)
    assert next(runs) > run
    files.require_whole(faultless, blocks)
    assert len(files.pictures()) == (FIRST_FRAMES + FRAMES * (blocks - 1) if blocks else 0)
    assert len(files.latents()) == 3 * blocks
    machine.require_empty()


@pytest.mark.parametrize("graph", ["prompt", "text", "vae_first", "vae_next"])
def test_another_graph_that_fails(
    machine: Machine, faultless: Files, tmp_path: Path, graph: str
) -> None:
    files, runs = Files(tmp_path), itertools.count()

    def fail() -> None:
        if next(runs) == 1 or graph == "vae_first":
            raise EngineError(f"graph {graph} failed on the GPU: a test")

    machine.on_run[graph] = fail
    with pytest.raises(EngineError, match=f"graph {graph} failed on the GPU: a test"):
        files.generate(machine.bundle)
    files.require_whole(faultless, 0)
    machine.require_empty()


def test_a_session_goes_on_after_a_pass_that_failed(machine: Machine, engines: Engines) -> None:
    """From its last checkpoint."""
    expected = made_on_cpu(machine.bundle, 5)
    with begin(engines) as session:
        made = [values(session.step()) for _ in range(2)]
        checkpoint = session.checkpoint()
        session.step()

        def fail() -> None:
            raise EngineError("a test")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(machine.loaded["step"], "before_run", fail)
            with pytest.raises(EngineError, match="a test"):
                session.step()
        session.rollback(checkpoint)
        made += [values(session.step()) for _ in range(3)]
    require_same(made, expected)


# ---- a lost context --------------------------------------------------------------------------

LOSSES = {
    "while the session is made": ("cuMemcpyHtoDAsync", 20),
    "in the first block": ("cuEventRecord", 60),
    "in a capture": ("cuStreamBeginCapture", 2),
    "in a replay": ("cuGraphLaunch", 15),
    "while pictures are waited for": ("cuEventSynchronize", 9),
}


@pytest.mark.parametrize("case", LOSSES)
def test_a_lost_context(machine: Machine, faultless: Files, tmp_path: Path, case: str) -> None:
    files, (call, number) = Files(tmp_path), LOSSES[case]
    machine.at_call(call, number, machine.cuda.lose_context)
    progress = Recorder()
    with pytest.raises(LostGpuError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS.*: the GPU gave up what"):
        files.generate(machine.bundle, progress)
    assert machine.cuda.queues.fault is not None
    assert not (tmp_path / "state").exists()
    assert number == 20 or any("state: not written; it was on" in n for n in progress.notices)
    machine.require_quiet()
    files.require_whole(faultless, 1 if number in (9, 15) else 0)


def test_a_kernel_that_strays(machine: Machine, engines: Engines) -> None:
    """It is noticed late, by whoever asks for results; closing raises nothing."""
    session = begin(engines)
    block = session.step()
    stream = engines.stream("transformer")
    machine.cuda.launch(stream.handle, lambda: None, touched=[(8, 8)])
    following = session.step()
    assert values(block)[0].any()
    with pytest.raises(PluginError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        following.pixels()
    with pytest.raises(PluginError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        session.step()
    session.close()


# ---- Ctrl-C ----------------------------------------------------------------------------------

INTERRUPTS = {
    "at an upload": ("cuMemcpyHtoDAsync", 70),
    "at the beginning of a capture": ("cuStreamBeginCapture", 2),
    "at the end of a capture": ("cuStreamEndCapture", 2),
    "at a replay": ("cuGraphLaunch", 15),
    "while pictures are waited for": ("cuEventSynchronize", 3),
    "between passes and decoding": ("cuStreamWaitEvent", 10),
}


@pytest.mark.parametrize("case", INTERRUPTS)
def test_ctrl_c_in_the_middle_of_a_block(
    machine: Machine, faultless: Files, tmp_path: Path, case: str
) -> None:
    files, progress = Files(tmp_path), Recorder()

    def interrupt() -> None:
        raise KeyboardInterrupt

    machine.at_call(*INTERRUPTS[case], interrupt)
    assert files.generate(machine.bundle, progress)
    files.require_whole(faultless, 1)
    assert len(files.pictures()) < len(faultless.pictures())
    saved = (tmp_path / "state").is_file()
    assert saved != any("the run ended in the middle of a block" in n for n in progress.notices)
    machine.require_empty()


# ---- consumers that do not read --------------------------------------------------------------


def test_a_consumer_that_never_reads(
    machine: Machine, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_memory, "STALL_LIMIT_S", 0.1)
    session, unread, taken = begin(engines), [], None
    with pytest.raises(EngineError, match=r"nobody has read the pictures of the last \d blocks"):
        for _ in range(9):
            unread.append(session.step())
            if len(unread) == 4:
                taken = [machine.cuda.memory.live(kind) for kind in ("device", "pinned")]
    assert 4 <= len(unread) <= 6
    assert [machine.cuda.memory.live(kind) for kind in ("device", "pinned")] == taken
    expected = made_on_cpu(machine.bundle, len(unread))
    require_same([values(block) for block in unread], expected)
    session.close()


def test_a_consumer_that_drops_what_it_does_not_want(machine: Machine, engines: Engines) -> None:
    """Pictures that nobody holds are no longer waited for."""
    with begin(engines) as session:
        for _ in range(12):
            block = session.step()
        assert np.array_equal(block.pixels(), made_on_cpu(machine.bundle, 12)[-1][1])


def test_a_consumer_that_reads_late(machine: Machine, engines: Engines) -> None:
    """The session waits; nothing is lost."""
    blocks: queue.Queue[Any] = queue.Queue()
    read: list[tuple[Array, Array]] = []
    is_waiting = threading.Event()

    def consume() -> None:
        is_waiting.wait(60)
        for _ in range(10):
            read.append(values(blocks.get(timeout=60)))

    consumer = threading.Thread(target=consume)
    consumer.start()
    with begin(engines) as session:
        wait_for = session.decoder._leaving._fetched._wait_for  # type: ignore[union-attr]

        def noticed(free: Any) -> None:
            is_waiting.set()
            wait_for(free)

        session.decoder._leaving._fetched._wait_for = noticed  # type: ignore[union-attr]
        for _ in range(10):
            blocks.put(session.step())
        consumer.join(60)
    assert is_waiting.is_set()
    require_same(read, made_on_cpu(machine.bundle, 10))


def test_pictures_that_were_not_read_before_the_end(machine: Machine, engines: Engines) -> None:
    session = begin(engines)
    read, unread = session.step(), session.step()
    pictures = read.pixels()
    session.close()
    assert read.pixels() is pictures
    with pytest.raises(UsageError, match="its session is closed; read a block's latents and"):
        unread.pixels()
