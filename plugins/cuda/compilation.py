"""Turns a file of ``csrc/`` into a cubin or PTX, with nvcc or NVRTC, once for each distinct input.

The cache key covers everything that affects the binary: the text of the source and of every header,
the options, the architecture, the compiler and its version. A finished binary is written aside and
renamed into place, so that a reader never sees half of one.
"""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from longlive_trt.architectures import WITH_KERNELS
from longlive_trt.errors import OutputError, PluginError
from longlive_trt.files import cache_folder, publish_file

logger = logging.getLogger(__name__)

ARCHITECTURES = tuple(architecture.compiled for architecture in WITH_KERNELS)
BinaryKind = Literal["cubin", "ptx"]
CompilerName = Literal["auto", "nvcc", "nvrtc"]

SOURCE_DIR = Path(__file__).resolve().parent.parent / "csrc"
CACHE_ENVIRONMENT = "LONGLIVE_TRT_KERNEL_CACHE"
_CACHE_FORMAT = 1
_BASE_OPTIONS = ("-std=c++17", "-lineinfo")


@dataclass(frozen=True)
class KernelSource:
    """A kernel before compilation: its file, its entry point and the constants it is built with."""

    file: str
    """Below ``csrc/``, as in ``rows/rotate.cu``; includes are written so too."""
    entry: str
    constants: Mapping[str, int] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return SOURCE_DIR / self.file

    def definitions(self) -> tuple[str, ...]:
        return tuple(f"-D{name}={value}" for name, value in sorted(self.constants.items()))


class Compiler(Protocol):
    name: str

    def version(self) -> str: ...

    def compile(self, source: KernelSource, architecture: str, kind: BinaryKind) -> bytes: ...


def virtual_architecture(architecture: str) -> str:
    return architecture.replace("sm_", "compute_")


