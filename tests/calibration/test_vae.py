"""The VAE's convolutions in FP8 and INT8: ranges of real rollouts, and graphs that mean them."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from longlive_trt.calibration import calibrator
from longlive_trt.calibration.calibration_file import (
    Calibration,
    load_calibration,
    save_calibration,
)
from longlive_trt.calibration.calibrator import CalibrationRequest, calibrate
from longlive_trt.calibration.folders import SourceExport, begin_tracing, write_quantized
from longlive_trt.calibration.layers import quantized
from longlive_trt.calibration.prompts import shipped_prompts
from longlive_trt.calibration.quantization import rounded
from longlive_trt.calibration.recipes import FP8, INT8, RECIPES, VAE_EXCLUDED, Extras, Format
from longlive_trt.calibration.texts import SyntheticTexts
from longlive_trt.calibration.vae.decoder import (
    VaeWatcher,
    convolutions,
    load_quantized_vae,
    load_vae,
    quantized_vae_component,
    select_convolutions,
)
from longlive_trt.calibration.vae.layers import QuantizedCausalConv, quantized_conv
from longlive_trt.cli import main
from longlive_trt.configs import ModelConfig, VaeConfig
from longlive_trt.configs.loader import configure
from longlive_trt.engines.build import build
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.engines.loader import load_engine
from longlive_trt.errors import CheckpointError, ExportError, UsageError
from longlive_trt.export import tracers
from longlive_trt.export.check import check_graph
from longlive_trt.export.components import Component, Sources, vae_specs
from longlive_trt.export.exporter import export
from longlive_trt.export.models.vae_layers import CausalConv, Histories
from longlive_trt.export.tracers import Tracers
from longlive_trt.export.tracing import GraphSpec
from longlive_trt.exports import read_export
from longlive_trt.precision import PRECISIONS
from tests.fakes.decoders import StateWeights, seeded_decoder

MakeOnce = Callable[[str, Callable[[Path], object]], Path]
Text = pytest.CaptureFixture[str]
CONFIG = {
    "name": "calibrated-vae",
    "transformer": {
        "dim": 32,
        "heads": 1,
        "layers": 1,
        "ffn_dim": 32,
        "freq_dim": 16,
        "text_len": 4,
        "text_dim": 8,
    },
    "latent": {"height": 4, "width": 4},
    "vae": {"dim": 16, "multipliers": [1, 2], "res_blocks": 1, "temporal_upsample": [True]},
}
FORMATS = {"fp8": FP8, "int8": INT8}
NARROW = {"fp8": ir.DataType.FLOAT8E4M3FN, "int8": ir.DataType.INT8}
PROMPTS = tuple(shipped_prompts()[:2])


@pytest.fixture(scope="session")
def vae_config() -> ModelConfig:
    return configure(CONFIG, origin="test_vae")


@pytest.fixture(scope="session")
def vae_export(make_once: MakeOnce, vae_config: ModelConfig) -> Path:
    def make(path: Path) -> None:
        export(
            vae_config, Sources(random_seed=4, encoder=False), path, PRECISIONS["fp16"], check=False
        )

    return make_once("calibration-vae-export", make)


@pytest.fixture(scope="session")
def vae_calibration(vae_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return calibrated(vae_export, tmp_path_factory.mktemp("vae") / "progress")


def calibrated(source: Path, progress: Path, **changes: object) -> Calibration:
    opened = SourceExport.open(source)
    request = replace(CalibrationRequest(RECIPES["fp8"], PROMPTS, blocks=2), **changes)  # type: ignore[arg-type]
    texts = SyntheticTexts(opened.config)
    return calibrate(
        opened.config, opened.transformer(), request, texts, progress, vae=opened.vae()
    )


@pytest.fixture(scope="session")
def narrow_vae_export(
    make_once: MakeOnce, vae_export: Path, vae_calibration: Calibration
) -> Callable[[str], Path]:
    def exported(name: str) -> Path:
        def make(path: Path) -> None:
            source, extras = SourceExport.open(vae_export), Extras(vae=FORMATS[name])
            result = write_quantized(source, vae_calibration, path, extras=extras)
            checked = {check.graph: check.error for check in result.checks}
            assert checked.keys() == {"step", "prompt", "vae_first", "vae_next"}
            assert None not in checked.values()

        return make_once(f"calibration-vae-{name}", make)

    return exported


@pytest.mark.exhaustive
def test_ranges_are_the_largest_that_a_stream_meets(
    vae_export: Path, vae_config: ModelConfig, tmp_path: Path
) -> None:
    """Plain hooks on the decoding of a whole video at once, whose histories are its own frames."""
    source = SourceExport.open(vae_export)
    made: list[Tensor] = []

    class Recorder(VaeWatcher):
        def watch(self, latents: Tensor, what: str) -> dict[str, Tensor]:
            made.append(latents)
            return super().watch(latents, what)

    assert vae_config.vae is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrator, "VaeWatcher", Recorder)
        again = calibrated(vae_export, tmp_path / "progress")
    vae, largest = load_vae(vae_config.vae, source.vae(), "fp32", "cpu"), dict[str, float]()

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            largest[name] = max(largest.get(name, 0.0), float(inputs[0].abs().amax()))

        return keep

    for name in convolutions(vae_config.vae):
        vae.get_submodule(name).register_forward_pre_hook(hook(name))
    (latents,) = made
    with torch.no_grad():
        vae.decode(latents)
    assert again.vae is not None
    found = {name: float(r.input_amax) for name, r in again.vae.layers.items()}
    assert found == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize("format_", [FP8, INT8])
def test_a_convolution_computes_with_rounded_numbers(format_: Format) -> None:
    generator = torch.Generator().manual_seed(0)
    plain = CausalConv(4, 6)
    quantized = quantized_conv(plain, format_)
    assert isinstance(quantized, QuantizedCausalConv)
    weight = torch.randn(plain.weight.shape, generator=generator)
    frames = torch.randn(1, 4, 3, 5, 5, generator=generator)
    many = format_ is INT8
    scale = torch.full((6,), 2.0**-5) if many else torch.tensor(2.0**-7)
    per_weight = scale.reshape(-1, 1, 1, 1, 1) if many else scale
    quantized.weight.data = (weight / per_weight).round().clamp(-127, 127).to(format_.dtype)
    quantized.weight_scale.data, quantized.input_scale.data = scale, torch.tensor(2.0**-5)
    quantized.bias.data = torch.arange(6.0)
    plain.weight.data = quantized.weight.data.float() * per_weight
    plain.bias.data = torch.arange(6.0)
    with torch.no_grad():
        expected = plain(rounded(frames, torch.tensor(2.0**-5), format_), Histories(None))
        histories = Histories(None)
        torch.testing.assert_close(quantized(frames, histories), expected)
    # What is kept for later frames is not rounded.
    torch.testing.assert_close(histories.renewed[0], frames[:, :, -2:])


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["fp8", "int8"])
def test_graphs_hold_narrow_convolutions(
    narrow_vae_export: Callable[[str], Path],
    vae_export: Path,
    vae_config: ModelConfig,
    name: str,
) -> None:
    assert vae_config.vae is not None
    chosen = select_convolutions(vae_config.vae, VAE_EXCLUDED)
    assert len(chosen) == 2 * (2 + 2 * 2)
    for graph in ("vae_first", "vae_next"):
        model = ir.load(narrow_vae_export(name) / f"{graph}.onnx")
        counts = Counter(node.op_type for node in model.graph)
        assert counts["QuantizeLinear"] == len(chosen)
        assert counts["DequantizeLinear"] == 2 * len(chosen)
        weights = {v.name: v for v in model.graph.initializers.values() if v.dtype == NARROW[name]}
        assert weights.keys() == {f"vae.{layer}.weight" for layer in chosen}
        for value in weights.values():
            (use,) = value.uses()
            assert use.node.outputs[0].uses()[0].node.op_type == "Conv"
    quantized, plain = (
        (folder / "vae.weights").stat().st_size for folder in (narrow_vae_export(name), vae_export)
    )
    assert quantized < 0.75 * plain
    record = read_export(narrow_vae_export(name))
    assert record.quantization is not None
    assert record.quantization.vae == name
    assert record.checkpoints == read_export(vae_export).checkpoints


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["fp8", "int8"])
def test_a_bundle_decodes_what_torch_simulates(
    narrow_vae_export: Callable[[str], Path],
    vae_export: Path,
    vae_config: ModelConfig,
    vae_calibration: Calibration,
    tmp_path: Path,
    name: str,
) -> None:
    build(narrow_vae_export(name), tmp_path / "bundle", "fp32")
    latents = torch.randn(
        (1, 1, *vae_config.latent_shape), generator=torch.Generator().manual_seed(2)
    )
    with load_engine(open_bundle(tmp_path / "bundle"), "vae_first") as engine:
        outputs = {n: np.empty(s.sized(batch=1), s.dtype) for n, s in engine.outputs.items()}
        engine.bind({"latents": latents.numpy()}, outputs).run()
    assert vae_config.vae is not None
    assert vae_calibration.vae is not None
    stored, ranges = SourceExport.open(vae_export).vae(), vae_calibration.vae
    quantized = load_quantized_vae(vae_config.vae, stored, ranges, FORMATS[name], VAE_EXCLUDED)
    plain = load_vae(vae_config.vae, stored, "fp32", "cpu")
    with torch.no_grad():
        expected, exact = (v.decode_first(latents)[0].clamp(-1, 1) for v in (quantized, plain))
    found = torch.from_numpy(outputs["frames"])
    size = expected.norm()
    assert (found - expected).norm() / size < 1e-2
    assert (found - exact).norm() > 2 * (found - expected).norm()


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "compute", "gpu"), [("fp8", "fp16", "sm89"), ("int8", "bf16", "sm120")]
)
def test_tensorrt_convolves_in_the_narrow_type(
    narrow_vae_export: Callable[[str], Path], tmp_path: Path, name: str, compute: str, gpu: str
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs tensorrt-rtx")
    options = BuildOptions(gpu=gpu, allow_decomposed_attention=True)
    build(narrow_vae_export(name), tmp_path / "b", compute, "tensorrt-rtx", options=options)
    report = json.loads((tmp_path / "b" / "report.json").read_text())
    for graph in report["graphs"]:
        if not graph["graph"].startswith("vae"):
            continue
        kinds = Counter(
            layer["precision"] for layer in graph["layers"] if layer["category"] == "convolution"
        )
        assert kinds[{"fp8": "FP8", "int8": "Int8"}[name]] == 12


@pytest.mark.exhaustive
def test_ranges_are_kept_and_do_not_fit_another_checkpoint(
    vae_export: Path, vae_config: ModelConfig, vae_calibration: Calibration, tmp_path: Path
) -> None:
    path = tmp_path / "scales.safetensors"
    save_calibration(vae_calibration, path)
    found = load_calibration(path)
    assert found.to_bytes() == vae_calibration.to_bytes()
    assert found.vae is not None
    source = SourceExport.open(vae_export)
    other = replace(found, vae=replace(found.vae, checkpoint="0" * 64))
    with pytest.raises(UsageError, match="ranges of the VAE are of another checkpoint"):
        write_quantized(source, other, tmp_path / "out", extras=Extras(vae=FP8))
    with pytest.raises(UsageError, match="no ranges of the VAE; calibrate again with --vae-prec"):
        write_quantized(source, replace(found, vae=None), tmp_path / "out", extras=Extras(vae=FP8))
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@pytest.mark.exhaustive
def test_what_is_not_finite_is_named(vae_config: ModelConfig, vae_export: Path) -> None:
    assert vae_config.vae is not None
    watcher = VaeWatcher(vae_config.vae, SourceExport.open(vae_export).vae(), "fp32", "cpu")
    latents = torch.zeros(1, 2, *vae_config.latent_shape)
    latents[0, 1] = float("inf")
    with pytest.raises(CheckpointError, match="reached the VAE's conv2 while a test was decoded"):
        watcher.watch(latents, "a test")


@torch.no_grad()
def test_a_decoder_that_takes_frame_by_frame_is_watched_whole() -> None:
    """Its doublings use a layer's weights without the layer, which no range can be seen of."""
    vae = VaeConfig(
        dim=16, multipliers=(1, 2), temporal_upsample=(True,), res_blocks=1, temporal_taps=1
    )
    weights = StateWeights(seeded_decoder(vae))
    watcher = VaeWatcher(vae, weights, "fp32", "cpu")
    latents = torch.randn(1, 3, vae.channels, 4, 4, generator=torch.Generator().manual_seed(1))
    ranges = watcher.ranges(watcher.watch(latents, "a test"))
    assert set(ranges.layers) == set(convolutions(vae))
    assert not any("resample" in name for name in ranges.layers)
    exact = load_vae(vae, weights, "fp32", "cpu").decode(latents)
    rounded_too = load_quantized_vae(vae, weights, ranges, INT8, VAE_EXCLUDED).decode(latents)
    assert 0 < (rounded_too - exact).norm() / exact.norm() <= 5e-2


