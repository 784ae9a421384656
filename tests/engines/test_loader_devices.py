"""Where a bundle runs: what `--device` may choose, and what is said where it cannot."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from longlive_trt.cli import main
from longlive_trt.engines.bundles.bundle import Bundle, EngineKind, open_bundle
from longlive_trt.engines.loader import DeviceChoice, load_engine, require_runnable, runs_on_gpu
from longlive_trt.engines.ort import gpu as onnxruntime_cuda
from longlive_trt.engines.ort.cpu import OnnxRuntimeEngine
from longlive_trt.errors import BundleError, EngineError
from longlive_trt.exports import GraphInfo
from longlive_trt.extras import engine_command, install_command
from tests.fakes.cuda import FakeCuda

MakeBundle = Callable[..., Bundle]
GRAPHS = ("step", "prompt", "vae_first", "vae_next", "text")


@pytest.fixture
def bundle(fake_bundle: Callable[..., Path], tmp_path: Path) -> MakeBundle:
    def make(
        target: str, kind: str = "onnxruntime", version: str = ort.__version__, **changes: Any
    ) -> Bundle:
        graphs = {name: GraphInfo((), ()) for name in GRAPHS}
        engine = EngineKind(kind, version, target)
        changes = {"precision": "fp16", "graphs": graphs, **changes, "engine": engine}
        return open_bundle(fake_bundle(tmp_path / "bundle", **changes))

    return make


@pytest.fixture
def no_gpu(fake_cuda: Callable[..., FakeCuda]) -> None:
    fake_cuda(is_there=False)


@pytest.fixture
def no_driver(fake_cuda: Callable[..., FakeCuda], monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages that speak to a GPU are not installed."""
    fake_cuda()
    for module in ("cuda.core", "cuda.bindings.driver"):
        monkeypatch.setitem(sys.modules, module, None)


