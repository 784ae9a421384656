"""The comparison of two sets of engines: it passes what is the same, and finds what is not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from longlive_trt.basics import Array
from longlive_trt.configs import VaeConfig
from longlive_trt.configs.replay import Switch
from longlive_trt.engines.base import TensorSpec
from longlive_trt.engines.build import build
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.graphs.step import build_step_graphs
from longlive_trt.errors import UsageError
from longlive_trt.exports import GraphInfo, TensorInfo
from longlive_trt.precision import PRECISIONS
from longlive_trt.runtime import assembly
from longlive_trt.runtime.verify import (
    BlockError,
    Comparison,
    GraphError,
    compare,
    default_tolerance,
    generated_replay,
    open_reference,
    psnr_db,
    relative_error,
)
from tests.fakes.sessions import KernelEngine


def with_one_weight_changed(bundle: Bundle, folder: Path, graph: str, factor: float) -> Bundle:
    """The same graphs but for one weight matrix; not checked, as its manifest is of the other."""
    folder.mkdir()
    for path in bundle.folder.iterdir():
        (folder / path.name).symlink_to(path)
    model = onnx.load(bundle.folder / f"{graph}.onnx")
    largest = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    values = numpy_helper.to_array(largest) * np.float32(factor)
    largest.CopyFrom(numpy_helper.from_array(values, largest.name))
    (folder / f"{graph}.onnx").unlink()
    onnx.save(model, folder / f"{graph}.onnx")
    return Bundle(folder, bundle.manifest)


@pytest.fixture
def mini(mini_bundle: Callable[[str], Path]) -> Bundle:
    return open_bundle(mini_bundle("relative"))


@pytest.fixture
def mini_export(mini: Bundle) -> Path:
    """What the bundle was built from, which the fixture leaves beside it."""
    return mini.folder.with_name("mini-relative-export")


def test_a_bundle_equals_itself(mini: Bundle) -> None:
    result = compare(mini, mini, 1e-12, None, 2)
    assert result.passed
    assert [block.latents for block in result.blocks] == [0, 0]
    # Two blocks of five passes, and a re-cache for the switch between them.
    assert {name: graph.runs for name, graph in result.graphs.items()} == {"step": 11, "prompt": 2}


def test_a_bundle_computes_what_its_export_does(mini: Bundle, mini_export: Path) -> None:
    result = compare(open_reference(mini_export), mini, default_tolerance("fp32"), None, 1)
    assert result.passed
    assert result.graphs["step"].runs == 5
    assert result.graphs["step"].error < 1e-5


def test_half_precision_passes_its_tolerance_and_fails_that_of_single(
    mini: Bundle, mini_export: Path, tmp_path: Path
) -> None:
    build(mini_export, tmp_path / "half", "fp16")
    replay = generated_replay(mini.config, [], 3, seed=5)
    result = compare(
        mini, open_bundle(tmp_path / "half"), default_tolerance("fp32", "fp16"), replay, 99
    )
    assert result.passed
    assert len(result.blocks) == 3
    errors = [graph.error for graph in result.graphs.values()]
    assert all(1e-4 < error < 5e-3 for error in errors)
    assert not replace(result, tolerance=default_tolerance("fp32")).passed


def test_graphs_that_skip_a_prompts_padding_compute_what_their_export_does(
    golden_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = open_reference(golden_export)
    build_step_graphs(reference.config, golden_export, PRECISIONS["fp32"], tmp_path)
    step = reference.manifest.graphs["step"]
    tokens = TensorInfo("context_tokens", "int64", (1, 1))
    written = GraphInfo((*step.inputs, tokens), step.outputs)
    graphs = {**reference.manifest.graphs, "step": written}
    candidate = Bundle(tmp_path, replace(reference.manifest, graphs=graphs))
    load = assembly.load_engine

    def load_engine(bundle: Bundle, graph: str, **options: Any) -> Any:
        if bundle is candidate:
            return KernelEngine(tmp_path / f"{graph}.onnx")
        return load(bundle, graph, **options)

    monkeypatch.setattr(assembly, "load_engine", load_engine)
    for pair in ((reference, candidate), (candidate, reference)):
        result = compare(*pair, default_tolerance("fp32"), None, 1)
        assert result.passed
        assert {name: graph.runs for name, graph in result.graphs.items()} == {
            "prompt": 1,
            "step": 5,
        }


@pytest.mark.parametrize("graph", ["step", "prompt"])
def test_a_changed_weight_is_found_in_its_graph(graph: str, mini: Bundle, tmp_path: Path) -> None:
    candidate = with_one_weight_changed(mini, tmp_path / "changed", graph, 1.01)
    result = compare(mini, candidate, default_tolerance("fp32"), None, 1)
    assert not result.passed
    other = {"step": "prompt", "prompt": "step"}[graph]
    # On identical inputs only the changed graph errs, although the rollouts part ways.
    assert result.graphs[graph].error > 1e-4
    assert result.graphs[other].error == 0
    assert result.blocks[0].latents > 0


def test_nan_fails(mini: Bundle, tmp_path: Path) -> None:
    candidate = with_one_weight_changed(mini, tmp_path / "changed", "step", float("nan"))
    result = compare(mini, candidate, 1e9, None, 1)
    assert not result.passed
    assert np.isnan(result.graphs["step"].error)


class FakeVae:
    """Two frames to a latent one, each the mean of its channels and of the latent before."""

    def __init__(self, gain: float) -> None:
        self.gain = gain
        size = ("batch", 1, 16, 4, 6)
        frames = TensorSpec("frames", np.dtype(np.float32), ("batch", 2, 4, 6, 3))
        self.inputs = {name: float_spec(name, size) for name in ("latents", "cache.0")}
        self.outputs = {"frames": frames, "cache_next.0": float_spec("cache_next.0", size)}

    @property
    def info(self) -> GraphInfo:
        inputs, outputs = (
            tuple(TensorInfo(spec.name, "float", spec.shape) for spec in specs.values())
            for specs in (self.inputs, self.outputs)
        )
        return GraphInfo(inputs, outputs)

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> "FakeVae.Run":
        return FakeVae.Run(self.gain, inputs, outputs)

    def close(self) -> None:
        pass

    @dataclass
    class Run:
        gain: float
        inputs: Mapping[str, Array]
        outputs: Mapping[str, Array]

        def run(self) -> None:
            latents = self.inputs["latents"].astype(np.float32)
            before = self.inputs.get("cache.0", latents).astype(np.float32)
            gray = np.tanh(self.gain * (latents + before).mean(axis=2))[..., None]
            self.outputs["frames"][...] = gray
            self.outputs["cache_next.0"][...] = latents


def float_spec(name: str, shape: tuple[int | str, ...]) -> TensorSpec:
    return TensorSpec(name, np.dtype(np.float32), shape)


@pytest.mark.parametrize("gain", [1.0, 1.001])
def test_decoded_frames_are_compared(
    gain: float, mini: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = FakeVae(gain).info
    graphs = {**mini.manifest.graphs, "vae_first": info, "vae_next": info}
    config = replace(mini.config, vae=VaeConfig())
    with_vae = Bundle(mini.folder, replace(mini.manifest, graphs=graphs, config=config))
    candidate = Bundle(tmp_path, with_vae.manifest)
    load = assembly.load_engine

    def load_engine(bundle: Bundle, graph: str, **_: Any) -> Any:
        if graph.startswith("vae"):
            return FakeVae(gain if bundle is candidate else 1.0)
        return load(mini, graph)

    monkeypatch.setattr(assembly, "load_engine", load_engine)
    monkeypatch.setattr(assembly, "require_fit", lambda *_: None)
    result = compare(with_vae, candidate, default_tolerance("fp32"), None, 2)
    assert {name: graph.runs for name, graph in result.graphs.items() if name != "step"} == {
        "prompt": 2, "vae_first": 1, "vae_next": 5,
    }  # fmt: skip
    decibels = [block.psnr_db or 0 for block in result.blocks]
    if gain == 1:
        assert result.passed
        assert decibels == [float("inf")] * 2
    else:
        assert not result.passed
        assert 60 < min(decibels) <= max(decibels) < 100
        assert result.graphs["vae_next"].error == pytest.approx(1e-3, rel=0.5)
        assert [block.latents for block in result.blocks] == [0, 0]


def test_graphs_of_another_configuration_are_refused(mini: Bundle) -> None:
    config = replace(mini.config, transformer=replace(mini.config.transformer, heads=2))
    other = Bundle(mini.folder, replace(mini.manifest, config=config))
    with pytest.raises(UsageError, match=r"of another configuration.*transformer\.heads is 2"):
        compare(mini, other, 1.0, None, 1)


def test_a_bundle_that_cannot_roll_out_is_refused(
    mini: Bundle, tmp_path: Path, fake_bundle: Callable[..., Path]
) -> None:
    with pytest.raises(UsageError, match="replaying a rollout needs the transformer"):
        compare(mini, open_bundle(fake_bundle(tmp_path / "b")), 1.0, None, 1)


def test_a_reference_is_a_bundle_or_an_export(
    mini: Bundle, mini_export: Path, tmp_path: Path
) -> None:
    assert open_reference(mini.folder).manifest == mini.manifest
    assert open_reference(mini_export).manifest.precision == "fp32"
    with pytest.raises(UsageError, match="give a bundle"):
        open_reference(tmp_path)


def test_an_altered_export_is_no_reference(mini_export: Path, tmp_path: Path) -> None:
    for path in mini_export.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "step.onnx").unlink()
    (tmp_path / "step.onnx").write_bytes(b"altered")
    with pytest.raises(UsageError, match="altered since the export"):
        open_reference(tmp_path)


def test_the_generated_rollout_is_the_same_everywhere(mini: Bundle) -> None:
    first, second = (generated_replay(mini.config, [], 4) for _ in range(2))
    assert np.array_equal(first.noise, second.noise)
    assert np.array_equal(first.renoise, second.renoise)
    assert first.noise.shape == (1, 12, 16, 4, 6)
    assert first.renoise.shape == (4, 3, 1, 3, 16, 4, 6)
    assert first.schedule == (Switch(0, 0), Switch(6, 1))
    assert not np.array_equal(first.prompts[0], first.prompts[1])


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([3.0, 4.5], [3.0, 4.0], 0.1),
        ([0.0], [0.0], 0.0),
        ([1.0], [0.0], float("inf")),
        ([float("nan")], [1.0], float("nan")),
    ],
)
def test_relative_error(found: Any, expected: Any, error: float) -> None:
    measured = relative_error(np.array(found, np.float16), np.array(expected, np.float32))
    assert measured == pytest.approx(error, nan_ok=True)


def test_psnr() -> None:
    flat = np.zeros((1, 2, 4, 4, 3), np.float32)
    assert psnr_db(flat, flat) == float("inf")
    assert psnr_db(flat + 0.02, flat) == pytest.approx(40.0)
    # What no screen can show is no error.
    assert psnr_db(flat + 7, flat + 5) == float("inf")


def test_the_worst_counts() -> None:
    graph = GraphError()
    for name, error in (("a", 0.1), ("b", 0.3), ("c", 0.2)):
        graph.add(name, error)
    assert (graph.output, graph.error) == ("b", 0.3)
    graph.add("d", float("nan"))
    assert not Comparison(1.0, {"step": graph}, ()).passed
    assert not Comparison(1.0, {}, (BlockError(float("inf"), None),)).passed


def test_unknown_precisions_get_the_widest_tolerance() -> None:
    assert default_tolerance("fp32") < default_tolerance("fp16", "fp32") < default_tolerance("fp8")
    assert default_tolerance("fp4") == default_tolerance("int8")
