"""The tiny decoder on whatever GPU is there: pictures against float64, frame by frame and in
blocks that are captured."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file

from longlive_trt.cli import main
from longlive_trt.engines.build import build
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.engines.ort import gpu as onnxruntime_cuda
from longlive_trt.export.models.decoders import presented
from longlive_trt.export.models.taehv import TaehvDecoder
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.decoding.choice import decoder_named
from longlive_trt.runtime.memory.base import Buffer
from longlive_trt.runtime.memory.cuda import CudaMemory
from tests.export.models.test_taehv import random_decoder

pytestmark = pytest.mark.gpu
Array = np.ndarray[Any, Any]
MODELS: dict[str, dict[str, Any]] = {
    "as published": {"widths": (256, 128, 64, 64)},
    "widths that are filled up": {
        "widths": (20, 12, 9, 4),
        "temporal_upsample": (True, False, True),
    },
}
SIZE = (5, 7)
BLOCK, BLOCKS = 3, 4


def gray_decoder(name: str, seed: int) -> TaehvDecoder:
    model = random_decoder(seed, **MODELS[name])
    # Around gray, so that little is cut off.
    model.decoder["22"].bias.add_(0.5)
    return model


def bundle_of(model: TaehvDecoder, folder: Path, gpu: str, batch: int = 1) -> Bundle:
    """As a user makes it of a file."""
    if onnxruntime_cuda.PROVIDER not in ort.get_available_providers():
        pytest.skip("this onnxruntime has no GPU support")
    save_file(model.state_dict(), folder / "tiny.safetensors")
    times = str(list(model.config.temporal_upsample)).lower()
    values = (f"latent.height={SIZE[0]}", f"latent.width={SIZE[1]}")
    values = (*values, "vae.kind=taehv", f"vae.temporal_upsample={times}")
    options = [part for value in values for part in ("--set", value)]
    source = ("--vae", str(folder / "tiny.safetensors"), "--out", str(folder / "onnx"))
    assert main(["export", "--config", "longlive-1.3b", *options, *source]) == 0
    asked = BuildOptions(gpu=gpu, batch=batch)
    build(folder / "onnx", folder / "bundle", "fp16", options=asked)
    return open_bundle(folder / "bundle")


def make_latents(frames: int, batch: int = 1) -> Array:
    """With a mean, and outliers that are squashed."""
    random = np.random.default_rng(11)
    latents = random.standard_normal((batch, frames, 16, *SIZE)) + random.standard_normal(
        (16, 1, 1)
    )
    latents[..., ::3, ::4] *= 5
    return latents.astype(np.float16)


def exact(model: TaehvDecoder, latents: Array) -> tuple[Array, Array]:
    raw = model.double().decode(torch.from_numpy(latents).double())
    frames, pictures = presented(raw, model.config)
    assert ((frames > 0) & (frames < 1)).float().mean() > 0.3
    return frames.numpy(), pictures.numpy()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_pictures_are_those_of_float64(name: str, batch: int, target: str, tmp_path: Path) -> None:
    model, latents = gray_decoder(name, 8), make_latents(5, batch)
    bundle = bundle_of(model, tmp_path, target, batch)
    with Engines(bundle, "cuda") as engines:
        stream = engines.stream_of(decoder_named(bundle, None), batch, "frames", SIZE)
        found = stream.decode(latents)
        stream.close()
    expected, _ = exact(model, latents)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 2e-2
    assert np.linalg.norm(found - expected) <= 5e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", MODELS)
def test_blocks_that_are_captured_are_those_of_float64(
    name: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, latents = gray_decoder(name, 9), make_latents(BLOCK * BLOCKS)
    bundle = bundle_of(model, tmp_path, target)
    with Engines(bundle, "cuda") as engines:
        memory = CudaMemory(engines.stream("transformer"))
        shape = (1, BLOCK, *latents.shape[2:])
        place = memory.reserve({"block": Buffer(shape, latents.dtype)}, "latents")["block"]
        decoder, found = engines.decoder(1), []
        for block in np.split(latents, BLOCKS, axis=1):
            memory.write(place, block)
            found.append(decoder.start(place).result())
        decoder.close()
        memory.close()
    _, expected = exact(model, latents)
    steps = np.abs(np.concatenate(found, axis=1).astype(int) - expected.astype(int))
    assert steps.max() <= 3 and (steps > 1).mean() <= 0.01