@pytest.fixture
def gpu_provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """An ONNX Runtime that can use GPUs; the names of the libraries that it was given."""
    loaded: list[str] = []
    providers = [onnxruntime_cuda.PROVIDER, "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: providers)
    monkeypatch.setattr(ort, "set_default_logger_severity", lambda _level: None)
    finder = SimpleNamespace(load_nvidia_dynamic_lib=loaded.append)
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", finder)
    onnxruntime_cuda.load_libraries.cache_clear()
    yield loaded
    onnxruntime_cuda.load_libraries.cache_clear()


# ---- bundles for a CPU -----------------------------------------------------------------------


@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.parametrize("machine", ["no_gpu", "no_driver"])
def test_a_bundle_for_cpus_runs_anywhere(
    bundle: MakeBundle, request: pytest.FixtureRequest, machine: str, device: DeviceChoice
) -> None:
    request.getfixturevalue(machine)
    made = bundle("cpu", precision="fp32")
    require_runnable(made, device)
    assert not runs_on_gpu(made, device)


def test_a_cpu_is_used_where_there_is_a_gpu_too(
    bundle: MakeBundle, fake_cuda: Callable[..., FakeCuda]
) -> None:
    cuda = fake_cuda()
    require_runnable(bundle("cpu"), "cpu")
    assert not cuda.calls


def test_bfloat16_is_for_a_gpu(
    bundle: MakeBundle, fake_cuda: Callable[..., FakeCuda], gpu_provider: list[str]
) -> None:
    """No CPU engine has its arithmetic; ONNX Runtime has it on a GPU."""
    fake_cuda()
    made = bundle("cpu", precision="bf16")
    require_runnable(made, "cuda")
    with pytest.raises(BundleError, match=r"no bf16 arithmetic on a CPU; run it with --device cu"):
        require_runnable(made)


def test_a_bundle_for_cpus_on_a_gpu(
    bundle: MakeBundle, fake_cuda: Callable[..., FakeCuda], gpu_provider: list[str]
) -> None:
    """ONNX Runtime runs the exported graphs there: any GPU will do."""
    fake_cuda(capability=(8, 6))
    made = bundle("cpu")
    require_runnable(made, "cuda")
    assert runs_on_gpu(made, "cuda")
    assert set(gpu_provider) > {"cudart", "cublasLt", "cudnn"}


@pytest.mark.parametrize("machine", ["no_gpu", "no_driver"])
def test_a_gpu_was_asked_for_and_there_is_none(
    bundle: MakeBundle, request: pytest.FixtureRequest, machine: str
) -> None:
    request.getfixturevalue(machine)
    with pytest.raises(BundleError) as caught:
        require_runnable(bundle("cpu"), "cuda")
    message = str(caught.value)
    assert "a GPU was asked for, and this machine has no GPU that can be used" in message
    assert message.endswith("; use --device cpu")
    assert ("install the packages cuda-core" in message) == (machine == "no_driver")


# ---- bundles for a GPU -----------------------------------------------------------------------


def test_a_bundle_for_this_gpu(
    bundle: MakeBundle, fake_cuda: Callable[..., FakeCuda], gpu_provider: list[str]
) -> None:
    fake_cuda()
    made = bundle("sm90")
    for device in ("auto", "cuda"):
        require_runnable(made, device)
        assert runs_on_gpu(made, device)


@pytest.mark.parametrize("machine", ["no_gpu", "no_driver"])
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_bundle_for_gpus_where_there_is_none(
    bundle: MakeBundle, request: pytest.FixtureRequest, machine: str, device: DeviceChoice
) -> None:
    request.getfixturevalue(machine)
    made = bundle("sm90")
    with pytest.raises(BundleError) as caught:
        require_runnable(made, device)
    message = str(caught.value)
    assert message.startswith(f"{made.folder}: engines for sm90, and this machine has no GPU that")
    assert message.endswith("build with --engine onnxruntime and without --gpu for a CPU")


def test_a_bundle_for_gpus_on_a_cpu(bundle: MakeBundle, no_gpu: None) -> None:
    with pytest.raises(BundleError, match=r"engines for sm90 do not run on a CPU; leave --device"):
        require_runnable(bundle("sm90"), "cpu")


@pytest.mark.parametrize(("capability", "here"), [((8, 0), "sm80"), ((10, 0), "sm100")])
def test_a_bundle_for_another_gpu(
    bundle: MakeBundle,
    fake_cuda: Callable[..., FakeCuda],
    gpu_provider: list[str],
    capability: tuple[int, int],
    here: str,
) -> None:
    fake_cuda(capability=capability)
    wanted = rf"engines for sm90, and this machine has Imagined GPU \({here}\); build with --gpu"
    with pytest.raises(BundleError, match=f"{wanted} {here}"):
        require_runnable(bundle("sm90"))
    assert not gpu_provider


def test_an_onnxruntime_without_gpus(
    bundle: MakeBundle, fake_cuda: Callable[..., FakeCuda], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cuda()
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    onnxruntime_cuda.load_libraries.cache_clear()
    expected = f"has no GPU support; run `{engine_command('gpu')}`"
    with pytest.raises(EngineError, match=re.escape(expected)):
        require_runnable(bundle("sm90"))


def test_a_library_that_is_missing(
    bundle: MakeBundle,
    fake_cuda: Callable[..., FakeCuda],
    gpu_provider: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(name: str) -> None:
        if name == "cudnn":
            raise RuntimeError("libcudnn.so.9:\n  cannot open")

    fake_cuda()
    monkeypatch.setattr(sys.modules["cuda.pathfinder"], "load_nvidia_dynamic_lib", load)
    expected = "cudnn was not found (libcudnn.so.9: cannot open); run `" + install_command("gpu")
    with pytest.raises(EngineError, match=re.escape(expected)):
        require_runnable(bundle("sm90"))


def test_an_older_onnxruntime(bundle: MakeBundle, no_gpu: None) -> None:
    with pytest.raises(BundleError, match=r"built with onnxruntime 99\.0, and .* is installed"):
        require_runnable(bundle("sm90", version="99.0"))


def test_engines_of_an_unknown_kind(bundle: MakeBundle, no_gpu: None) -> None:
    with pytest.raises(BundleError, match="engines of kind abacus, which this version cannot run"):
        require_runnable(bundle("cpu", kind="abacus"))


# ---- the command line ------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["generate", "bench", "verify"])
@pytest.mark.parametrize(
    ("target", "device", "told"),
    [
        ("cpu", "cuda", "use --device cpu"),
        ("sm90", "auto", "engines for sm90"),
        ("sm90", "cuda", "engines for sm90"),
        ("sm90", "cpu", "do not run on a CPU"),
    ],
)
def test_commands_say_it_in_one_line(
    bundle: MakeBundle,
    no_gpu: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    target: str,
    device: str,
    told: str,
) -> None:
    made, out = bundle(target), tmp_path / "video.mp4"
    arguments = {
        "generate": ["--bundle", made.folder, "--prompt", "a cat", "--out", out],
        "bench": ["--bundle", made.folder],
        "verify": [made.folder, "--against", made.folder],
    }[command]
    assert main([command, *map(str, arguments), "--device", device]) == BundleError.exit_code
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: {made.folder}: ") and "\n" not in error
    assert told in error
    assert not out.exists()


def test_devices_are_three(bundle: MakeBundle, capsys: pytest.CaptureFixture[str]) -> None:
    made = bundle("cpu")
    arguments = ["--bundle", str(made.folder), "--prompt", "a", "--out", "v.mp4"]
    assert main(["generate", *arguments, "--device", "tpu"]) == 2
    assert "is not one of 'auto', 'cpu', 'cuda'" in capsys.readouterr().err


# ---- engines ---------------------------------------------------------------------------------


def test_engines_by_where_they_run(
    bundle: MakeBundle, mini_bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a stream on the CPU; with one on its GPU, graphs with kernels beside the bridge."""
    made: list[tuple[Any, ...]] = []

    class Engine:
        def __init__(self, path: Path, stream: Any, *, library: Path | None) -> None:
            made.append((path.name, stream, library))

    monkeypatch.setattr(onnxruntime_cuda, "OnnxRuntimeCudaEngine", Engine)
    with_kernels = bundle("sm90", options={"kernel_graphs": ["step"]})
    stream: Any = object()
    for graph in ("step", "text"):
        load_engine(with_kernels, graph, stream=stream)
    library = with_kernels.folder / "longlive_kernels.so"
    assert made == [("step.onnx", stream, library), ("text.onnx", stream, None)]
    with load_engine(open_bundle(mini_bundle("relative")), "prompt") as engine:
        assert isinstance(engine, OnnxRuntimeEngine)
