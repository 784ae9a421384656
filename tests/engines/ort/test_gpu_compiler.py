"""Bundles of hand-written graphs for a GPU, built where there is none."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")

from longlive_trt.cli import main
from longlive_trt.configs import ModelConfig
from longlive_trt.configs.schema import TextEncoderConfig, VaeConfig
from longlive_trt.demo.assembly import assemble
from longlive_trt.engines.build import BuildResult, build
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.engines.ort import gpu_compiler as onnxruntime_gpu
from longlive_trt.engines.ort.gpu_compiler import OnnxRuntimeGpuCompiler
from longlive_trt.errors import LongLiveError, PluginError, UsageError
from longlive_trt.export.demo_tokenizer import write_demo_tokenizer
from longlive_trt.export.models.vae import VaeDecoder
from longlive_trt.exports import RECORD_NAME, ExportRecord, Quantization, graph_info, read_export
from longlive_trt.plugins import onnxruntime_bridge
from longlive_trt.plugins.cuda import compilation
from longlive_trt.plugins.cuda.compilation import SOURCE_DIR
from longlive_trt.plugins.onnxruntime_bridge import LIBRARY_NAME
from longlive_trt.precision import PRECISIONS, mark_compute_type
from tests.fakes.sessions import kernel_session
from tests.fakes.streams import DecoderStream, relative
from tests.fakes.video import text_stand_in
from tests.shared import Shared

VOCAB = 384
GRAPHS = {"step", "prompt", "vae_first", "vae_next", "text"}


@pytest.fixture(scope="module")
def exported(golden_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All graphs: an exported transformer, a VAE's weights, and a stand-in for the encoder."""
    folder = tmp_path_factory.mktemp("export") / "all"
    shutil.copytree(golden_export, folder)
    record = read_export(golden_export)
    dim = record.config.transformer.text_dim
    text = TextEncoderConfig(
        vocab=VOCAB, dim=dim, attention_dim=dim, ffn_dim=dim, heads=2, layers=1
    )
    config = replace(record.config, vae=VaeConfig(dim=8), text_encoder=text)
    for name in ("vae_first", "vae_next"):
        ir.save(
            _decoder_weights(config, name), folder / f"{name}.onnx", external_data="vae.weights"
        )
    model = ir.from_proto(onnx.shape_inference.infer_shapes(text_stand_in(config, VOCAB)))
    mark_compute_type(model, ir.DataType.FLOAT)
    ir.save(model, folder / "text.onnx")
    write_demo_tokenizer(folder, VOCAB)
    _write_record(folder, replace(record, config=config))
    return folder


def _decoder_weights(config: ModelConfig, graph_name: str) -> ir.Model:
    """As much of an exported decoder as is read here."""
    torch.manual_seed(3)
    assert config.video_size is not None
    frames = 1 if graph_name == "vae_first" else "4*latent_frames"
    latents = _value("latents", ["batch", "latent_frames", *config.latent_shape])
    pixels = _value("pixels", ["batch", frames, *config.video_size, 3])
    graph = ir.Graph([latents], [pixels], nodes=[], name=graph_name, opset_imports={"": 22})
    for name, value in VaeDecoder(config.vae).state_dict().items():
        tensor = ir.tensor(value.numpy(), name=f"vae.{name}")
        graph.initializers[tensor.name] = ir.Value(name=tensor.name, const_value=tensor)
    return ir.Model(graph, ir_version=10)