@pytest.mark.exhaustive
def test_an_interrupted_calibration_goes_on(
    vae_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    four = tuple(shipped_prompts()[:4])
    whole = calibrated(vae_export, tmp_path / "whole", prompts=four, blocks=1)
    watch, calls = VaeWatcher.watch, list[str]()

    def interrupted(self: VaeWatcher, latents: Tensor, what: str) -> dict[str, Tensor]:
        calls.append(what)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return watch(self, latents, what)

    monkeypatch.setattr(VaeWatcher, "watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrated(vae_export, tmp_path / "cut", prompts=four, blocks=1)
    resumed = calibrated(vae_export, tmp_path / "cut", prompts=four, blocks=1)
    assert len(calls) == 3
    assert resumed.to_bytes() == whole.to_bytes()


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vae-exclude", "encoder.*"], "the VAE has no convolution called encoder.*"),
        (["--vae-exclude", "wider-than-96"], "the VAE has no convolution called wider-than-96"),
        (["--vae-exclude", "*"], "every convolution of the VAE is left out"),
    ],
)
def test_bad_choices_are_refused_before_any_rollout(
    vae_export: Path, tmp_path: Path, capsys: Text, options: list[str], message: str
) -> None:
    arguments = ["calibrate", "--onnx", str(vae_export), "--precision", "fp8"]
    arguments += ["--vae-precision", "fp8", "--out", str(tmp_path / "out"), *options]
    assert main(arguments) != 0
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_wide_convolutions_can_be_left_out(vae_config: ModelConfig) -> None:
    assert vae_config.vae is not None
    chosen = select_convolutions(vae_config.vae, (*VAE_EXCLUDED, "wider-than-16"))
    # Those behind the doubling, whose residual blocks have 16 channels in and out.
    blocks = (3, 4)
    assert chosen == tuple(
        f"decoder.upsamples.{block}.residual.{layer}" for block in blocks for layer in (2, 6)
    )