class NvccCompiler:
    name = "nvcc"

    def __init__(self, executable: Path) -> None:
        self.executable = executable

    def version(self) -> str:
        return _nvcc_version(self.executable)

    def compile(self, source: KernelSource, architecture: str, kind: BinaryKind) -> bytes:
        code = architecture if kind == "cubin" else virtual_architecture(architecture)
        target = f"-gencode=arch={virtual_architecture(architecture)},code={code}"
        with tempfile.TemporaryDirectory(prefix="longlive-kernel-") as folder:
            output = Path(folder) / f"kernel.{kind}"
            command = [str(self.executable), f"-{kind}", target, *_BASE_OPTIONS]
            command += [f"-I{SOURCE_DIR}"]
            command += [*source.definitions(), "-o", str(output), str(source.path)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode != 0 or not output.is_file():
                raise _compile_error(source, architecture, self.name, result.stdout + result.stderr)
            return output.read_bytes()


class NvrtcCompiler:
    """NVRTC itself: ``cuda.core.Program`` asks for a driver before it gives PTX."""

    name = "nvrtc"

    def version(self) -> str:
        nvrtc = import_module("cuda.bindings.nvrtc")
        status, major, minor = nvrtc.nvrtcVersion()
        if int(status) != 0:
            raise PluginError(f"NVRTC does not answer: {status}")
        return f"{major}.{minor}"

    def compile(self, source: KernelSource, architecture: str, kind: BinaryKind) -> bytes:
        nvrtc = import_module("cuda.bindings.nvrtc")
        target = architecture if kind == "cubin" else virtual_architecture(architecture)
        options = [f"--gpu-architecture={target}", *_BASE_OPTIONS, *source.definitions()]
        options.append(f"--include-path={SOURCE_DIR}")
        text, name = source.path.read_bytes(), source.file.encode()
        program = _nvrtc_check(nvrtc.nvrtcCreateProgram(text, name, 0, [], []))
        try:
            encoded = [option.encode() for option in options]
            (status,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
            if int(status) != 0:
                read = nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog
                log = _nvrtc_read(program, *read).decode(errors="replace")
                raise _compile_error(source, architecture, self.name, log)
            if kind == "cubin":
                return _nvrtc_read(program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
            ptx = _nvrtc_read(program, nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
            return ptx.rstrip(b"\0")
        finally:
            nvrtc.nvrtcDestroyProgram(program)


def _nvrtc_check(result: tuple[Any, Any]) -> Any:
    status, value = result
    if int(status) != 0:
        raise PluginError(f"NVRTC failed: {status}")
    return value


def _nvrtc_read(program: Any, size: Callable[..., Any], read: Callable[..., Any]) -> bytes:
    content = bytes(_nvrtc_check(size(program)))  # written in place
    (status,) = read(program, content)
    if int(status) != 0:
        raise PluginError(f"NVRTC failed: {status}")
    return content


def find_nvcc() -> Path | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [Path(home) / "bin" / "nvcc" for home in homes if home]
    on_path = shutil.which("nvcc")
    if on_path:
        candidates.append(Path(on_path))
    return next((path for path in candidates if path.is_file()), None)


def nvrtc_is_available() -> bool:
    try:
        NvrtcCompiler().version()
    except (ImportError, RuntimeError, PluginError):
        return False
    return True


def choose_compiler(name: CompilerName = "auto") -> Compiler:
    if name not in ("auto", "nvcc", "nvrtc"):
        raise PluginError(f"compiler is {name!r}: choose auto, nvcc or nvrtc")
    nvcc = find_nvcc() if name != "nvrtc" else None
    if nvcc is not None:
        return NvccCompiler(nvcc)
    if name != "nvcc" and nvrtc_is_available():
        return NvrtcCompiler()
    wanted = "nvcc or NVRTC" if name == "auto" else name
    raise PluginError(
        f"{wanted} was not found: install the CUDA toolkit (and set CUDA_HOME), or the packages "
        "cuda-core and nvidia-cuda-nvrtc"
    )


def default_cache_dir() -> Path:
    configured = os.environ.get(CACHE_ENVIRONMENT)
    return Path(configured) if configured else cache_folder("kernels")


def cache_key(source: KernelSource, architecture: str, kind: BinaryKind, compiler: Compiler) -> str:
    digest = hashlib.sha256()
    facts = [str(_CACHE_FORMAT), source.file, source.entry, architecture, kind, compiler.name]
    facts += [compiler.version(), *_BASE_OPTIONS, *source.definitions()]
    for fact in facts:
        digest.update(fact.encode() + b"\0")
    for name in texts_of(source.file):
        text = (SOURCE_DIR / name).read_bytes()
        digest.update(f"{name}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()


def compile_kernel(
    source: KernelSource,
    architecture: str,
    *,
    kind: BinaryKind = "cubin",
    compiler: CompilerName | Compiler = "auto",
    cache_dir: Path | None = None,
) -> bytes:
    """The compiled kernel, from the cache when the same input was compiled before."""
    if architecture not in ARCHITECTURES:
        allowed = ", ".join(ARCHITECTURES)
        raise PluginError(f"architecture is {architecture!r}: choose one of {allowed}")
    if kind not in ("cubin", "ptx"):
        raise PluginError(f"kind is {kind!r}: choose cubin or ptx")
    if not source.path.is_file():
        raise PluginError(f"kernel source {source.path} does not exist")
    chosen = choose_compiler(compiler) if isinstance(compiler, str) else compiler
    folder = default_cache_dir() if cache_dir is None else cache_dir
    target = folder / f"{cache_key(source, architecture, kind, chosen)}.{kind}"
    if target.is_file():
        return target.read_bytes()
    logger.info("compiling %s for %s with %s", source.file, architecture, chosen.name)
    binary = chosen.compile(source, architecture, kind)
    publish(target, binary)
    return binary


def publish(target: Path, content: bytes) -> None:
    """Two processes may race, and either result is whole."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with publish_file(target) as partial:
            partial.write_bytes(content)
    except (OSError, OutputError) as error:
        raise PluginError(
            f"cannot write the kernel cache {target.parent}: {error}; set {CACHE_ENVIRONMENT} to a "
            "folder that can be written"
        ) from error


_INCLUDE = re.compile(r'^\s*#include\s+"([^"]+)"', re.MULTILINE)


def texts_of(file: str) -> list[str]:
    """A file of ``csrc/`` and every header that it includes, directly or not, in a fixed order."""
    texts: set[str] = set()
    pending = [file]
    while pending:
        current = pending.pop()
        if current not in texts:
            texts.add(current)
            pending += _INCLUDE.findall((SOURCE_DIR / current).read_text())
    return sorted(texts)


@cache
def _nvcc_version(executable: Path) -> str:
    result = subprocess.run(
        [str(executable), "--version"], capture_output=True, text=True, check=False
    )
    match = re.search(r"V(\d+\.\d+\.\d+)", result.stdout)
    if match is None:
        raise PluginError(f"{executable} --version does not name a version: {result.stdout!r}")
    return match.group(1)


def _compile_error(source: KernelSource, architecture: str, compiler: str, log: str) -> PluginError:
    constants = " ".join(source.definitions()) or "no constants"
    return PluginError(
        f"{compiler} could not compile {source.file} for {architecture} ({constants}):\n"
        f"{log.strip()}"
    )
