"""Whether engines run somewhere: one rule for opened bundles and for those of a catalog."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from longlive_trt.architectures import Architecture
from longlive_trt.engines import loader
from longlive_trt.engines.bundles.catalog import CatalogEntry
from longlive_trt.engines.bundles.choice import Machine, MachineGpu, Preference, choose
from longlive_trt.engines.compatibility import (
    BuiltEngines,
    GpuModel,
    Obstacle,
    build_obstacle,
    hardware_obstacle,
    is_older,
    is_same,
    library_obstacle,
    memory_obstacle,
    numbers,
)
from longlive_trt.engines.trt import flavors
from longlive_trt.errors import BundleError
from longlive_trt.plugins.cuda.driver import DeviceFacts

H100 = GpuModel("NVIDIA H100", Architecture(9, 0))
H200 = GpuModel("NVIDIA H200", Architecture(9, 0))
ADA = GpuModel("NVIDIA L4", Architecture(8, 9))
AMPERE = GpuModel("NVIDIA A100", Architecture(8, 0))
TURING = GpuModel("NVIDIA T4", Architecture(7, 5))


def engines(
    kind: str = "tensorrt",
    version: str = "11.4.0.106",
    target: str = "sm90",
    precision: str = "bf16",
    **options: Any,
) -> BuiltEngines:
    return BuiltEngines(kind, version, target, precision, options)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.24.0", (1, 24, 0)),
        ("11.4.0.106", (11, 4, 0, 106)),
        ("1.24.0+cu13", (1, 24, 0)),
        ("1.24.0rc1", (1, 24, 0)),
        ("2.0.post1", (2, 0)),
        ("unknown", ()),
        ("", ()),
    ],
)
def test_the_numbers_of_a_version(version: str, expected: tuple[int, ...]) -> None:
    assert numbers(version) == expected


@pytest.mark.parametrize(
    ("version", "other", "older"),
    [
        ("1.24.0", "1.31.1", True),
        ("1.9.0", "1.24.0", True),
        ("1.24.0", "1.24.1", True),
        ("1.24.0", "1.24.0", False),
        ("1.24.0+cu13", "1.24.0", False),
        ("1.24", "1.24.0", False),
        ("1.31.1", "1.24.0", False),
    ],
)
def test_an_older_version(version: str, other: str, older: bool) -> None:
    assert is_older(version, other) == older


@pytest.mark.parametrize(
    ("version", "other", "same"),
    [
        ("11.4.0.106", "11.4.0.106", True),
        # A package writes 1.7.1, and the library in it 1.7.1.116.
        ("1.7.1", "1.7.1.116", True),
        ("1.7.1.116", "1.7.1", True),
        ("1.7.1.116", "1.7.1.117", False),
        ("1.7.1", "1.7.2.1", False),
        ("11", "11.4.0", False),
        ("unknown", "11.4.0", False),
        ("", "11.4.0", False),
    ],
)
def test_the_same_version(version: str, other: str, same: bool) -> None:
    assert is_same(version, other) == same
    assert is_same(other, version) == same


@pytest.mark.parametrize(
    ("built", "version", "obstacle"),
    [
        (engines(), "11.4.0.106", None),
        (engines(), "11.4.0", None),
        (engines(), "11.5.0.1", Obstacle.OTHER_LIBRARY),
        (engines(), "11.3.0.9", Obstacle.OTHER_LIBRARY),
        (engines(), None, Obstacle.NOT_INSTALLED),
        (engines(version_compatible=True), "11.5.0.1", None),
        (engines(version_compatible=True), "11.4.0", Obstacle.OTHER_LIBRARY),
        (engines(version_compatible=True), "12.0.0", Obstacle.OTHER_LIBRARY),
        (engines("tensorrt-rtx", "1.7.1"), "1.7.1.116", None),
        (engines("onnxruntime", "1.24.0", "cpu"), "1.31.1", None),
        (engines("onnxruntime", "1.24.0", "cpu"), "1.24.0+cu13", None),
        (engines("onnxruntime", "1.31.1", "cpu"), "1.24.0", Obstacle.OLDER_LIBRARY),
        (engines("onnxruntime", "1.24.1", "cpu"), "1.24.0", Obstacle.OLDER_LIBRARY),
    ],
)
def test_the_library(built: BuiltEngines, version: str | None, obstacle: Obstacle | None) -> None:
    assert library_obstacle(built, version) is obstacle


@pytest.mark.parametrize(
    ("built", "gpu", "obstacle"),
    [
        (engines(), H100, None),
        (engines(), None, Obstacle.NO_GPU),
        (engines(), ADA, Obstacle.OTHER_GPU),
        (engines(gpu_name="NVIDIA H100"), H100, None),
        (engines(gpu_name="NVIDIA H100"), H200, Obstacle.OTHER_GPU),
        (engines(gpu_name="NVIDIA H100", hardware_compatibility="same-capability"), H200, None),
        (engines(hardware_compatibility="same-capability"), ADA, Obstacle.OTHER_GPU),
        (engines(target="sm80", hardware_compatibility="ampere-plus"), H200, None),
        (engines(hardware_compatibility="ampere-plus"), TURING, Obstacle.OTHER_GPU),
        (engines(precision="fp8"), H100, None),
        (engines(precision="fp8", hardware_compatibility="ampere-plus"), AMPERE, Obstacle.NO_FP8),
        (engines("onnxruntime", target="sm89"), ADA, None),
        (engines("onnxruntime", target="sm89"), H100, Obstacle.OTHER_GPU),
        # What is compiled for no GPU runs on any.
        (engines("onnxruntime", target="cpu"), AMPERE, None),
        (engines("onnxruntime", target="cpu", precision="fp8"), AMPERE, None),
        (engines("onnxruntime", target="cpu", precision="fp32"), None, None),
        (engines("onnxruntime", target="cpu", precision="fp8"), None, None),
        (engines("onnxruntime", target="cpu", precision="bf16"), None, Obstacle.NOT_ON_CPU),
    ],
)
def test_the_hardware(built: BuiltEngines, gpu: GpuModel | None, obstacle: Obstacle | None) -> None:
    assert hardware_obstacle(built, gpu) is obstacle


def test_what_runs_nowhere_as_it_is() -> None:
    assert build_obstacle(engines()) is None
    assert build_obstacle(engines(strip=True)) is Obstacle.STRIPPED
    assert build_obstacle(engines("abacus")) is Obstacle.UNKNOWN_KIND


def test_a_part_of_the_memory_stays_free() -> None:
    assert memory_obstacle(90, 100) is None
    assert memory_obstacle(91, 100) is Obstacle.TOO_LITTLE_MEMORY


def entry(built: BuiltEngines) -> CatalogEntry:
    identity = ("a", "0" * 64, "0" * 64, "tiny", built.kind, built.version, built.target)
    sizes = (192, 128, ("step", "prompt"), 1, 1)
    return CatalogEntry(*identity, built.precision, *sizes, built.options)


@pytest.mark.parametrize("gpu", [H100, H200, ADA, AMPERE], ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("version", ["11.4.0.106", "11.4.0", "11.5.0.1"])
@pytest.mark.parametrize(
    "built",
    [
        engines(),
        engines(gpu_name="NVIDIA H100"),
        engines(version="11.4.0", version_compatible=True),
        engines(strip=True),
        engines("abacus"),
        engines(precision="fp8", target="sm80", hardware_compatibility="ampere-plus"),
    ],
    ids=str,
)
def test_a_catalog_and_an_opened_bundle_agree(
    built: BuiltEngines,
    version: str,
    gpu: GpuModel,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    capability = (gpu.architecture.major, gpu.architecture.minor)
    facts = DeviceFacts(0, gpu.name, capability, 132, 0)
    monkeypatch.setattr(loader, "device_facts", lambda: facts)
    flavor = SimpleNamespace(load=lambda: SimpleNamespace(__version__=version))
    monkeypatch.setattr(flavors, "FLAVORS", {"tensorrt": flavor})
    engine = SimpleNamespace(kind=built.kind, version=built.version, target=built.target)
    manifest = SimpleNamespace(engine=engine, precision=built.precision, options=built.options)
    bundle: Any = SimpleNamespace(folder=tmp_path, manifest=manifest)
    machine = Machine(
        MachineGpu(gpu.name, gpu.architecture.capability, 1 << 40), 1 << 40, {built.kind: version}
    )

    def runs(attempt: Any) -> bool:
        try:
            attempt()
        except BundleError:
            return False
        return True

    assert runs(lambda: loader.require_runnable(bundle)) == runs(
        lambda: choose([entry(built)], machine, Preference(), "there")
    )
