"""What goes wrong on a GPU: the faults, and videos that meet with one.

As a script it does one of these in a process of its own, on the GPU that is there:

    python tests/runtime/gpu/faults.py probe
    python tests/runtime/gpu/faults.py generate FAULT BLOCK STRUCK --bundle BUNDLE --prompt ...
    python tests/runtime/gpu/faults.py unread | second-session BUNDLE

``generate`` is the command with a fault before it makes a block; when that was is written to the
file STRUCK. The others print JSON. ``--imagined`` in front puts tests/fakes in the GPU's place.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from longlive_trt.cli import main as command_line
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.errors import EngineError, PluginError
from longlive_trt.plugins.cuda import driver
from longlive_trt.plugins.cuda.streams import Gpu
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.memory import cuda as cuda_memory
from longlive_trt.runtime.noise import SeededNoise
from longlive_trt.runtime.session import Block, Session
from tests.fakes.cuda import FakeCuda
from tests.fakes.engines import put_in_place

STREAMS = ("transformer", "decoding", "leaving", "arriving", "prompts")

_TRAP = b"""
.version 7.0
.target sm_80
.address_size 64
.visible .entry fail_here() { trap; }
"""


class Machine(Protocol):
    def fill(self, leaving_bytes: int = 0) -> None:
        """Take the memory that is free."""
        ...

    def empty(self) -> None:
        """Give it back."""
        ...

    def trap(self, stream: int) -> None:
        """Queue a kernel that fails."""
        ...

    def break_kernels(self, patch: pytest.MonkeyPatch) -> None:
        """From now on none can be launched; what was captured goes on."""
        ...


class RealMachine:
    def __init__(self) -> None:
        self._taken: list[int] = []
        self._trap = driver.load_image(_TRAP, "ptx", "fail_here", 0, 0)

    def fill(self, leaving_bytes: int = 0) -> None:
        gpu, size_bytes = Gpu(), 1 << 36
        while size_bytes >= 512:
            fits = gpu.memory().free_bytes - size_bytes >= leaving_bytes
            # What is free in pieces that the driver keeps is in no figure.
            if not ((fits or not leaving_bytes) and self._take(gpu, size_bytes)):
                size_bytes //= 2

    def _take(self, gpu: Gpu, size_bytes: int) -> bool:
        status, pointer = gpu.driver().cuMemAlloc(size_bytes)
        if int(status) == 0:
            self._taken.append(int(pointer))
        return int(status) == 0

    def empty(self) -> None:
        while self._taken:
            Gpu().driver().cuMemFree(self._taken.pop())

    def trap(self, stream: int) -> None:
        self._trap.launch((1,), 32, 0, stream, [])

    def break_kernels(self, patch: pytest.MonkeyPatch) -> None:
        def launch(*_: object) -> None:
            raise PluginError("CUDA could not launch a kernel: a test")

        patch.setattr(driver.LoadedKernel, "launch", launch)


class ImaginedMachine:
    def __init__(self, cuda: FakeCuda, on_run: dict[str, Callable[[], None]]) -> None:
        self._cuda, self._on_run = cuda, on_run

    @classmethod
    def installed(cls, patch: pytest.MonkeyPatch) -> "ImaginedMachine":
        cuda, on_run = FakeCuda(), dict[str, Callable[[], None]]()
        for name, module in cuda.modules.items():
            patch.setitem(sys.modules, name, module)
        put_in_place(cuda, patch, on_run)
        return cls(cuda, on_run)

    def fill(self, leaving_bytes: int = 0) -> None:
        memory = self._cuda.memory
        memory.taken_by_others_bytes += memory.free_on(0) - leaving_bytes

    def empty(self) -> None:
        self._cuda.memory.taken_by_others_bytes = 0

    def trap(self, stream: int) -> None:
        self._cuda.launch(stream, lambda: None, touched=[(8, 8)])

    def break_kernels(self, patch: pytest.MonkeyPatch) -> None:
        def fail() -> None:
            told = "graph step failed on the GPU: CUDA could not launch a kernel: a test"
            raise driver.failure(0, told)

        self._on_run["step"] = fail


# ---- generate --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    machine: Machine
    block: int
    """The number of the block before which the fault comes."""
    struck_file: Path
    patch: pytest.MonkeyPatch

    def struck(self) -> None:
        self.struck_file.write_text(str(time.time()))


Install = Callable[[Setting], None]


def before_block(strike: Callable[[Setting, Engines], None]) -> Install:
    def install(setting: Setting) -> None:
        opened: list[Engines] = []
        step, session = Session.step, Engines.session

        def opening(engines: Engines, *arguments: Any, **options: Any) -> Session:
            opened.append(engines)
            return session(engines, *arguments, **options)

        def stepping(made: Session) -> Block:
            if made.blocks_made == setting.block:
                setting.struck()
                strike(setting, opened[0])
            return step(made)

        setting.patch.setattr(Engines, "session", opening)
        setting.patch.setattr(Session, "step", stepping)

    return install


def nothing(_setting: Setting) -> None:
    pass


def at_once(setting: Setting) -> None:
    setting.struck()
    setting.machine.fill(leaving_bytes=600 << 20)


def after_the_budget(setting: Setting) -> None:
    """Somebody else takes the memory just after it was found to be enough."""
    require = Engines.require_memory

    def requiring(engines: Engines, *arguments: Any, **options: Any) -> None:
        require(engines, *arguments, **options)
        setting.struck()
        setting.machine.fill()

    setting.patch.setattr(Engines, "require_memory", requiring)


def after_the_engines(setting: Setting) -> None:
    init = Session.__init__

    def opening(*arguments: Any, **options: Any) -> None:
        setting.struck()
        setting.machine.fill()
        init(*arguments, **options)

    setting.patch.setattr(Session, "__init__", opening)


def trap_on(stream: str) -> Callable[[Setting, Engines], None]:
    return lambda setting, engines: setting.machine.trap(engines.stream(stream).handle)


FAULTS: Mapping[str, Install] = {
    "none": nothing,
    "little memory": at_once,
    "no memory after the budget": after_the_budget,
    "no memory after the engines": after_the_engines,
    "no memory": before_block(lambda setting, _: setting.machine.fill()),
    "broken kernels": before_block(lambda setting, _: setting.machine.break_kernels(setting.patch)),
    **{f"trap on {name}": before_block(trap_on(name)) for name in STREAMS},
}


def generate(setting: Setting, fault: str, arguments: Sequence[str]) -> int:
    FAULTS[fault](setting)
    return command_line(["generate", *arguments])


# ---- videos that no command makes ------------------------------------------------------------


def begin(engines: Engines) -> Session:
    config = engines.bundle.config
    shape = (1, config.rollout.frames_per_block, *config.latent_shape)
    sizes = config.transformer
    states = np.ones((1, sizes.text_len, sizes.text_dim), np.float32)
    context = engines.contexts(1).of_states(states)
    session = engines.session(config, SeededNoise(0, shape, len(config.rollout.steps)))
    session.switch_prompt(context)
    return session


def digest(block: Block) -> str:
    values = block.latents.tobytes() + block.pixels().tobytes()
    return hashlib.sha256(values).hexdigest()[:16]


def unread(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Nobody reads the pictures."""
    patch.setattr(cuda_memory, "STALL_LIMIT_S", 0.5)
    with Engines(open_bundle(folder), "cuda") as engines:
        with begin(engines) as session:
            expected = [digest(session.step()) for _ in range(10)]
        blocks, free_bytes, message = [], [], ""
        with begin(engines) as session:
            try:
                for _ in range(10):
                    blocks.append(session.step())
                    free_bytes.append(engines.gpu.memory().free_bytes)
            except EngineError as error:
                message = str(error)
            found = [digest(block) for block in blocks]
    return {"message": message, "free": free_bytes, "found": found, "expected": expected}


