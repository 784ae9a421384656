"""Binding and running plans, against a stand-in for TensorRT: no GPU runs these tests."""

import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from longlive_trt.engines import loader
from longlive_trt.engines.base import TensorSpec
from longlive_trt.engines.trt import flavors
from longlive_trt.engines.trt.engine import TensorRtEngine
from longlive_trt.errors import BundleError, EngineError, PluginError
from longlive_trt.exports import GraphInfo, TensorInfo
from longlive_trt.plugins.cuda.driver import DeviceFacts
from longlive_trt.plugins.cuda.streams import Gpu, Stream
from longlive_trt.plugins.cuda.tensors import DeviceTensor
from tests.fakes.cuda import FakeCuda

INFO = GraphInfo(
    (
        TensorInfo("latents", "float16", ("batch", "frames", 4)),
        TensorInfo("k_cache.0", "float16", ("batch", "6*cache_frames", 2)),
    ),
    (
        TensorInfo("latents_next", "float16", ("batch", "frames", 4)),
        TensorInfo("k_new.0", "float16", ("batch", "6*frames", 2)),
    ),
)
SHAPES = {"latents": (1, -1, 4), "k_cache.0": (1, 54, 2), "latents_next": (1, -1, 4)}
PROFILES = [
    {"latents": [(1, 3, 4)] * 3, "k_cache.0": [(1, 54, 2)] * 3},
    {"latents": [(1, 3, 4), (1, 9, 4), (1, 12, 4)], "k_cache.0": [(1, 54, 2)] * 3},
]


class FakeContext:
    def __init__(self) -> None:
        self.profile, self.runs = -1, 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return stream != 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address != 0

    def set_device_memory(self, pointer: int, size: int) -> None:
        self.memory = (pointer, size)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        frames = self.shapes["latents"][1]
        return {"latents_next": (1, frames, 4), "k_new.0": (1, 6 * frames, 2)}[name]

    def execute_async_v3(self, stream: int) -> bool:
        self.runs += 1
        return stream != 0


class FakeEngine:
    num_io_tensors = 4
    num_optimization_profiles = 2
    device_memory_size_v2 = 4096
    weight_streaming_budget_v2 = -1

    def get_tensor_name(self, index: int) -> str:
        return [tensor.name for tensor in (*INFO.inputs, *INFO.outputs)][index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {**SHAPES, "k_new.0": (1, -1, 2)}[name]

    def get_tensor_dtype(self, _name: str) -> Any:
        return SimpleNamespace(name="HALF")

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in ("latents", "k_cache.0") else "output"

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return PROFILES[profile][name]


class FakeFlavor:
    kind = "tensorrt"
    captures_itself = False

    def __init__(self) -> None:
        self.engine: Any = FakeEngine()
        self.contexts: list[FakeContext] = []

    def load(self) -> Any:
        runtime = SimpleNamespace(deserialize_cuda_engine=lambda _plan: self.engine)
        return SimpleNamespace(
            ILogger=type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0}),
            Runtime=lambda _logger: runtime,
            TensorIOMode=SimpleNamespace(INPUT="input"),
        )

    def create_context(self, _trt: Any, _engine: Any, _cuda_graphs: bool) -> FakeContext:
        self.contexts.append(FakeContext())
        return self.contexts[-1]


@pytest.fixture
def flavor() -> FakeFlavor:
    return FakeFlavor()


@pytest.fixture
def cuda(fake_cuda: Callable[..., FakeCuda]) -> FakeCuda:
    return fake_cuda()


@pytest.fixture
def stream(cuda: FakeCuda) -> Stream:
    return Gpu().stream()


@pytest.fixture
def load(flavor: FakeFlavor, stream: Stream, tmp_path: Path) -> Callable[..., TensorRtEngine]:
    path = tmp_path / "step.engine"
    path.write_bytes(b"plan")

    def load(**options: Any) -> TensorRtEngine:
        chosen: Any = flavor
        return TensorRtEngine(path, INFO, chosen, options, stream)

    return load


def device(pointer: int, *shape: int, dtype: str = "float16") -> DeviceTensor:
    return DeviceTensor.contiguous(pointer, shape, dtype)


def inputs(frames: int = 3) -> dict[str, DeviceTensor]:
    return {"latents": device(100, 1, frames, 4), "k_cache.0": device(200, 1, 54, 2)}


def test_the_tensor_table_has_the_manifests_names_for_open_sizes(
    load: Callable[..., TensorRtEngine],
) -> None:
    engine = load()
    half = np.dtype(np.float16)
    assert engine.inputs["latents"] == TensorSpec("latents", half, (1, "frames", 4))
    assert engine.inputs["k_cache.0"].shape == (1, 54, 2)
    assert engine.outputs["k_new.0"].sized(frames=3) == (1, 18, 2)


