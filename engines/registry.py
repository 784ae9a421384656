"""The kinds of engines: another one is one more entry of ``KINDS``.

Nothing here imports a compiler, or a library that runs engines, before a kind is asked for it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from longlive_trt.configs import ModelConfig
from longlive_trt.contract import (
    ONNX_SUFFIX,
    ONNXRUNTIME,
    PLAN_SUFFIX,
    TENSORRT,
    TENSORRT_RTX,
)
from longlive_trt.engines.base import Engine
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.engines.compiler import BuildOptions, EngineCompiler
from longlive_trt.engines.matrices import GRAPHS, MATRICES_NAME, OPTION
from longlive_trt.errors import UsageError
from longlive_trt.exports import weight_files
from longlive_trt.extras import engine_upgrade, install_command
from longlive_trt.plugins.cuda.streams import Stream
from longlive_trt.precision import Precision


@dataclass(frozen=True)
class TritonBackend:
    """What NVIDIA's Triton Inference Server runs engines with."""

    name: str
    platform: str
    model_file: str


@dataclass(frozen=True)
class Kind(ABC):
    """Engines that one compiler makes and one library runs."""

    name: str
    suffix: str
    """Of the file that holds one graph's engine."""
    speed_rank: int
    """The least is the fastest of those that a machine can run."""
    distributions: tuple[str, ...]
    """Packages that hold the library itself; its bindings may be there without it."""
    needs_gpu: bool
    runs_older: bool
    """The library also runs what older versions of it compiled."""
    decodes_blocks: bool
    """The VAE's engines take all latent frames of a block at once."""
    keeps_order: bool
    """What a graph computes from others' results is computed after them, and nothing is merged with
    it: a result may lie where an input was that is read before."""
    triton: TritonBackend | None

    @abstractmethod
    def compiler(
        self, options: BuildOptions, precision: Precision, config: ModelConfig
    ) -> EngineCompiler: ...

    @abstractmethod
    def library_version(self) -> str: ...

    @abstractmethod
    def install_command(self, version: str) -> str:
        """What adds the library, of this version at least."""
        ...

    @abstractmethod
    def load(
        self, bundle: Bundle, graph: str, *, stream: Stream | None, threads: int | None
    ) -> Engine:
        """One graph's engine: with a stream, on its GPU."""
        ...

    def needed_files(self, bundle: Bundle, graph: str) -> set[str]:
        """Every file of the bundle that running this graph takes."""
        return {f"{graph}{self.suffix}"}

    def profile_count(self, bundle: Bundle, graph: str) -> int:
        """How many ranges of sizes the engine was compiled for; 0 where it takes all."""
        return 0

    def load_gpu_libraries(self) -> None:
        """What an engine on a GPU needs, before any is loaded."""
        return


class _OnnxRuntime(Kind):
    def compiler(
        self, options: BuildOptions, precision: Precision, config: ModelConfig
    ) -> EngineCompiler:
        if options.gpu is not None:
            from longlive_trt.engines.ort.gpu_compiler import OnnxRuntimeGpuCompiler

            return OnnxRuntimeGpuCompiler(options, precision)
        from longlive_trt.engines.ort.cpu_compiler import OnnxRuntimeCompiler

        return OnnxRuntimeCompiler(options, precision)

    def library_version(self) -> str:
        from longlive_trt.engines.ort import cpu

        return cpu.version()

    def install_command(self, version: str) -> str:
        return engine_upgrade(version)

    def needed_files(self, bundle: Bundle, graph: str) -> set[str]:
        name = f"{graph}{self.suffix}"
        if name not in bundle.manifest.files:
            return {name}
        needed = {name} | weight_files(bundle.folder / name) | self._library(bundle, graph)
        is_apart = bundle.manifest.options.get(OPTION) and graph in GRAPHS
        return needed | {MATRICES_NAME} if is_apart else needed

    def load(
        self, bundle: Bundle, graph: str, *, stream: Stream | None, threads: int | None
    ) -> Engine:
        path = bundle.folder / f"{graph}{self.suffix}"
        if stream is None:
            from longlive_trt.engines.ort.cpu import OnnxRuntimeEngine

            return OnnxRuntimeEngine(path, threads=threads)
        from longlive_trt.engines.ort.gpu import OnnxRuntimeCudaEngine

        library = next((bundle.folder / name for name in self._library(bundle, graph)), None)
        return OnnxRuntimeCudaEngine(path, stream, library=library)

    def _library(self, bundle: Bundle, graph: str) -> set[str]:
        """The file of our kernels, for a graph that calls them."""
        from longlive_trt.plugins.onnxruntime_bridge import LIBRARY_NAME

        has_kernels = graph in bundle.manifest.options.get("kernel_graphs", ())
        return {LIBRARY_NAME} if has_kernels else set()

    def load_gpu_libraries(self) -> None:
        from longlive_trt.engines.ort import gpu

        gpu.load_libraries()