def test_an_export_without_a_vae_is_refused(
    small_export: Path, tmp_path: Path, capsys: Text
) -> None:
    arguments = ["calibrate", "--onnx", str(small_export), "--precision", "fp8"]
    assert main([*arguments, "--vae-precision", "int8", "--out", str(tmp_path / "out")]) != 0
    assert "has no VAE to quantize; export with --vae" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_older_files_have_no_ranges_of_a_vae(
    calibrations: Mapping[str, Calibration], tmp_path: Path
) -> None:
    path = tmp_path / "scales.safetensors"
    save_calibration(calibrations["fp8"], path)
    with safe_open(path, framework="numpy") as file:
        facts = json.loads(file.metadata()["longlive_calibration"])
    assert facts.pop("vae_layers") == []
    assert facts["origin"].pop("vae") == ""
    save_file(load_file(path), path, {"longlive_calibration": json.dumps(facts)})
    found = load_calibration(path)
    assert found.vae is None
    assert found.layers.keys() == calibrations["fp8"].layers.keys()


@pytest.mark.exhaustive
def test_the_check_compares_narrow_convolutions(
    narrow_vae_export: Callable[[str], Path],
    vae_export: Path,
    vae_config: ModelConfig,
    vae_calibration: Calibration,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert vae_config.vae is not None
    assert vae_calibration.vae is not None
    part = quantized_vae_component(
        Component("vae", SourceExport.open(vae_export).vae(), vae_specs(vae_config)),
        vae_calibration.vae,
        vae_config.vae,
        FP8,
        VAE_EXCLUDED,
    )
    exported, half = narrow_vae_export("fp8"), PRECISIONS["fp16"]
    for graph in part.graphs:
        result = check_graph(graph, exported, part.weights, vae_config, half)
        assert result.error is not None
        assert result.error < 3e-2
    scaled = quantized
    monkeypatch.setattr(
        "longlive_trt.calibration.layers.quantized",
        lambda x, scale, *rest: scaled(x, scale * 8, *rest),
    )
    with pytest.raises(ExportError, match="graph vae_first differs from torch"):
        check_graph(part.graphs[0], exported, part.weights, vae_config, half)


@pytest.mark.exhaustive
def test_graphs_are_traced_elsewhere_while_rollouts_run(
    vae_export: Path,
    vae_calibration: Calibration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(spec: GraphSpec) -> None:
        raise AssertionError(f"{spec.name} was traced again")

    source, extras = SourceExport.open(vae_export), Extras(attention=INT8, vae=INT8)
    request = CalibrationRequest(RECIPES["fp8"], PROMPTS, blocks=2)
    with Tracers(2) as ahead:
        begin_tracing(ahead, source, request, extras)
        monkeypatch.setattr(tracers, "trace", refuse)
        path = tmp_path / "onnx"
        write_quantized(source, vae_calibration, path, extras=extras, check=False, tracers=ahead)
    assert read_export(path).graphs.keys() == {"step", "prompt", "vae_first", "vae_next"}
