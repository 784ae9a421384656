"""The real TensorRT-RTX compiler, ahead of time, on this CPU: what it makes of our graphs."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from longlive_trt.cli import main
from longlive_trt.configs.loader import configure
from longlive_trt.engines.build import build
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.compiler import BuildOptions, GraphSource
from longlive_trt.engines.loader import require_runnable
from longlive_trt.engines.registry import compiler_named
from longlive_trt.errors import BundleError, UsageError
from longlive_trt.export.components import Sources
from longlive_trt.export.exporter import export
from longlive_trt.exports import GraphInfo, TensorInfo
from longlive_trt.precision import precision_named
from tests.shared import Shared

rtx = pytest.importorskip(
    "tensorrt_rtx_bindings",
    reason="TensorRT-RTX is not installed: pip install 'longlive-trt[tensorrt-rtx]'",
)

MakeOnce = Callable[[str, Callable[[Path], object]], Path]
Report = dict[str, Any]

GRAPHS = ["step", "prompt", "vae_first", "vae_next", "text"]
PROFILES = ["denoise", "recache", "recache_early"]


def compile_all(source: Path, out: Path, gpu: str, precision: str, **options: Any) -> None:
    build(source, out, precision, "tensorrt-rtx", options=BuildOptions(gpu=gpu, **options))


def report_of(bundle: Path) -> dict[str, Report]:
    report = json.loads((bundle / "report.json").read_text())
    return {graph["graph"]: graph for graph in report["graphs"]}


@pytest.fixture(scope="session")
def rtx_bundle(make_once: MakeOnce, tiny_export: Path) -> Callable[[str, str], Path]:
    def bundle(gpu: str, precision: str) -> Path:
        return make_once(
            f"tiny-{gpu}-{precision}", lambda path: compile_all(tiny_export, path, gpu, precision)
        )

    return bundle


@pytest.mark.exhaustive
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("gpu", ["sm89", "sm120"])
def test_every_graph_compiles_and_every_attention_is_one_kernel(
    rtx_bundle: Callable[[str, str], Path], gpu: str, precision: str
) -> None:
    bundle = open_bundle(rtx_bundle(gpu, precision))
    engine = bundle.manifest.engine
    assert (engine.kind, engine.target) == ("tensorrt-rtx", gpu)
    assert engine.version == rtx.__version__
    graphs = report_of(bundle.folder)
    assert list(graphs) == GRAPHS
    for name in GRAPHS:
        assert (bundle.folder / f"{name}.engine").stat().st_size == graphs[name]["engine_bytes"]
        assert graphs[name]["weights_bytes"] > 0
        assert min(graphs[name]["activation_bytes"]) > 0
    require_fused_attention(graphs["step"], layers=2)
    half = {"fp16": "Half", "bf16": "BFloat16"}[precision]
    assert set(graphs["step"]["matrix_products"]) == {half}


@pytest.mark.exhaustive
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("gpu", ["sm89", "sm120"])
def test_light_decoders_compile(shared: Shared, tmp_path: Path, gpu: str, precision: str) -> None:
    """TAEHV's graphs, of any height and width, are compiled for those of the configuration."""
    for name in ("tiny-decoder-export", "narrow-decoder-export"):
        compile_all(shared(name), tmp_path / name, gpu, precision)
        bundle = open_bundle(tmp_path / name)
        assert bundle.manifest.engine.target == gpu
        assert list(report_of(bundle.folder)) == ["vae_first", "vae_next"]


def require_fused_attention(step: Report, layers: int) -> None:
    """From the builder's own list: per layer and profile one self- and one cross-attention."""
    assert [profile["name"] for profile in step["profiles"]] == PROFILES
    kernels = [layer for layer in step["layers"] if layer["category"] == "attention"]
    made = Counter((source, k["profile"]) for k in kernels for source in k["sources"])
    for profile in range(len(PROFILES)):
        for layer in range(layers):
            assert made[f"self_attention.{layer}", profile] == 1
            assert made[f"cross_attention.{layer}", profile] == 1
    assert len(kernels) == 2 * layers * len(PROFILES)
    assert step["attention"] == {"expected": len(kernels), "fused": len(kernels), "faults": []}
    assert not [layer["name"] for layer in step["layers"] if layer["category"] == "softmax"]


