"""Quantized exports as graphs for a GPU: what they mean, on a CPU, against the exports."""

import ctypes
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

pytest.importorskip("modelopt")

from longlive_trt.calibration.calibration_file import load_calibration
from longlive_trt.calibration.folders import SourceExport, write_quantized
from longlive_trt.calibration.recipes import FP8, INT8, Extras
from longlive_trt.contract import CONTEXT_TOKENS, evaluate_size, is_transposed, not_transposed
from longlive_trt.engines.build import build
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.engines.graphs.kernels import kernels_of
from longlive_trt.engines.graphs.step import build_step_graphs
from longlive_trt.engines.ort.cpu import build_graph
from longlive_trt.errors import UsageError
from longlive_trt.exports import RECORD_NAME, Quantization, read_export
from longlive_trt.plugins.attention.value_layout import plain_values, transposed_values
from longlive_trt.precision import PRECISIONS
from tests.engines.graphs.written import ADDED_INPUT, padded
from tests.fakes.sessions import kernel_session
from tests.shared import Shared

BATCH, FRAMES, CACHE_FRAMES, LAYERS = 2, 3, 6, 1
KINDS = {
    "products": Extras(),
    "fp8 cache": Extras(cache=FP8),
    "int8 cache": Extras(cache=INT8),
    "attention": Extras(attention=FP8),
    "attention and cache": Extras(attention=FP8, cache=FP8),
    "attention and int8 cache": Extras(attention=FP8, cache=INT8),
    "attention in int8": Extras(attention=INT8),
}
TRANSPOSED = ("attention and cache", "attention in int8")
"""What attention reads in the cache as it lies there."""
QUICK_KINDS = ("products", "attention in int8")
# Every layer's inputs are rounded to eight bits; where two programs differ in the last bit, a few
# values in a thousand fall on the other side.
SAME_ROUNDING = 1.5e-2
# The exported graph rounds probabilities to steps of their own, which the kernel's numpy does not.
WITH_PROBABILITIES = 5e-2
TYPES = {
    "tensor(float)": (np.dtype(np.float32), 1),
    "tensor(int8)": (np.dtype(np.int8), 3),
    "tensor(int64)": (np.dtype(np.int64), 7),
    "tensor(float8e4m3fn)": (np.dtype(ml_dtypes.float8_e4m3fn), 17),
}

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]
MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="module")
def quantized(shared: Shared) -> Callable[..., Path]:
    """An export by its positions and what is quantized in it besides the products."""

    def quantized_export(rope: str, kind: str, exclude: tuple[str, ...] = ()) -> Path:
        def make(path: Path) -> None:
            calibration = load_calibration(shared(f"gpu8-{rope}-calibration"))
            layers = {n: r for n, r in calibration.layers.items() if n not in exclude}
            calibration = replace(calibration, layers=layers)
            source = SourceExport.open(shared(f"gpu8-{rope}"))
            write_quantized(source, calibration, path, extras=KINDS[kind], check=False)

        return shared.once(f"gpu8-{rope}-{kind.replace(' ', '-')}-{len(exclude)}", make)

    return quantized_export


