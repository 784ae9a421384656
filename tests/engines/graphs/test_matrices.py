"""The GPU's graphs with the transformer's matrices as inputs, run on a CPU."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from longlive_trt.basics import unheard
from longlive_trt.contract import CONTEXT_TOKENS, STEP, TRANSFORMER, weight_prefix
from longlive_trt.dtypes import name_of
from longlive_trt.engines.compiler import BuildOptions, GraphSource, require_exchangeable
from longlive_trt.engines.graphs.step import build_step_graphs
from longlive_trt.engines.matrices import MatricesFile, SeparateMatrices, is_adapted
from longlive_trt.engines.ort.gpu_compiler import OnnxRuntimeGpuCompiler
from longlive_trt.errors import UsageError
from longlive_trt.exports import Quantization, load_graph, read_export
from longlive_trt.precision import PRECISIONS
from tests.engines.graphs.test_step import inputs, run
from tests.fakes.sessions import kernel_session

PREFIX = weight_prefix(TRANSFORMER)


@pytest.mark.parametrize("graph", [pytest.param("step", marks=pytest.mark.exhaustive), "prompt"])
def test_the_bits_are_those_of_graphs_that_hold_them(
    golden_export: Path, tmp_path: Path, graph: str
) -> None:
    config, half = read_export(golden_export).config, PRECISIONS["fp16"]
    for name in ("whole", "apart"):
        (tmp_path / name).mkdir()
    assert not any(build_step_graphs(config, golden_export, half, tmp_path / "whole").values())
    layouts = build_step_graphs(
        config, golden_export, half, tmp_path / "apart", is_separate=is_adapted
    )
    matrices = SeparateMatrices()
    for name, layout in layouts.items():
        path = golden_export / f"{name}.onnx"
        matrices.collect(load_graph(path), path)
        matrices.lay_out(name, layout)
    matrices.write(tmp_path)
    file = MatricesFile.open(tmp_path)
    assert len(file.shapes) == 10 * config.transformer.layers
    whole = kernel_session(tmp_path / "whole" / f"{graph}.onnx")
    apart = kernel_session(tmp_path / "apart" / f"{graph}.onnx")
    feed = inputs(whole, 5, 3)
    supplied = {
        name: np.concatenate([file.read(module) for module in parts], axis=1).astype(np.float16)
        for name, parts in file.layouts[graph].items()
    }
    # q, k and v joined; o; q and o to the prompt; two of the network. Of the prompt, k and v.
    assert len(supplied) == (6 if graph == "step" else 2) * config.transformer.layers
    expected, found = run(whole, feed), run(apart, {**feed, **supplied})
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_the_compiler_writes_them_once_and_says_nothing_of_them(
    golden_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longlive_trt.engines.ort import gpu_compiler

    monkeypatch.setattr(gpu_compiler, "compiled_library", lambda: golden_export / "export.json")
    record = read_export(golden_export)
    compiler = OnnxRuntimeGpuCompiler(BuildOptions(gpu="sm90", lora_ready=True), PRECISIONS["bf16"])
    assert compiler.options["lora_ready"] is True
    for name, info in record.graphs.items():
        source = GraphSource(name, golden_export / f"{name}.onnx", info, record.config)
        compiler.compile(source, tmp_path, unheard)
        described = compiler.info(source, tmp_path)
        added = [CONTEXT_TOKENS] if name == STEP else []
        assert [t.name for t in described.inputs] == [t.name for t in info.inputs] + added
    compiler.finish(tmp_path)
    weights = ir.load(tmp_path / "step.onnx").graph.initializers
    stems = [name.removeprefix(PREFIX).removesuffix(".weight") for name in weights]
    assert stems and not any(map(is_adapted, stems))
    assert MatricesFile.open(tmp_path).shapes["blocks.0.ffn.0.weight"] == (512, 256)
    assert name_of(MatricesFile.open(tmp_path).read("blocks.0.ffn.0").dtype) == "float32"


def test_other_kinds_of_engines_refuse_the_option() -> None:
    with pytest.raises(UsageError, match="--lora-ready does not apply to --engine tensorrt-rtx"):
        BuildOptions(lora_ready=True).refuse_others("tensorrt-rtx", ("gpu", "batch"))


def test_eight_bits_are_refused_with_the_reason(golden_export: Path) -> None:
    record = replace(read_export(golden_export), quantization=Quantization("fp8", "max", "0" * 64))
    with pytest.raises(UsageError, match=r"--lora-ready: the graphs are quantized \(fp8\), with"):
        require_exchangeable(BuildOptions(lora_ready=True), record)
    require_exchangeable(BuildOptions(), record)
