"""What an export folder holds, and what is left when an export fails."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from longlive_trt.configs import ModelConfig, load_config
from longlive_trt.errors import ExportError, UsageError
from longlive_trt.export import exporter
from longlive_trt.export.check import CheckResult
from longlive_trt.export.components import Sources
from longlive_trt.export.exporter import export
from longlive_trt.exports import check_export, read_export
from longlive_trt.files import sha256_file
from longlive_trt.precision import precision_named

GRAPHS = ("step", "prompt", "vae_first", "vae_next", "text")


def graph(folder: Path, name: str) -> onnx.ModelProto:
    return onnx.load(folder / f"{name}.onnx", load_external_data=False)


def test_the_folder_is_complete(tiny_export: Path, tiny_config: ModelConfig) -> None:
    record = read_export(tiny_export)
    assert tuple(record.graphs) == GRAPHS
    names = {path.name for path in tiny_export.iterdir()}
    weights = {"transformer.weights", "vae.weights", "text_encoder.weights"}
    assert names == {f"{g}.onnx" for g in GRAPHS} | weights | {"tokenizer.json", "export.json"}
    assert set(record.files) == names - {"export.json"}
    assert all(sha256_file(tiny_export / n) == digest for n, digest in record.files.items())
    check_export(tiny_export, record)
    assert record.config == tiny_config
    assert record.checkpoints.keys() == {"transformer", "vae", "text_encoder"}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_are_standard_and_share_their_weights(tiny_export: Path, name: str) -> None:
    model = graph(tiny_export, name)
    versions = {opset.domain: opset.version for opset in model.opset_import}
    assert versions[""] == 24 and versions.keys() <= {"", "longlive"}
    assert {function.name for function in model.functions} == (
        {"SinkWindowAttention"} if name == "step" else set()
    )
    assert {node.domain for node in model.graph.node} <= {"", "longlive"}
    component = {"step": "transformer", "prompt": "transformer", "text": "text_encoder"}
    stored = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    places = {e.value for t in stored for e in t.external_data if e.key == "location"}
    assert places == {f"{component.get(name, 'vae')}.weights"}


def test_the_contract_of_the_step(tiny_export: Path) -> None:
    info = read_export(tiny_export).graphs["step"]
    shapes = {tensor.name: tensor.shape for tensor in (*info.inputs, *info.outputs)}
    frame = ("batch", "frames", 16, 16, 24)
    for name in ("latents", "noise", "latents_next"):
        assert shapes[name] == frame
    for name in ("timestep", "sigma", "sigma_next", "sink_frames", "window_frames"):
        assert shapes[name] == (1,)
    assert (shapes["frame_index"], shapes["cache_index"]) == (("frames",), ("cache_frames",))
    for layer in range(2):
        for part in "kv":
            assert shapes[f"{part}_cache.{layer}"] == ("batch", "96*cache_frames", 2, 128)
            assert shapes[f"{part}_new.{layer}"] == ("batch", "96*frames", 2, 128)
            assert shapes[f"context_{part}.{layer}"] == ("batch", 64, 2, 128)
    assert len(shapes) == 10 + 2 * 6


def small() -> Any:
    return load_config(
        "tiny",
        overrides=[
            "vae=null", "text_encoder=null", "transformer.layers=1", "transformer.dim=24",
            "transformer.ffn_dim=8", "transformer.freq_dim=8", "latent.height=2", "latent.width=2",
        ],
    )  # fmt: skip


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Exports the prompt graph alone."""
    whole: Callable[..., Any] = exporter.components

    def prompt_only(*arguments: Any, **options: Any) -> list[Any]:
        from dataclasses import replace

        (part,) = whole(*arguments, **options)
        return [replace(part, graphs=part.graphs[1:])]

    monkeypatch.setattr(exporter, "components", prompt_only)
    return []


def test_a_failed_check_leaves_what_was_there(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, sources = tmp_path / "onnx", Sources(random_seed=1)
    export(small(), sources, out, precision_named("fp32"))
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def failing(*_: object) -> CheckResult:
        raise ExportError("differs")

    monkeypatch.setattr(exporter, "check_graph", failing)
    with pytest.raises(ExportError, match="differs"):
        export(small(), Sources(random_seed=2), out, precision_named("fp32"))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]
    result = export(small(), Sources(random_seed=2), out, precision_named("fp32"), check=False)
    assert result.checks == ()
    assert (out / "transformer.weights").read_bytes() != before["transformer.weights"]


def test_the_check_finds_a_wrong_graph(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longlive_trt.export import weights_file

    stored = weights_file._stored

    def slightly_wrong(name: str, tensor: Any, *rest: Any) -> Any:
        return stored(name, tensor * (1.0001 if name.endswith("k.weight") else 1), *rest)

    monkeypatch.setattr(weights_file, "_stored", slightly_wrong)
    with pytest.raises(ExportError, match="graph prompt differs from torch"):
        export(small(), Sources(random_seed=1), tmp_path / "onnx", precision_named("fp32"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_are_stored_in_the_precision_asked_for(
    quick: list[str], tmp_path: Path, precision: str
) -> None:
    out = tmp_path / "onnx"
    result = export(small(), Sources(random_seed=1), out, precision_named(precision))
    assert [check.graph for check in result.checks] == ["prompt"]
    codes = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
    model = graph(out, "prompt")
    assert {t.data_type for t in model.graph.initializer if t.external_data} == {codes[precision]}
    assert json.loads((out / "export.json").read_text())["precision"] == precision


def test_weights_beyond_half_precision_are_named(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longlive_trt.export.checkpoints.random import RandomWeights

    load = RandomWeights.load
    monkeypatch.setattr(RandomWeights, "load", lambda self, name: load(self, name) * 1e6)
    with pytest.raises(ExportError, match=r"text_embedding\.0\.weight .* range of fp16"):
        export(small(), Sources(random_seed=1), tmp_path / "onnx", precision_named("fp16"))
    assert not list(tmp_path.iterdir())


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("")
    with pytest.raises(UsageError, match="not empty and not an export"):
        export(small(), Sources(random_seed=1), tmp_path, precision_named("fp32"))
