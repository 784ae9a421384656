"""The VAE's encoder as an export has it, and when it is left out."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from safetensors.torch import save_file

from longlive_trt.basics import unheard
from longlive_trt.configs import ModelConfig
from longlive_trt.configs.loader import configure
from longlive_trt.engines.compiler import BuildOptions, GraphSource
from longlive_trt.engines.ort.cpu import OnnxRuntimeEngine
from longlive_trt.engines.ort.gpu_compiler import OnnxRuntimeGpuCompiler
from longlive_trt.errors import CheckpointError
from longlive_trt.export.components import Sources, components
from longlive_trt.export.exporter import export_components
from longlive_trt.export.models.vae import VaeDecoder
from longlive_trt.export.models.vae_encoder import VaeEncoder
from longlive_trt.exports import read_export
from longlive_trt.precision import PRECISIONS
from longlive_trt.runtime.starting.encoding import EncoderStream

VAE = {"dim": 8, "multipliers": [1, 2], "res_blocks": 1, "temporal_upsample": [True]}
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    values = {"name": "vae", "latent": {"height": 6, "width": 4}, "vae": VAE}
    return configure(values, origin="a test")


@pytest.fixture(scope="module")
def weights(config: ModelConfig) -> Weights:
    assert config.vae is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        encoder = VaeEncoder(config.vae).state_dict()
        return {**encoder, **VaeDecoder(config.vae).state_dict()}


@pytest.fixture(scope="module")
def exported(make_once: Callable[..., Path], config: ModelConfig, weights: Weights) -> Path:
    checkpoint = make_once("vae-with-encoder.safetensors", lambda path: save_file(weights, path))

    def make(path: Path) -> None:
        # Graphs of the encoder alone are traced and held against torch.
        (_, encoder) = components(config, Sources(vae=checkpoint))
        export_components(config, [encoder], path, PRECISIONS["fp32"])

    return make_once("vae-encoder-export", make)


@pytest.mark.exhaustive
def test_the_graphs_encode_as_torch_does_chunk_by_chunk(
    exported: Path,
    config: ModelConfig,
    weights: Weights,
    relative_error: Callable[[object, object], float],
) -> None:
    assert config.vae is not None
    model = VaeEncoder(config.vae)
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    pictures = np.random.default_rng(3).integers(0, 256, (7, 12, 8, 3), np.uint8)
    frames = torch.from_numpy(pictures).permute(0, 3, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        expected = model.encode(frames).numpy()
    first, following = (
        OnnxRuntimeEngine(exported / f"{name}.onnx", threads=1)
        for name in ("encode_first", "encode_next")
    )
    with first, following:
        made = EncoderStream(first, following).encode(pictures)
    assert made.shape == (1, 4, 16, 6, 4)
    assert relative_error(made, expected) <= 1e-5


@pytest.mark.exhaustive
def test_its_record_and_its_tensors(exported: Path) -> None:
    record = read_export(exported)
    assert record.checkpoints.keys() == {"vae_encoder"}
    info = record.graphs["encode_next"]
    shapes = {tensor.name: (tensor.dtype, tensor.shape) for tensor in info.inputs}
    assert shapes["pixels"] == ("uint8", ("batch", 2, 12, 8, 3))
    assert info.outputs[0].shape == ("batch", 1, 16, 6, 4) and info.outputs[0].dtype == "float"
    # The first convolution, five blocks of two, one halving, the head.
    assert len(shapes) == 1 + 1 + 2 * 4 + 1 + 1


@pytest.mark.exhaustive
def test_a_gpu_runs_it_as_exported_in_halves(
    exported: Path, config: ModelConfig, tmp_path: Path
) -> None:
    compiler = OnnxRuntimeGpuCompiler(BuildOptions(gpu="sm90"), PRECISIONS["bf16"])
    for name in ("encode_first", "encode_next"):
        info = read_export(exported).graphs[name]
        compiler.compile(
            GraphSource(name, exported / f"{name}.onnx", info, config), tmp_path, unheard
        )
        model = onnx.load(tmp_path / f"{name}.onnx")
        kinds = {t.data_type for t in model.graph.initializer if t.name.endswith(".weight")}
        assert kinds == {TensorProto.FLOAT16}
        assert (
            compiler.info(GraphSource(name, exported / f"{name}.onnx", info, config), tmp_path)
            .outputs[0]
            .dtype
            == "float"
        )


def names(config: ModelConfig, tmp_path: Path, weights: Weights, **options: bool) -> list[str]:
    save_file(weights, tmp_path / "vae.safetensors")
    parts = components(config, Sources(vae=tmp_path / "vae.safetensors", **options))
    return [part.name for part in parts]


def test_a_file_without_an_encoder_or_one_that_is_not_wanted(
    config: ModelConfig, weights: Weights, tmp_path: Path
) -> None:
    assert names(config, tmp_path, weights) == ["vae", "vae_encoder"]
    assert names(config, tmp_path, weights, encoder=False) == ["vae"]
    decoder = {n: t for n, t in weights.items() if not n.startswith(("encoder.", "conv1."))}
    assert names(config, tmp_path, decoder) == ["vae"]


def test_an_encoder_of_another_size_is_left_out_with_a_line(
    config: ModelConfig, weights: Weights, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert config.vae is not None
    other = VaeEncoder(replace(config.vae, dim=16)).state_dict()
    with caplog.at_level(logging.WARNING, "longlive_trt"):
        assert names(config, tmp_path, {**weights, **other}) == ["vae"]
    assert "its encoder begins 16 channels wide, and the configuration says 8" in caplog.text


def test_half_an_encoder_is_refused(config: ModelConfig, weights: Weights, tmp_path: Path) -> None:
    broken = {n: t for n, t in weights.items() if n != "encoder.head.0.gamma"}
    with pytest.raises(CheckpointError, match=r"does not fit the VAE.*\n.*encoder\.head\.0\.gamma"):
        names(config, tmp_path, broken)
