"""Runs on a GPU on which something goes wrong, in a process of their own.

    python tests/runtime/faults.py probe
    python tests/runtime/faults.py generate FAULT BLOCK STRUCK --bundle BUNDLE --prompt ...
    python tests/runtime/faults.py unread | second-session BUNDLE

``generate`` is the command with a fault before it makes a block; when that was is written to the
file STRUCK. The others print JSON. ``--imagined`` in front puts tests/fakes in the GPU's place.
PYTHONPATH has the checkout, and its folder tests.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
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

    def break_kernels(self) -> None:
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

    def break_kernels(self) -> None:
        def launch(*_: object) -> None:
            raise PluginError("CUDA could not launch a kernel: a test")

        driver.LoadedKernel.launch = launch  # type: ignore[method-assign]


class ImaginedMachine:
    def __init__(self) -> None:
        from fakes.cuda import FakeCuda
        from fakes.engines import put_in_place

        self._cuda = FakeCuda()
        self._on_run: dict[str, Callable[[], None]] = {}
        patch = pytest.MonkeyPatch()
        for name, module in self._cuda.modules.items():
            patch.setitem(sys.modules, name, module)
        put_in_place(self._cuda, patch, self._on_run)

    def fill(self, leaving_bytes: int = 0) -> None:
        memory = self._cuda.memory
        memory.taken_by_others_bytes += memory.free_bytes - leaving_bytes

    def empty(self) -> None:
        self._cuda.memory.taken_by_others_bytes = 0

    def trap(self, stream: int) -> None:
        self._cuda.launch(stream, lambda: None, touched=[(8, 8)])

    def break_kernels(self) -> None:
        def fail() -> None:
            told = "graph step failed on the GPU: CUDA could not launch a kernel: a test"
            raise driver.failure(0, told)

        self._on_run["step"] = fail


# ---- generate --------------------------------------------------------------------------------

Install = Callable[[Machine, int], None]


def before_block(strike: Callable[[Machine, Engines], None]) -> Install:
    def install(machine: Machine, number: int) -> None:
        opened: list[Engines] = []
        step, session = Session.step, Engines.session

        def opening(engines: Engines, *arguments: Any, **options: Any) -> Session:
            opened.append(engines)
            return session(engines, *arguments, **options)

        def stepping(made: Session) -> Block:
            if made.blocks_made == number:
                struck()
                strike(machine, opened[0])
            return step(made)

        Engines.session = opening  # type: ignore[method-assign]
        Session.step = stepping  # type: ignore[method-assign]

    return install


def at_once(machine: Machine, _block: int) -> None:
    struck()
    machine.fill(leaving_bytes=600 << 20)


def after_the_budget(machine: Machine, _block: int) -> None:
    """Somebody else takes the memory just after it was found to be enough."""
    require = Engines.require_memory

    def requiring(engines: Engines, *arguments: Any, **options: Any) -> None:
        require(engines, *arguments, **options)
        struck()
        machine.fill()

    Engines.require_memory = requiring  # type: ignore[method-assign]


def after_the_engines(machine: Machine, _block: int) -> None:
    init = Session.__init__

    def opening(*arguments: Any, **options: Any) -> None:
        struck()
        machine.fill()
        init(*arguments, **options)

    Session.__init__ = opening  # type: ignore[method-assign]


FAULTS: dict[str, Install] = {
    "none": lambda machine, block: None,
    "little memory": at_once,
    "no memory after the budget": after_the_budget,
    "no memory after the engines": after_the_engines,
    "no memory": before_block(lambda machine, _: machine.fill()),
    "broken kernels": before_block(lambda machine, _: machine.break_kernels()),
    **{
        f"trap on {name}": before_block(
            lambda machine, engines, name=name: machine.trap(engines.stream(name).handle)  # type: ignore[misc]
        )
        for name in STREAMS
    },
}

_struck_file: list[Path] = []


def struck() -> None:
    for path in _struck_file:
        path.write_text(str(time.time()))


def generate(machine: Machine, fault: str, block: int, path: Path, arguments: list[str]) -> int:
    _struck_file.append(path)
    FAULTS[fault](machine, block)
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


def unread(folder: Path) -> dict[str, object]:
    """Nobody reads the pictures."""
    cuda_memory.STALL_LIMIT_S = 0.5
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


def second_session(machine: Machine, folder: Path) -> dict[str, object]:
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
        machine: Machine = ImaginedMachine() if options.imagined else RealMachine()
        if options.what == "generate":
            fault, block, path, *rest = options.rest
            return generate(machine, fault, int(block), Path(path), rest)
        folder = Path(options.rest[0])
        result = unread(folder) if options.what == "unread" else second_session(machine, folder)
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