def second_session(machine: Machine, folder: Path) -> dict[str, Any]:
    """There is no memory for another session; the first goes on, and later there is."""
    with Engines(open_bundle(folder), "cuda") as engines:
        with begin(engines) as session:
            expected = [digest(session.step()) for _ in range(10)]
        with begin(engines) as session:
            found = [digest(session.step()) for _ in range(6)]
            machine.fill()
            message = ""
            try:
                begin(engines).close()
            except EngineError as error:
                message = str(error)
            found += [digest(session.step()) for _ in range(4)]
            machine.empty()
            with begin(engines) as another:
                found_there = [digest(another.step()) for _ in range(2)]
    return {"message": message, "found": found, "expected": expected, "there": found_there}


def probe() -> dict[str, object]:
    """What the GPU has to offer to a new process."""
    try:
        gpu = Gpu()
        memory = gpu.memory()
        with gpu.reserve(memory.free_bytes // 2, "a test"):
            major, minor = gpu.facts.capability
            return {"free": memory.free_bytes, "architecture": f"sm{major}{minor}"}
    except PluginError as error:
        return {"missing": str(error)}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--imagined", action="store_true")
    parser.add_argument("what", choices=("probe", "generate", "unread", "second-session"))
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if options.what == "probe":
        result = probe()
    else:
        patch = pytest.MonkeyPatch()
        machine: Machine = ImaginedMachine.installed(patch) if options.imagined else RealMachine()
        if options.what == "generate":
            fault, block, path, *rest = options.rest
            return generate(Setting(machine, int(block), Path(path), patch), fault, rest)
        folder = Path(options.rest[0])
        is_unread = options.what == "unread"
        result = unread(folder, patch) if is_unread else second_session(machine, folder)
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
