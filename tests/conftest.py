"""Exports and bundles that many tests share: each is made once, for all workers of a run.

They are for reading. A test that changes one makes a copy of its own first.
"""

import fcntl
import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longlive_trt.configs import ModelConfig, load_config
from longlive_trt.configs.loader import configure
from longlive_trt.precision import precision_named

DATA = Path(__file__).parents[0] / "data"

# Each worker computes on one core: threads of several would only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that runs the tests in the background leaves them, and what they start, deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

MakeOnce = Callable[[str, Callable[[Path], object]], Path]

GOLDEN = {
    "name": "golden-a",
    "transformer": {
        "dim": 256,
        "heads": 2,
        "layers": 2,
        "ffn_dim": 512,
        "text_len": 16,
        "text_dim": 64,
    },
    "latent": {"height": 8, "width": 12},
}
SMALL = {"layers": 2, "ffn_dim": 48, "freq_dim": 16, "text_len": 5, "text_dim": 12}
MINIS: dict[str, dict[str, Any]] = {
    # 2 x 3 tokens a frame, 12 channels a head.
    "relative": {
        "name": "mini-relative",
        "transformer": {"dim": 36, "heads": 3, **SMALL},
        "latent": {"height": 4, "width": 6},
        "rollout": {"rope": "relative"},
    },
    # 3 x 5 tokens a frame, 64 channels a head.
    "absolute": {
        "name": "mini-absolute",
        "transformer": {"dim": 128, "heads": 2, **SMALL},
        "latent": {"height": 6, "width": 10},
        "rollout": {"rope": "absolute"},
    },
}
MINI_SEED = 3


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    root.mkdir(exist_ok=True)

    def once(name: str, make: Callable[[Path], object]) -> Path:
        path = root / name
        with (root / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                make(path)
        return path

    return once


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """The shipped model ``tiny``, with fewer layers in its VAE and its text encoder."""
    vae = "vae={dim: 16, multipliers: [1, 1, 2], res_blocks: 1, temporal_upsample: [true, true]}"
    return load_config("tiny", overrides=[vae, "text_encoder.layers=1"])


@pytest.fixture(scope="session")
def tiny_export(make_once: MakeOnce, tiny_config: ModelConfig) -> Path:
    """Random weights: all graphs but the VAE's encoder, and a tokenizer."""
    return make_once(
        "tiny-export", lambda path: _export(tiny_config, path, check=False, random_seed=1)
    )


@pytest.fixture(scope="session")
def tiny_bundle(make_once: MakeOnce, tiny_export: Path) -> Path:
    return make_once("tiny-bundle", lambda path: _build(tiny_export, path, "fp32"))


@pytest.fixture(scope="session")
def golden_config() -> ModelConfig:
    return configure(GOLDEN, origin="conftest")


@pytest.fixture(scope="session")
def golden_export(make_once: MakeOnce, golden_config: ModelConfig) -> Path:
    """The golden transformer; prompts come encoded, as no text encoder belongs to it."""
    checkpoint = DATA / "transformer" / "transformer.safetensors"
    return make_once(
        "golden-export", lambda path: _export(golden_config, path, transformer=checkpoint)
    )


@pytest.fixture(scope="session")
def golden_bundle_fp32(make_once: MakeOnce, golden_export: Path) -> Path:
    return make_once("golden-fp32", lambda path: _build(golden_export, path, "fp32"))


@pytest.fixture(scope="session")
def golden_bundle_fp16(make_once: MakeOnce, golden_export: Path) -> Path:
    return make_once("golden-fp16", lambda path: _build(golden_export, path, "fp16"))


@pytest.fixture(scope="session")
def mini_bundle(make_once: MakeOnce) -> Callable[[str], Path]:
    """A transformer of a few thousand weights, by its kind of rotary embedding."""

    def bundle(rope: str) -> Path:
        config = configure(MINIS[rope], origin="conftest")
        exported = make_once(
            f"mini-{rope}-export",
            lambda path: _export(config, path, check=False, random_seed=MINI_SEED),
        )
        return make_once(f"mini-{rope}", lambda path: _build(exported, path, "fp32"))

    return bundle


@pytest.fixture(scope="session")
def video_bundle(make_once: MakeOnce, mini_bundle: Callable[[str], Path]) -> Path:
    """An exported transformer, and quick stand-ins for the VAE and the text encoder."""
    from tests.fakes.video import add_stand_ins

    mini = mini_bundle("relative")
    return make_once("mini-video", lambda path: add_stand_ins(mini, path))


@pytest.fixture(scope="session")
def lora_ready_bundle(
    make_once: MakeOnce, mini_bundle: Callable[[str], Path]
) -> Callable[[str], Path]:
    """As ``video_bundle``, with matrices that can be exchanged; by its precision."""
    from longlive_trt.engines.build import build
    from longlive_trt.engines.compiler import BuildOptions
    from tests.fakes.video import add_stand_ins

    exported = mini_bundle("relative").with_name("mini-relative-export")
    options = BuildOptions(lora_ready=True)

    def bundle(precision: str) -> Path:
        plain = make_once(
            f"mini-lora-plain-{precision}",
            lambda path: build(exported, path, precision, options=options),
        )
        return make_once(f"mini-lora-{precision}", lambda path: add_stand_ins(plain, path))

    return bundle


@pytest.fixture(scope="session")
def demo_weights(make_once: MakeOnce) -> Path:
    """Weights of the demo's model that have learned nothing, as the package holds its own."""
    from tests.fakes.demo import write_weights

    return make_once("demo-weights", write_weights)


@pytest.fixture(scope="session")
def small_vae_bundle(make_once: MakeOnce) -> Path:
    """A VAE alone, of random weights and few layers, for the golden one's latents."""
    from safetensors.torch import save_file

    from longlive_trt.export.models.vae import VaeDecoder

    vae = {"dim": 16, "multipliers": [1, 1, 1], "res_blocks": 1, "temporal_upsample": [True] * 2}
    config = configure(
        {"name": "small-vae", "latent": {"height": 4, "width": 6}, "vae": vae}, origin="conftest"
    )

    def weights(path: Path) -> None:
        import torch

        assert config.vae is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(8)
            save_file(VaeDecoder(config.vae).state_dict(), path)

    checkpoint = make_once("small-vae.safetensors", weights)
    exported = make_once(
        "small-vae-export", lambda path: _export(config, path, check=False, vae=checkpoint)
    )
    return make_once("small-vae-fp32", lambda path: _build(exported, path, "fp32"))


@pytest.fixture(scope="session")
def golden_vae_bundle(make_once: MakeOnce) -> Path:
    """The golden VAE alone, for the latents it was recorded with."""
    from safetensors.numpy import load_file

    recorded = load_file(DATA / "vae" / "decode.safetensors")
    vae = {"dim": 16, **{key: recorded[key].tolist() for key in ("mean", "std")}}
    values = {"name": "golden-vae", "latent": {"height": 4, "width": 6}, "vae": vae}
    config = configure(values, origin="conftest")
    checkpoint = DATA / "vae" / "vae.safetensors"
    # Its tests compare with the recorded frames, so the export need not compare with torch.
    exported = make_once(
        "vae-export", lambda path: _export(config, path, check=False, vae=checkpoint)
    )
    return make_once("vae-fp32", lambda path: _build(exported, path, "fp32"))


@pytest.fixture(scope="session")
def fake_bundle() -> Callable[..., Path]:
    """A bundle that is sound as far as files go; what they hold is no engine."""
    from longlive_trt.engines.bundles.bundle import EngineKind, FileEntry, Manifest

    random = np.random.default_rng(0)
    default = {
        "step.onnx": b"graph" * 300,
        "step.weights": random.bytes(120_000) + bytes(80_000),
        "kernels/attention.ptx": random.bytes(700),
        "empty": b"",
    }

    def make(folder: Path, contents: dict[str, bytes] | None = None, **changes: Any) -> Path:
        contents = default if contents is None else contents
        for name, data in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        files = {
            name: FileEntry(hashlib.sha256(data).hexdigest(), len(data))
            for name, data in contents.items()
        }
        values: dict[str, Any] = {
            "key": "0" * 64,
            "config": configure(MINIS["relative"], origin="conftest"),
            "engine": EngineKind("onnxruntime", "1.24.0", "cpu"),
            "precision": "fp32",
            "graphs": {},
            "checkpoints": {},
            "onnx": {},
        }
        manifest = Manifest(**{**values, "files": files, **changes})
        (folder / "manifest.json").write_text(manifest.to_json())
        return folder

    return make


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Put an imagined GPU in the place of CUDA's driver; options are those of ``FakeCuda``."""
    from longlive_trt.plugins.cuda import driver
    from tests.fakes.cuda import FakeCuda

    def install(**options: Any) -> FakeCuda:
        cuda = FakeCuda(**options)
        for name, module in cuda.modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        driver.device_facts.cache_clear()
        monkeypatch.setattr(driver, "_thread", type(driver._thread)())
        return cuda

    yield install
    driver.device_facts.cache_clear()


@pytest.fixture(scope="session")
def relative_error() -> Callable[[object, object], float]:
    """The L2 norm of the difference over that of what is expected."""

    def error(found: object, expected: object) -> float:
        a, b = (np.asarray(x, np.float64) for x in (found, expected))
        assert a.shape == b.shape
        return float(np.linalg.norm(a - b) / np.linalg.norm(b))

    return error


def _export(config: ModelConfig, path: Path, check: bool = True, **sources: Any) -> None:
    from longlive_trt.export.components import Sources
    from longlive_trt.export.exporter import export

    quicker = {"encoder": False, **sources}
    export(config, Sources(**quicker), path, precision_named("fp32"), check=check)


def _build(exported: Path, path: Path, precision: str) -> None:
    from longlive_trt.engines.build import build

    build(exported, path, precision)