def exported_session(source: Path, folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    build_graph(source / "step.onnx", folder, PRECISIONS["fp32"])
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(folder / "step.onnx", options, providers=["CPUExecutionProvider"])


def written_session(source: Path, folder: Path, precision: str = "fp32") -> Any:
    folder.mkdir(exist_ok=True)
    build_step_graphs(read_export(source).config, source, PRECISIONS[precision], folder)
    return kernel_session(folder / "step.onnx")


def feed(session: Any, valid_frames: int) -> Arrays:
    generator = np.random.default_rng(7)
    chosen: Arrays = {
        "timestep": np.array([937.25], np.float32),
        "sigma": np.array([0.7], np.float32),
        "sigma_next": np.array([0.4], np.float32),
        "frame_index": np.arange(20, 20 + FRAMES),
        "cache_index": np.arange(CACHE_FRAMES),
        "sink_frames": np.array([valid_frames // 2]),
        "window_frames": np.array([valid_frames - valid_frames // 2]),
    }
    for spec in session.get_inputs():
        if spec.name not in (*chosen, CONTEXT_TOKENS):
            dtype, _ = TYPES[spec.type]
            values = generator.standard_normal([counted(size) for size in spec.shape])
            steps = 1 if dtype == np.float32 else 30
            chosen[spec.name] = (values * steps).astype(dtype)
    return padded(chosen)


def counted(size: int | str) -> int:
    sizes = {"batch": BATCH, "frames": FRAMES, "cache_frames": CACHE_FRAMES}
    return evaluate_size(size, sizes)


def run(session: Any, given: Mapping[str, Any]) -> Arrays:
    """ONNX Runtime's Python takes and gives FP8 by address only."""
    binding = session.io_binding()
    for spec in session.get_inputs():
        value, (_, code) = given[spec.name], TYPES[spec.type]
        plain = value.view(np.uint8) if code == 17 else value
        bound = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(plain, code)
        binding.bind_ortvalue_input(spec.name, bound)
    specs = session.get_outputs()
    for spec in specs:
        binding.bind_output(spec.name)
    session.run_with_iobinding(binding)
    return {
        spec.name: plain_array(value, TYPES[spec.type][0])
        for spec, value in zip(specs, binding.get_outputs(), strict=True)
    }


def run_by_token(session: Any, given: Mapping[str, Any]) -> Arrays:
    """The same of a graph whose values lie transposed, given and given back by token."""
    transposed = {
        spec.name
        for spec in (*session.get_inputs(), *session.get_outputs())
        if is_transposed(spec.shape)
    }
    laid_out = {n: transposed_values(x) if n in transposed else x for n, x in given.items()}
    tokens = given["k_cache.0"].shape[1] // CACHE_FRAMES * FRAMES
    found = run(session, laid_out)
    return {n: plain_values(x, tokens) if n in transposed else x for n, x in found.items()}


def plain_array(value: Any, dtype: Any) -> Any:
    size = int(np.prod(value.shape())) * dtype.itemsize
    memory = ctypes.string_at(value.data_ptr(), size)
    return np.frombuffer(memory, dtype).reshape(value.shape()).astype(np.float64)


def kernels(folder: Path, graph: str = "step") -> Counter[tuple[str, str]]:
    return Counter(
        (json.loads(node.attributes["spec"].as_string())["kernel"], node.op_type)
        for node in ir.load(folder / f"{graph}.onnx").graph
        if "spec" in node.attributes
    )


@pytest.mark.parametrize(
    ("rope", "kind"),
    [
        ("absolute", "attention in int8"),
        pytest.param("relative", "attention and cache", marks=pytest.mark.exhaustive),
        pytest.param("relative", "attention in int8", marks=pytest.mark.exhaustive),
        *(
            pytest.param("absolute", kind, marks=pytest.mark.exhaustive)
            for kind in KINDS
            if kind != "attention in int8"
        ),
    ],
)
def test_the_graphs_agree(
    quantized: Callable[..., Path], rope: str, kind: str, tmp_path: Path, relative_error: Any
) -> None:
    source = quantized(rope, kind)
    reference = exported_session(source, tmp_path / "exported")
    written = written_session(source, tmp_path / "written")
    for of in ("get_inputs", "get_outputs"):
        found, expected = (
            [
                (value.name, value.type, list(not_transposed(value.shape)))
                for value in getattr(session, of)()
            ]
            for session in (written, reference)
        )
        assert found == expected + [ADDED_INPUT] * (of == "get_inputs")
    lies_transposed = any(is_transposed(value.shape) for value in written.get_inputs())
    assert lies_transposed == (kind in TRANSPOSED and (rope == "absolute" or "int8" in kind))
    allowed = WITH_PROBABILITIES if KINDS[kind].attention else SAME_ROUNDING
    for valid_frames in (0, 4):
        given = feed(reference, valid_frames)
        expected, found = run(reference, given), run_by_token(written, given)
        for name, value in expected.items():
            assert relative_error(found[name], value) <= allowed, (name, valid_frames)


def test_every_quantized_product_is_in_fp8(quantized: Callable[..., Path], tmp_path: Path) -> None:
    written_session(quantized("absolute", "products"), tmp_path, "bf16")
    graph = ir.load(tmp_path / "step.onnx").graph
    inputs = [
        [value.dtype for value in node.inputs[:2] if value is not None]
        for node in graph
        if "spec" in node.attributes
        and json.loads(node.attributes["spec"].as_string())["kernel"] in ("gemm", "gelu_product")
    ]
    # q, k and v as one; two of o, the cross-attention's q, and both of the feed-forward.
    in_fp8 = [types for types in inputs if types == [ir.DataType.FLOAT8E4M3FN] * 2]
    assert len(in_fp8) == 6 * LAYERS
    # Patches, head, and three of the level's embedding.
    assert len(inputs) - len(in_fp8) == 5
    assert "quantize" not in {kernel for kernel, _ in kernels(tmp_path)}


@pytest.mark.exhaustive
def test_eight_bits_stay_eight_bits(quantized: Callable[..., Path], tmp_path: Path) -> None:
    """With attention and cache in FP8, keys and values are never widened."""
    written_session(quantized("absolute", "attention and cache"), tmp_path, "bf16")
    found = kernels(tmp_path)
    assert found["qkv_norm_rope", "KernelFloat8E4M3"] == LAYERS
    assert found["narrow_attention", "KernelFloat8E4M3"] == LAYERS
    kernels_found = {kernel for kernel, _ in found}
    assert not kernels_found & {"widen_heads", "narrow_heads", "attention", "transposed_values"}


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in QUICK_KINDS else pytest.param(kind, marks=pytest.mark.exhaustive)
        for kind in KINDS
    ],
)
def test_the_kernels_of_a_graph_are_known_before_it_is_written(
    quantized: Callable[..., Path], kind: str, tmp_path: Path
) -> None:
    """Some stand by: what a layer left out, another GPU, or rotated keys would take."""
    source = quantized("absolute", kind)
    record = read_export(source)
    build_step_graphs(record.config, source, PRECISIONS["bf16"], tmp_path)
    used = {name for graph in ("step", "prompt") for name, _ in kernels(tmp_path, graph)}
    known = kernels_of(record)
    assert used <= known
    assert known - used <= {"quantize", "narrow_heads", "widen_heads", "attention"}


def test_int8_stays_int8(quantized: Callable[..., Path], tmp_path: Path) -> None:
    written_session(quantized("absolute", "attention in int8"), tmp_path, "bf16")
    found = kernels(tmp_path)
    assert found["qkv_norm_rope", "KernelTwoInt8Float8E4M3AndFloat"] == LAYERS
    assert found["narrow_attention", "KernelFloat8E4M3"] == LAYERS
    kernels_found = {kernel for kernel, _ in found}
    assert not kernels_found & {"widen_heads", "narrow_heads", "attention", "transposed_values"}


@pytest.mark.exhaustive
def test_keys_that_are_turned_in_every_pass_are_rounded_then(
    quantized: Callable[..., Path], tmp_path: Path
) -> None:
    """Once, in the pass that turns them; they are kept in the compute type."""
    source = quantized("relative", "attention in int8")
    written_session(source, tmp_path, "bf16")
    found = kernels(tmp_path)
    assert found["qkv_norm_rope", "KernelTwoInt8Float8E4M3FloatAndBFloat16"] == LAYERS
    assert found["rotate", "KernelInt8"] == LAYERS
    assert found["narrow_attention", "KernelFloat8E4M3"] == LAYERS
    kernels_found = {kernel for kernel, _ in found}
    assert not kernels_found & {"widen_heads", "narrow_heads", "attention", "transposed_values"}
    assert {kernel for kernel, _ in found} <= kernels_of(read_export(source))
    graph = ir.load(tmp_path / "step.onnx").graph
    types = {str(value.name): value.dtype for value in (*graph.inputs, *graph.outputs)}
    assert types["k_cache.0"] == types["k_new.0"] == ir.DataType.BFLOAT16
    assert types["v_cache.0"] == types["v_new.0"] == ir.DataType.FLOAT8E4M3FN


@pytest.mark.exhaustive
@pytest.mark.parametrize("rope", ["absolute", "relative"])
def test_other_gpus_attend_in_the_compute_type_to_keys_in_int8(
    quantized: Callable[..., Path], rope: str, tmp_path: Path, relative_error: Any
) -> None:
    """The same cache, whatever attends to it."""
    source = quantized(rope, "attention in int8")
    config = read_export(source).config
    (tmp_path / "other").mkdir()
    build_step_graphs(config, source, PRECISIONS["fp32"], tmp_path / "other", hopper=False)
    found = kernels(tmp_path / "other")
    assert found["attention", "KernelFloat"] == LAYERS
    assert found["narrow_heads", "KernelInt8"] == (LAYERS if rope == "absolute" else 0)
    assert found["narrow_heads", "KernelFloat8E4M3"] == LAYERS
    assert {kernel for kernel, _ in found} <= kernels_of(read_export(source))
    reference = exported_session(source, tmp_path / "exported")
    other = kernel_session(tmp_path / "other" / "step.onnx")
    given = feed(reference, 4)
    expected, made = run(reference, given), run(other, given)
    for name, value in expected.items():
        assert relative_error(made[name], value) <= WITH_PROBABILITIES, name


def test_other_gpus_narrow_what_their_attention_writes(
    quantized: Callable[..., Path], tmp_path: Path
) -> None:
    source = quantized("absolute", "products")
    config = read_export(source).config
    build_step_graphs(config, source, PRECISIONS["bf16"], tmp_path, hopper=False)
    found = kernels(tmp_path)
    assert found["attention", "KernelBFloat16"] == LAYERS
    assert found["cross_attention", "KernelBFloat16"] == LAYERS
    assert found["quantize", "KernelFloat8E4M3"] == 2 * LAYERS


def test_weights_take_a_byte(quantized: Callable[..., Path], tmp_path: Path) -> None:
    plain = quantized("absolute", "products").with_name("gpu8-absolute")
    sizes = []
    for name, source in (("plain", plain), ("fp8", quantized("absolute", "products"))):
        written_session(source, tmp_path / name, "bf16")
        sizes.append((tmp_path / name / "step.weights").stat().st_size)
    assert sizes[1] < 0.8 * sizes[0]


@pytest.mark.exhaustive
def test_layers_left_out_stay_in_the_compute_type(
    quantized: Callable[..., Path], tmp_path: Path, relative_error: Any
) -> None:
    """One of q, k and v left out keeps the others, which are multiplied with it, from FP8."""
    source = quantized("absolute", "products", ("blocks.0.self_attn.v", "blocks.0.ffn.2"))
    reference = exported_session(source, tmp_path / "exported")
    written = written_session(source, tmp_path / "written")
    given = feed(reference, 4)
    expected, found = run(reference, given), run(written, given)
    # The exported graph still rounds what goes into q and k.
    assert relative_error(found["latents_next"], expected["latents_next"]) <= 3e-2
    assert kernels(tmp_path / "written")["gelu_product", "KernelFloat8E4M3"] == LAYERS - 1


def changed(source: Path, folder: Path, quantization: Quantization) -> Path:
    """A record alone: what is refused is refused before anything is read."""
    folder.mkdir()
    record = replace(read_export(source), quantization=quantization, files={})
    (folder / RECORD_NAME).write_text(record.to_json())
    return folder


@pytest.mark.parametrize(
    ("quantization", "gpu", "message"),
    [
        (Quantization("int8", "int8", ""), "sm90", "--precision int8 --gpu: .*--precision fp8"),
        (Quantization("fp8", "fp8", ""), "sm80", "sm80: its tensor cores have no fp8"),
        (
            *(Quantization("fp8", "fp8", "", attention="fp8"), "sm89"),
            r"self-attention of the graphs is in fp8, .* takes sm90 and heads of 128 only",
        ),
    ],
)
def test_what_has_no_kernel_is_refused(
    quantized: Callable[..., Path],
    quantization: Quantization,
    gpu: str,
    message: str,
    tmp_path: Path,
) -> None:
    source = changed(quantized("absolute", "products"), tmp_path / "source", quantization)
    with pytest.raises(UsageError, match=message):
        build(source, tmp_path / "out", "bf16", options=BuildOptions(gpu=gpu))
    assert not (tmp_path / "out").exists()


def test_a_bundle_says_how_its_values_lie(quantized: Callable[..., Path], tmp_path: Path) -> None:
    """What `build` wrote is opened again."""
    source = quantized("absolute", "attention in int8")
    build(source, tmp_path / "bundle", "bf16", options=BuildOptions(gpu="sm90"))
    graphs = open_bundle(tmp_path / "bundle").manifest.graphs
    lying = {tensor.name for tensor in graphs["step"].inputs if is_transposed(tensor.shape)}
    assert lying == {f"v_cache.{layer}" for layer in range(LAYERS)}


def test_heads_that_narrow_attention_does_not_take_are_refused(
    quantized: Callable[..., Path], tmp_path: Path
) -> None:
    wanted = Quantization("fp8", "fp8", "", attention="fp8")
    source = changed(quantized("absolute", "products"), tmp_path / "source", wanted)
    record = read_export(source)
    config = replace(record.config, transformer=replace(record.config.transformer, heads=4))
    (source / RECORD_NAME).write_text(replace(record, config=config).to_json())
    with pytest.raises(UsageError, match=r"heads of 128 only \(these have 64\); .*--attention"):
        build(source, tmp_path / "out", "bf16", options=BuildOptions(gpu="sm90"))
    assert not (tmp_path / "out").exists()


@pytest.mark.exhaustive
def test_a_manifest_says_what_attention_is_in(
    quantized: Callable[..., Path], tmp_path: Path
) -> None:
    for kind, attention in (
        ("products", "bf16"),
        ("attention and cache", "fp8"),
        ("attention in int8", "int8"),
    ):
        source = quantized("absolute", kind)
        result = build(source, tmp_path / attention, "bf16", options=BuildOptions(gpu="sm90"))
        assert result.manifest.precision == "fp8"
        assert result.manifest.options["attention"] == attention


def test_attention_in_int8_is_in_half_precision_elsewhere_and_said_so_once(
    quantized: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = quantized("absolute", "attention in int8")
    result = build(source, tmp_path / "out", "bf16", options=BuildOptions(gpu="sm89"))
    assert result.manifest.options["attention"] == "bf16"
    assert [message for message in caplog.messages if "attention in int8" in message] == [
        "--gpu sm89: attention in int8 takes sm90 and heads of 128 (these have 128); keys and "
        "values are kept in eight bits, and attention is in bf16"
    ]