@pytest.mark.parametrize(("frames", "profile"), [(3, 0), (9, 1), (12, 1)])
def test_a_static_profile_is_preferred(
    load: Callable[..., TensorRtEngine], flavor: FakeFlavor, frames: int, profile: int
) -> None:
    load().bind(inputs(frames), {"latents_next": device(300, 1, frames, 4)})
    assert flavor.contexts[0].profile == profile


def test_shapes_that_no_profile_takes(load: Callable[..., TensorRtEngine]) -> None:
    with pytest.raises(EngineError, match=r"no profile takes \{'latents': \[1, 13, 4\]\}"):
        load().bind(inputs(13), {})


def test_unwanted_outputs_get_memory_of_their_own_that_bindings_share(
    load: Callable[..., TensorRtEngine], flavor: FakeFlavor, cuda: FakeCuda
) -> None:
    engine = load()
    engine.bind(inputs(), {"latents_next": device(300, 1, 3, 4)})
    engine.bind(inputs(), {"latents_next": device(400, 1, 3, 4)})
    first, second = (context.addresses for context in flavor.contexts)
    assert first["k_new.0"] == second["k_new.0"] not in (100, 200, 300)
    assert (first["latents_next"], second["latents_next"]) == (300, 400)
    assert sorted(cuda.memory.live("device")) == [18 * 2 * 2, 4096]
    engine.close()
    assert cuda.memory.live("device") == []


def test_contexts_share_one_memory_of_activations(
    load: Callable[..., TensorRtEngine], flavor: FakeFlavor
) -> None:
    engine = load()
    for _ in range(3):
        engine.bind(inputs(), {})
    assert len({context.memory for context in flavor.contexts}) == 1
    assert flavor.contexts[0].memory[1] == engine.scratch_bytes


def test_bindings_end_with_their_engine(
    load: Callable[..., TensorRtEngine], flavor: FakeFlavor, cuda: FakeCuda
) -> None:
    engine = load()
    binding = engine.bind(inputs(), {})
    for _ in range(2):
        binding.run()
    context = weakref.ref(flavor.contexts.pop())
    assert context() is not None
    engine.close()
    assert context() is None
    assert cuda.leaks() == {"streams": 1}
    with pytest.raises(EngineError, match="was closed with its engine"):
        binding.run()