def _value(name: str, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def _write_record(folder: Path, record: ExportRecord) -> None:
    paths = [path for path in sorted(folder.iterdir()) if path.name != RECORD_NAME]
    graphs = {p.stem: graph_info(ir.load(p)) for p in paths if p.suffix == ".onnx"}
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    (folder / RECORD_NAME).write_text(replace(record, graphs=graphs, files=files).to_json())


def built(
    exported: Path, out: Path, precision: str = "fp16", *, force: bool = False, **options: Any
) -> BuildResult:
    wanted = BuildOptions(**{"gpu": "sm90", **options})
    return build(exported, out, precision, options=wanted, force=force)


@pytest.fixture(scope="module")
def bundle(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("built") / "bundle"
    built(exported, out, batch=2)
    return open_bundle(out)


# ---- what a bundle says ----------------------------------------------------------------------


def test_a_manifest_names_the_gpu_and_the_kernels(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert (manifest.engine.kind, manifest.engine.target) == ("onnxruntime", "sm90")
    assert manifest.engine.version == ort.__version__
    assert manifest.precision == "fp16"
    kernels = ["step", "prompt", "vae_first", "vae_next"]
    assert manifest.options == {
        "batch": 2,
        "kernel_graphs": kernels,
        "graphs_version": 6,
        "attention": "fp16",
        "compute": "fp16",
    }
    assert manifest.plugins == {
        name: hashlib.sha256((SOURCE_DIR / name).read_bytes()).hexdigest()
        for name in manifest.plugins
    }
    assert manifest.plugins.keys() == {
        *("attention/attention_sm90.cu", "attention/attention_loop.cuh"),
        "attention/attention_halves.cuh",
        *("attention/attention_tile.cuh", "attention/hopper.cuh", "attention/schedule.cuh"),
        *("attention/wgmma.cuh", "bridge/onnxruntime_bridge.c", "rows/hadamard.cuh"),
        *("common/async_copy.cuh", "common/basics.cuh", "common/vectors.cuh"),
        *("rows/layer_norm.cu", "rows/layer_norm.cuh", "rows/qkv_norm_rope.cu"),
        *("rows/residual_norm.cu", "rows/rms.cuh", "rows/rms_norm.cu", "rows/rope.cuh"),
        *("rows/rows.cuh", "rows/value_tile.cuh"),
        *("vae/activation.cuh", "vae/pictures.cuh", "vae/pixel.cuh"),
        *("common/mma.cuh", "vae/spread.cuh"),
        *("vae/vae_frames.cu", "vae/vae_head.cu", "vae/vae_pixels.cu", "vae/vae_stack.cu"),
        *("vae/vae_sum.cu", "vae/vae_zeros.cu"),
    }


def test_a_bundle_is_whole(bundle: Bundle) -> None:
    assert bundle.manifest.graphs.keys() == GRAPHS
    found = {path.name for path in bundle.folder.iterdir()} - {"manifest.json"}
    assert found == bundle.manifest.files.keys()
    assert found >= {f"{graph}.onnx" for graph in GRAPHS} | {LIBRARY_NAME, "tokenizer.json"}


def test_tensors_are_in_the_types_that_kernels_take(bundle: Bundle) -> None:
    def dtypes(graph: str) -> dict[str, str]:
        info = bundle.manifest.graphs[graph]
        return {tensor.name: tensor.dtype for tensor in (*info.inputs, *info.outputs)}

    step = dtypes("step")
    assert {step[name] for name in ("latents", "noise", "k_cache.0", "v_new.1")} == {"float16"}
    assert {step[name] for name in ("timestep", "sigma", "sigma_next")} == {"float"}
    assert dtypes("prompt")["context_k.0"] == "float16"
    for graph in ("vae_first", "vae_next"):
        assert dtypes(graph)["pixels"] == "uint8"
        assert dtypes(graph)["latents"] == "float16"
    # The encoder was trained in it, and half precision may overflow there.
    assert dtypes("text")["text_states"] == "bfloat16"


def test_the_decoder_is_for_so_many_videos(bundle: Bundle) -> None:
    """Its kernels take no batch that is chosen later."""
    for graph in ("vae_first", "vae_next"):
        info = bundle.manifest.graphs[graph]
        assert {tensor.shape[0] for tensor in (*info.inputs, *info.outputs)} == {2}
    assert {tensor.shape[0] for tensor in bundle.manifest.graphs["prompt"].inputs} == {"batch"}


def test_the_graphs_load_with_the_library_beside_them(bundle: Bundle) -> None:
    for graph in bundle.manifest.options["kernel_graphs"]:
        library = bundle.folder / LIBRARY_NAME
        session = kernel_session(bundle.folder / f"{graph}.onnx", library)
        names = {tensor.name for tensor in bundle.manifest.graphs[graph].inputs}
        assert {value.name for value in session.get_inputs()} == names


def test_bfloat16(exported: Path, tmp_path: Path) -> None:
    """The decoder computes in half precision all the same, and takes the latents as they are."""
    manifest = built(exported, tmp_path / "out", "bf16").manifest
    assert manifest.precision == "bf16"
    types = {
        graph: {tensor.name: tensor.dtype for tensor in info.inputs}
        for graph, info in manifest.graphs.items()
    }
    assert types["step"]["k_cache.0"] == types["vae_next"]["latents"] == "bfloat16"
    assert types["vae_next"]["cache.0"] == "float16"


def test_only_what_was_exported_is_built(golden_export: Path, tmp_path: Path) -> None:
    manifest = built(golden_export, tmp_path / "out").manifest
    assert manifest.graphs.keys() == {"step", "prompt"}
    assert not any(name.startswith("vae") for name in manifest.files)


# ---- what makes another bundle ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["sm90", "sm_90", "sm_90a", "sm90a"])
def test_a_gpu_has_several_names(golden_export: Path, tmp_path: Path, name: str) -> None:
    first = built(golden_export, tmp_path / "out").manifest
    again = built(golden_export, tmp_path / "out", gpu=name)
    assert again.was_current
    assert (again.manifest.engine.target, again.manifest.key) == ("sm90", first.key)


@pytest.mark.parametrize(
    ("precision", "options"), [("fp16", {"batch": 2}), ("fp16", {"gpu": "sm80"}), ("bf16", {})]
)
def test_other_choices_make_another_bundle(
    golden_export: Path, tmp_path: Path, precision: str, options: dict[str, Any]
) -> None:
    first = built(golden_export, tmp_path / "out")
    other = built(golden_export, tmp_path / "out", precision, **options)
    assert not other.was_current
    assert other.manifest.key != first.manifest.key


@pytest.mark.parametrize(
    ("changed", "decides"),
    [
        ("rows/rms_norm.cu", True),
        ("common/basics.cuh", True),
        ("attention/wgmma.cuh", True),
        ("bridge/onnxruntime_bridge.c", True),
        ("attention/attention_sm80.cu", False),
        ("attention/attention_plugin_sm90.cu", False),
        ("rows/narrow_heads.cu", False),
        ("vae/vae_stack.cu", False),
    ],
)
def test_the_kernels_of_its_graphs_decide_a_bundle(
    golden_export: Path,
    changed: str,
    decides: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A transformer alone, in 16 bits, for Hopper."""

    def plugins() -> dict[str, str]:
        compiler = OnnxRuntimeGpuCompiler(BuildOptions(gpu="sm90"), PRECISIONS["fp16"])
        compiler.check(read_export(golden_export))
        return dict(compiler.plugins)

    first = plugins()
    assert (changed in first) == decides
    sources = tmp_path / "csrc"
    shutil.copytree(SOURCE_DIR, sources)
    (sources / changed).write_text((sources / changed).read_text() + "\n// changed\n")
    for module in (onnxruntime_gpu, compilation):
        monkeypatch.setattr(module, "SOURCE_DIR", sources)
    assert (plugins() != first) == decides


def test_a_quantized_decoder_has_kernels_of_its_own(exported: Path) -> None:
    record = read_export(exported)
    plugins = []
    for quantization in (
        Quantization("fp8", "fp8", ""),
        Quantization("fp8", "fp8", "", vae="int8"),
    ):
        compiler = OnnxRuntimeGpuCompiler(BuildOptions(gpu="sm90"), PRECISIONS["fp16"])
        compiler.check(replace(record, quantization=quantization))
        plugins.append(compiler.plugins.keys())
    assert plugins[1] - plugins[0] == {"vae/vae_conv.cu", "vae/vae_quantize.cu"}


def test_other_kernels_make_another_bundle(
    golden_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = built(golden_export, tmp_path / "out")
    monkeypatch.setattr(OnnxRuntimeGpuCompiler, "plugins", {"rows/rms_norm.cu": "another"})
    other = built(golden_export, tmp_path / "out")
    assert not other.was_current
    assert other.manifest.key != first.manifest.key


def test_a_bundle_for_cpus_is_another(golden_export: Path, tmp_path: Path) -> None:
    gpu = built(golden_export, tmp_path / "out").manifest
    cpu = build(golden_export, tmp_path / "out", "fp16").manifest
    assert cpu.engine.target == "cpu"
    assert cpu.key != gpu.key
    assert not cpu.plugins


# ---- what is refused -------------------------------------------------------------------------


def refused(kind: type[LongLiveError], match: str, work: Callable[[], object], out: Path) -> None:
    with pytest.raises(kind, match=match):
        work()
    assert not out.exists()


def test_single_precision_is_refused(exported: Path, tmp_path: Path) -> None:
    match = "--gpu needs --precision fp16 or bf16.*build without --gpu and generate with --device"
    out = tmp_path / "out"
    refused(UsageError, match, lambda: built(exported, out, "fp32"), out)


@pytest.mark.parametrize("name", ["sm75", "90", "rtx4090", "sm", "", "compute_90"])
def test_unknown_gpus_are_refused(exported: Path, tmp_path: Path, name: str) -> None:
    match = rf"--gpu {name}: allowed with --engine onnxruntime: sm80, .*sm90, sm100"
    out = tmp_path / "out"
    refused(UsageError, match, lambda: built(exported, out, gpu=name), out)


@pytest.mark.parametrize(
    ("option", "value", "flag"),
    [("strip", True, "--strip"), ("workspace_bytes", 1 << 30, "--workspace-gib")],
)
def test_options_of_other_compilers_are_refused(
    exported: Path, tmp_path: Path, option: str, value: Any, flag: str
) -> None:
    match, out = f"{flag} does not apply to --engine onnxruntime", tmp_path / "out"
    refused(UsageError, match, lambda: built(exported, out, **{option: value}), out)


def test_without_a_compiler_nothing_is_begun(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_bridge.shutil, "which", lambda _name: None)
    monkeypatch.setenv("LONGLIVE_TRT_KERNEL_CACHE", str(tmp_path / "cache"))
    onnxruntime_bridge.compiled_library.cache_clear()
    out = tmp_path / "out"
    refused(PluginError, "no C compiler was found", lambda: built(exported, out), out)
    onnxruntime_bridge.compiled_library.cache_clear()


# ---- the command line ------------------------------------------------------------------------


def test_the_command(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["build", "--onnx", str(exported), "--precision", "fp16", "--out", str(out)]
    assert main([*arguments, "--gpu", "sm75"]) == UsageError.exit_code
    assert "error: --gpu sm75: allowed" in capsys.readouterr().err
    assert main([*arguments, "--gpu", "sm90"]) == 0
    assert json.loads((out / "manifest.json").read_text())["engine"]["target"] == "sm90"
    given = ["generate", "--bundle", str(out), "--prompt", "a", "--out", str(tmp_path / "v.mp4")]
    assert main([*given, "--device", "cpu"]) == 1
    assert "engines for sm90 do not run on a CPU" in capsys.readouterr().err


def test_a_tiny_decoder_is_the_exported_one(shared: Shared, tmp_path: Path) -> None:
    """Its latents come in the transformer's type."""
    exported = shared("tiny-decoder-export")
    manifest = built(exported, tmp_path / "b", "bf16").manifest
    assert manifest.precision == "bf16"
    assert manifest.plugins.keys() == {
        *("common/basics.cuh", "common/mma.cuh", "common/vectors.cuh", onnxruntime_bridge.SOURCE),
        *("vae/activation.cuh", "vae/pictures.cuh", "vae/pixel.cuh", "vae/spread.cuh"),
        *("vae/vae_colors.cu", "vae/vae_stack.cu"),
    }
    types = {
        tensor.name: tensor.dtype
        for graph in manifest.graphs.values()
        for tensor in (*graph.inputs, *graph.outputs)
    }
    assert (types["latents"], types["cache.0"]) == ("bfloat16", "float16")
    assert (types["frames"], types["pixels"]) == ("float", "uint8")
    assert built(exported, tmp_path / "b", "fp16", force=True).manifest.precision == "fp16"
    latents = 1.5 * np.random.default_rng(1).standard_normal((1, 4, 16, 3, 5))
    half = latents.astype(np.float16)
    found, expected = (
        [np.concatenate(group, axis=1) for group in zip(*stream, strict=True)]
        for stream in (
            DecoderStream(tmp_path / "b").decode_all(half, [1, 3]),
            DecoderStream(exported).decode_all(half.astype(np.float32), [1, 3]),
        )
    )
    assert relative(found[0], expected[0]) <= 5e-3
    assert np.abs(found[1].astype(int) - expected[1]).max() <= 1


def test_decoders_that_kernels_do_not_take_run_as_they_were_exported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In fp16, of latents in the transformer's type; which one and why is said once."""
    exported, out = tmp_path / "exported", tmp_path / "b"
    exported.mkdir()
    assemble(exported)
    manifest = built(exported, out, "bf16").manifest
    told = [line for line in caplog.messages if "runs as it was exported, in fp16" in line]
    assert len(told) == 2
    assert "its residual blocks see 1 latent frame at a time" in told[0]
    assert set(manifest.options["kernel_graphs"]) == {"step", "prompt"}
    assert not any("vae" in source for source in manifest.plugins)
    types = {
        tensor.name: tensor.dtype
        for graph in ("vae_first", "vae_next")
        for tensor in (*manifest.graphs[graph].inputs, *manifest.graphs[graph].outputs)
    }
    assert (types["latents"], types["cache.0"]) == ("bfloat16", "float16")
    assert (types["frames"], types["pixels"]) == ("float", "uint8")
    built(exported, out, "fp16", force=True)
    latents = np.random.default_rng(1).standard_normal((1, 4, 16, 24, 40)).astype(np.float16)
    found, expected = (
        np.concatenate([frames for frames, _ in DecoderStream(folder).decode_all(given, [1, 3])], 1)
        for folder, given in ((out, latents), (exported, latents.astype(np.float32)))
    )
    assert relative(found, expected) <= 5e-3


def test_graphs_that_an_older_version_wrote_are_not_taken(
    shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the bundle nor, for one that is built beside it, its decoder."""
    components = []
    for version in (onnxruntime_gpu._GRAPHS_VERSION - 1, onnxruntime_gpu._GRAPHS_VERSION):
        monkeypatch.setattr(onnxruntime_gpu, "_GRAPHS_VERSION", version)
        result = built(shared("tiny-decoder-export"), tmp_path / "b", "fp16")
        assert not result.was_current
        components.append(result.manifest.components)
    assert components[0]["vae"] != components[1]["vae"]