class _TensorRt(Kind):
    """One of TensorRT's flavors, by its name; the extra that brings it has the same."""

    def compiler(
        self, options: BuildOptions, precision: Precision, config: ModelConfig
    ) -> EngineCompiler:
        from longlive_trt.engines.trt.compiler import TensorRtCompiler
        from longlive_trt.engines.trt.flavors import FLAVORS

        return TensorRtCompiler(FLAVORS[self.name], options, precision, config)

    def library_version(self) -> str:
        from longlive_trt.engines.trt.flavors import FLAVORS

        return str(FLAVORS[self.name].load().__version__)

    def install_command(self, version: str) -> str:
        return install_command(self.name)

    def load(
        self, bundle: Bundle, graph: str, *, stream: Stream | None, threads: int | None
    ) -> Engine:
        from longlive_trt.engines.trt.engine import TensorRtEngine
        from longlive_trt.engines.trt.flavors import FLAVORS

        assert stream is not None  # these run on GPUs only
        manifest, path = bundle.manifest, bundle.folder / f"{graph}{self.suffix}"
        flavor, info = FLAVORS[self.name], manifest.graphs[graph]
        return TensorRtEngine(path, info, flavor, manifest.options, stream)

    def needed_files(self, bundle: Bundle, graph: str) -> set[str]:
        """Every file of the bundle that running this graph takes."""
        return {f"{graph}{self.suffix}"}

    def profile_count(self, bundle: Bundle, graph: str) -> int:
        from longlive_trt.engines.trt.profiles import profiles

        manifest = bundle.manifest
        batch = int(manifest.options.get("batch", 1))
        return len(profiles(graph, manifest.graphs[graph], manifest.config, batch))


DEFAULT = _OnnxRuntime(
    name=ONNXRUNTIME,
    suffix=ONNX_SUFFIX,
    speed_rank=2,
    distributions=("onnxruntime", "onnxruntime-gpu"),
    needs_gpu=False,
    runs_older=True,
    decodes_blocks=True,
    keeps_order=True,
    triton=TritonBackend("onnxruntime", "onnxruntime_onnx", "model.onnx"),
)
KINDS = {
    kind.name: kind
    for kind in (
        DEFAULT,
        _TensorRt(
            name=TENSORRT,
            suffix=PLAN_SUFFIX,
            speed_rank=0,
            distributions=("tensorrt-cu13-libs", "tensorrt"),
            needs_gpu=True,
            runs_older=False,
            decodes_blocks=False,
            keeps_order=False,
            triton=TritonBackend("tensorrt", "tensorrt_plan", "model.plan"),
        ),
        _TensorRt(
            name=TENSORRT_RTX,
            suffix=PLAN_SUFFIX,
            speed_rank=1,
            distributions=("tensorrt-rtx-cu13-libs", "tensorrt-rtx"),
            needs_gpu=True,
            runs_older=False,
            decodes_blocks=False,
            keeps_order=False,
            triton=None,
        ),
    )
}


def compiler_named(
    engine: str, options: BuildOptions, precision: Precision, config: ModelConfig
) -> EngineCompiler:
    if engine not in KINDS:
        raise UsageError(f"engine {engine} is unknown; allowed: {', '.join(KINDS)}")
    return KINDS[engine].compiler(options, precision, config)