@pytest.mark.exhaustive
def test_self_attention_reads_how_many_keys_are_valid(
    rtx_bundle: Callable[[str, str], Path],
) -> None:
    """The parser drops `nonpad_kv_seqlen`; the kernel must have the length as an input."""
    step = report_of(rtx_bundle("sm89", "fp16"))["step"]
    for layer in step["layers"]:
        if layer["category"] == "attention":
            integers = [t for t in layer["inputs"] if t["type"] in ("Int32", "Int64")]
            is_self = any(source.startswith("self") for source in layer["sources"])
            assert bool(integers) == is_self, layer["name"]


@pytest.mark.exhaustive
def test_an_engine_for_another_machine_is_refused_before_it_is_loaded(
    rtx_bundle: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from longlive_trt.engines import loader
    from longlive_trt.plugins.cuda.driver import DeviceFacts

    bundle = open_bundle(rtx_bundle("sm89", "fp16"))
    hopper = DeviceFacts(0, "NVIDIA H100", (9, 0), 132, 0)
    monkeypatch.setattr(loader, "device_facts", lambda: hopper)
    with pytest.raises(BundleError, match=r"for sm89, and this machine has NVIDIA H100 \(sm90\)"):
        require_runnable(bundle)
    monkeypatch.setattr(loader, "device_facts", lambda: DeviceFacts(0, "NVIDIA L4", (8, 9), 58, 0))
    require_runnable(bundle)


def test_nothing_is_built_twice_but_another_choice_is_another_bundle(
    tiny_export: Path, tmp_path: Path
) -> None:
    source = only(tiny_export, "prompt", tmp_path)

    def built(**options: Any) -> tuple[bool, str]:
        asked = BuildOptions(gpu="sm89", **options)
        result = build(source, tmp_path / "bundle", "fp16", "tensorrt-rtx", options=asked)
        return result.was_current, result.manifest.key

    first, key = built()
    again, same_key = built()
    assert (first, again) == (False, True)
    assert key == same_key
    assert built(batch=2) != (True, key)
    _, streamed = built(weight_streaming_bytes=1 << 30)
    assert streamed != key


def only(exported: Path, graph: str, tmp_path: Path) -> Path:
    """An export with one of the graphs."""
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    record = json.loads((folder / "export.json").read_text())
    record["graphs"] = {graph: record["graphs"][graph]}
    (folder / "export.json").write_text(json.dumps(record))
    return folder


@pytest.mark.exhaustive
def test_full_geometry_is_fused(make_once: MakeOnce, tmp_path: Path) -> None:
    """LongLive's own sizes, with 2 of its 30 layers: 4,680 queries, 18,720 keys."""
    config = configure({"name": "geometry", "transformer": {"layers": 2}}, origin="test")
    half = precision_named("fp16")
    exported = make_once(
        "geometry-export",
        lambda path: export(config, Sources(random_seed=1), path, half, check=False),
    )
    out = tmp_path / "bundle"
    compile_all(exported, out, "sm89", "fp16")
    step = report_of(out)["step"]
    require_fused_attention(step, layers=2)
    queries = {
        layer["inputs"][0]["shape"][1]
        for layer in step["layers"]
        if layer["category"] == "attention" and layer["profile"] == 0
    }
    assert queries == {4680}
    # The profiles share one copy of the weights.
    assert step["weights_bytes"] < (exported / "transformer.weights").stat().st_size


@pytest.mark.exhaustive
def test_a_layer_of_14b_is_fused(tmp_path: Path) -> None:
    """By the commands of docs/family.md, without a checkpoint: one of 40 layers at full width."""
    small = ("transformer.layers=1", "vae=null", "text_encoder=null")
    options = [part for size in small for part in ("--set", size)]
    made_up = ("--random-weights", "1", "--precision", "fp16", "--no-check")
    exported, out = tmp_path / "onnx", tmp_path / "bundle"
    command = ["export", "--config", "wan-14b", *options, *made_up, "--out", str(exported)]
    assert main(command) == 0
    compile_all(exported, out, "sm89", "fp16")
    step = report_of(out)["step"]
    require_fused_attention(step, layers=1)
    # A layer's matrices: eight square ones, and two of its network.
    assert step["weights_bytes"] > 2 * (8 * 5120**2 + 2 * 5120 * 13824)


def test_fp32_needs_the_permission_to_decompose(tiny_export: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no fused attention kernel in fp32.*--precision fp16"):
        compile_all(tiny_export, tmp_path / "refused", "sm89", "fp32")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("gpu", [None, "sm90", "sm75", "hopper"])
def test_a_gpu_that_it_cannot_compile_for(gpu: str | None, tiny_export: Path) -> None:
    with pytest.raises(UsageError, match=r"compiles for sm80, sm86, sm89, sm120, sm121") as refused:
        build(
            tiny_export,
            Path("never"),
            "fp16",
            "tensorrt-rtx",
            options=BuildOptions(gpu=gpu),
        )
    assert gpu is None or gpu in str(refused.value)


def quantized_product(path: Path, kind: str) -> None:
    """One matrix product with quantized operands, as the quantized graphs have them."""
    numpy_type, largest = {"fp8": (ml_dtypes.float8_e4m3fn, 448), "int8": (np.int8, 127)}[kind]
    weights = np.random.default_rng(0).uniform(-largest, largest, (256, 512)).astype(numpy_type)
    scale = np.array(0.1 / largest, np.float16)
    constants = {"w": weights, "s": scale, "z": np.zeros((), numpy_type)}
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        node("MatMul", ["xd", "wd"], ["y"]),
    ]
    half = TensorProto.FLOAT16
    graph = helper.make_graph(
        nodes,
        "prompt",
        [helper.make_tensor_value_info("x", half, ["batch", 64, 256])],
        [helper.make_tensor_value_info("y", half, ["batch", 64, 512])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    for key, value in (("compute_type", "FLOAT16"), ("compute_values", "[]")):
        model.metadata_props.add(key=f"longlive.{key}", value=value)
    onnx.save(model, path)


def quantized_source(path: Path, kind: str) -> GraphSource:
    quantized_product(path, kind)
    info = GraphInfo(
        (TensorInfo("x", "float16", ("batch", 64, 256)),),
        (TensorInfo("y", "float16", ("batch", 64, 512)),),
    )
    return GraphSource("prompt", path, info, configure({"name": "m"}, origin="test"))


@pytest.mark.parametrize(("kind", "counted"), [("fp8", "FP8"), ("int8", "Int8")])
def test_quantized_products_are_counted(kind: str, counted: str, tmp_path: Path) -> None:
    source = quantized_source(tmp_path / "prompt.onnx", kind)
    options, half = BuildOptions(gpu="sm89"), precision_named("fp16")
    compiler = compiler_named("tensorrt-rtx", options, half, source.config)
    compiler.compile(source, tmp_path, lambda _what, _done, _total: None)
    compiler.finish(tmp_path)
    assert report_of(tmp_path)["prompt"]["matrix_products"] == {counted: 1}


def test_fp8_on_a_gpu_without_it_is_refused_with_the_reason(tmp_path: Path) -> None:
    source = quantized_source(tmp_path / "prompt.onnx", "fp8")
    options, half = BuildOptions(gpu="sm86"), precision_named("fp16")
    compiler = compiler_named("tensorrt-rtx", options, half, source.config)
    with pytest.raises(UsageError, match=r"fp8 on sm86.*begins with sm89"):
        compiler.compile(source, tmp_path, lambda _what, _done, _total: None)
    assert not (tmp_path / "prompt.engine").exists()