def test_memory_goes_through_the_ledger(
    load: Callable[..., TensorRtEngine], stream: Stream
) -> None:
    engine, counts = load(), stream.gpu.ledger.counts
    engine.bind(inputs(), {"latents_next": device(300, 1, 3, 4)})
    assert counts == {"allocation": 2}
    engine.close()
    assert counts == {"allocation": 2, "free": 2}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"latents": device(1, 1, 3, 5)}, r"latents is \[1, 3, 5\], expected \[1, 'frames', 4\]"),
        ({"latents": device(1, 3, 4)}, r"latents is \[3, 4\]"),
        ({"latents": device(1, 1, 3, 4, dtype="float32")}, r"is float32, expected float16"),
        ({"other": device(1, 1)}, r"has no tensor other"),
        (
            {"latents": DeviceTensor(1, (1, 3, 4), (12, 1, 3), "float16", 0)},
            r"latents is not contiguous",
        ),
    ],
)
def test_tensors_that_do_not_fit(
    load: Callable[..., TensorRtEngine], changed: dict[str, DeviceTensor], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        load().bind({**inputs(), **changed}, {})


def test_inputs_that_the_compiler_left_out_are_not_needed(
    load: Callable[..., TensorRtEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    unread = TensorInfo("cache_index", "int64", ("cache_frames",))
    monkeypatch.setattr(
        f"{__name__}.INFO", GraphInfo((*INFO.inputs, unread), INFO.outputs), raising=True
    )
    monkeypatch.setattr(
        FakeEngine,
        "get_tensor_name",
        lambda _self, index: ["latents", "k_cache.0", "latents_next", "k_new.0"][index],
    )
    engine = load()
    assert "cache_index" not in engine.inputs
    engine.bind({**inputs(), "cache_index": device(1, 9, dtype="int64")}, {})


def test_missing_inputs_are_named(load: Callable[..., TensorRtEngine]) -> None:
    with pytest.raises(EngineError, match=r"graph step: inputs are missing: k_cache\.0"):
        load().bind({"latents": device(1, 1, 3, 4)}, {})


def test_the_first_run_is_plain_and_later_ones_replay_a_graph(
    load: Callable[..., TensorRtEngine], flavor: FakeFlavor, cuda: FakeCuda
) -> None:
    binding = load().bind(inputs(), {})
    for _ in range(3):
        binding.run()
    assert flavor.contexts[0].runs == 2
    assert cuda.calls["cuGraphInstantiate"] == 1
    assert cuda.calls["cuGraphLaunch"] == 2


def test_a_failed_run_and_a_broken_plan_are_engine_errors(
    load: Callable[..., TensorRtEngine], flavor: FakeFlavor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeContext, "execute_async_v3", lambda _self, _stream: False)
    with pytest.raises(EngineError, match=r"graph step failed in tensorrt"):
        load().bind(inputs(), {}).run()
    flavor.engine = None
    with pytest.raises(EngineError, match=r"step\.engine: tensorrt cannot load it"):
        load()


def test_the_weight_streaming_budget_comes_from_the_manifest(
    load: Callable[..., TensorRtEngine], flavor: FakeFlavor
) -> None:
    load(weight_streaming_bytes=1 << 30)
    assert flavor.engine.weight_streaming_budget_v2 == 1 << 30


H100 = DeviceFacts(0, "NVIDIA H100 80GB HBM3", (9, 0), 132, 0)
H200 = DeviceFacts(0, "NVIDIA H200", (9, 0), 132, 0)
L4 = DeviceFacts(0, "NVIDIA L4", (8, 9), 58, 0)


def bundle(tmp_path: Path, version: str = "11.4.0.106", **options: Any) -> Any:
    engine = SimpleNamespace(kind="tensorrt", version=version, target="sm90")
    options = {"gpu_name": H100.name, **options}
    manifest = SimpleNamespace(engine=engine, options=options, precision="bf16", plugins={})
    return SimpleNamespace(folder=tmp_path, manifest=manifest)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def machine(facts: DeviceFacts, version: str = "11.4.0.106") -> None:
        flavor = SimpleNamespace(load=lambda: SimpleNamespace(__version__=version))
        monkeypatch.setattr(flavors, "FLAVORS", {"tensorrt": flavor})
        monkeypatch.setattr(loader, "device_facts", lambda: facts)

    return machine


@pytest.mark.parametrize(
    ("facts", "options"),
    [
        (H100, {}),
        (H200, {"hardware_compatibility": "same-capability"}),
        (L4, {"hardware_compatibility": "ampere-plus"}),
    ],
)
def test_engines_that_run_here(
    tmp_path: Path, machine: Callable[..., None], facts: DeviceFacts, options: dict[str, Any]
) -> None:
    machine(facts)
    loader.require_runnable(bundle(tmp_path, **options))


@pytest.mark.parametrize(
    ("facts", "options"),
    [(H200, {}), (L4, {}), (L4, {"hardware_compatibility": "same-capability"})],
)
def test_engines_for_another_gpu(
    tmp_path: Path, machine: Callable[..., None], facts: DeviceFacts, options: dict[str, Any]
) -> None:
    machine(facts)
    expected = rf"engines for NVIDIA H100 80GB HBM3, and this machine has {facts.name}.*build --en"
    with pytest.raises(BundleError, match=expected):
        loader.require_runnable(bundle(tmp_path, **options))


def test_engines_of_another_version(tmp_path: Path, machine: Callable[..., None]) -> None:
    machine(H100, version="11.5.0.1")
    found = r"tensorrt 11\.4\.0\.106, and 11\.5\.0\.1 is installed; run `longlive-trt build --engi"
    with pytest.raises(BundleError, match=found):
        loader.require_runnable(bundle(tmp_path))
    loader.require_runnable(bundle(tmp_path, version_compatible=True))
    machine(H100, version="11.3.0.1")
    with pytest.raises(BundleError, match="is installed"):
        loader.require_runnable(bundle(tmp_path, version_compatible=True))


def test_no_gpu_at_all(
    tmp_path: Path, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> DeviceFacts:
        raise PluginError("no CUDA device 0 can be used")

    machine(H100)
    monkeypatch.setattr(loader, "device_facts", absent)
    with pytest.raises(BundleError, match=r"no GPU that can be used.*--engine onnxruntime"):
        loader.require_runnable(bundle(tmp_path))


def test_stripped_engines_must_be_refitted_first(
    tmp_path: Path, machine: Callable[..., None]
) -> None:
    machine(H100)
    with pytest.raises(BundleError, match=r"without their weights.*longlive-trt refit"):
        loader.require_runnable(bundle(tmp_path, strip=True))
