"""What many tests share. Exports and bundles are for reading: who changes one copies it first."""

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from longlive_trt.configs import ModelConfig
from longlive_trt.configs.loader import configure
from tests import shared as models
from tests.shared import GOLDEN, MINIS, Shared, prepare

# Each worker computes on one core: threads of several would only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A machine may be busy.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# A shell that runs the tests in the background leaves them, and what they start, deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: Sequence[object]) -> None:
    """Before the workers of a whole run start."""
    if config.args_source is config.ArgsSource.TESTPATHS and not config.option.keyword:
        config.get_terminal_writer().line("making the models that many tests share")
        prepare(_shared_folder(config), min(len(specs), os.cpu_count() or 1))


def _shared_folder(config: pytest.Config) -> Path:
    base = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest) -> Shared:
    root = _shared_folder(request.config)
    root.mkdir(exist_ok=True)
    return Shared(root)


@pytest.fixture(scope="session")
def make_once(shared: Shared) -> MakeOnce:
    return shared.once


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    return models.tiny_config()


@pytest.fixture(scope="session")
def tiny_export(shared: Shared) -> Path:
    """Random weights: all graphs but the VAE's encoder, and a tokenizer."""
    return shared("tiny-export")


@pytest.fixture(scope="session")
def tiny_bundle(shared: Shared) -> Path:
    return shared("tiny-bundle")


@pytest.fixture(scope="session")
def golden_config() -> ModelConfig:
    return configure(GOLDEN, origin="conftest")


@pytest.fixture(scope="session")
def golden_export(shared: Shared) -> Path:
    """The golden transformer; prompts come encoded, as no text encoder belongs to it."""
    return shared("golden-export")


@pytest.fixture(scope="session")
def golden_bundle_fp32(shared: Shared) -> Path:
    return shared("golden-fp32")


@pytest.fixture(scope="session")
def golden_bundle_fp16(shared: Shared) -> Path:
    return shared("golden-fp16")


@pytest.fixture(scope="session")
def mini_bundle(shared: Shared) -> Callable[[str], Path]:
    """A transformer of a few thousand weights, by its kind of rotary embedding."""
    return lambda rope: shared(f"mini-{rope}")


@pytest.fixture(scope="session")
def video_bundle(make_once: MakeOnce, mini_bundle: Callable[[str], Path]) -> Path:
    """An exported transformer, and quick stand-ins for the VAE and the text encoder."""
    from tests.fakes.video import add_stand_ins

    mini = mini_bundle("relative")
    return make_once("mini-video", lambda path: add_stand_ins(mini, path))


@pytest.fixture(scope="session")
def two_decoders(make_once: MakeOnce, video_bundle: Path) -> Path:
    """The same with a light decoder beside the full one."""
    from tests.fakes.video import add_light_stand_in

    return make_once("mini-two-decoders", lambda path: add_light_stand_in(video_bundle, path))


@pytest.fixture(scope="session")
def lora_ready_bundle(shared: Shared, mini_bundle: Callable[[str], Path]) -> Callable[[str], Path]:
    """As ``video_bundle``, with matrices that can be exchanged; by its precision."""
    from longlive_trt.engines.build import build
    from longlive_trt.engines.compiler import BuildOptions
    from tests.fakes.video import add_stand_ins

    options = BuildOptions(lora_ready=True)

    def bundle(precision: str) -> Path:
        plain = shared.once(
            f"mini-lora-plain-{precision}",
            lambda path: build(shared("mini-relative-export"), path, precision, options=options),
        )
        return shared.once(f"mini-lora-{precision}", lambda path: add_stand_ins(plain, path))

    return bundle


@pytest.fixture(scope="session")
def demo_weights(make_once: MakeOnce) -> Path:
    """Weights of the demo's model that have learned nothing, as the package holds its own."""
    from tests.fakes.demo import write_weights

    return make_once("demo-weights", write_weights)


@pytest.fixture(scope="session")
def small_vae_bundle(shared: Shared) -> Path:
    """A VAE alone, of random weights and few layers, for the golden one's latents."""
    return shared("small-vae-fp32")


@pytest.fixture(scope="session")
def golden_vae_bundle(shared: Shared) -> Path:
    """The golden VAE alone, for the latents it was recorded with."""
    return shared("golden-vae-fp32")


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
        monkeypatch.setattr(driver, "_devices", set())
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
