"""Which bundle a machine takes, and what it is told when there is none."""

from dataclasses import replace

import pytest

from longlive_trt.engines.bundles.catalog import CatalogEntry
from longlive_trt.engines.bundles.choice import Machine, MachineGpu, Preference, choose
from longlive_trt.errors import BundleError
from longlive_trt.extras import engine_upgrade, install_command

GB = 10**9
CPU = Machine(None, 32 * GB, {"onnxruntime": "1.31.1", "tensorrt": None, "tensorrt-rtx": None})
H100 = Machine(
    MachineGpu("NVIDIA H100", "9.0", 80 * GB),
    128 * GB,
    {"onnxruntime": "1.31.1", "tensorrt": "11.4.0.106", "tensorrt-rtx": "1.7.1.116"},
)
ADA = replace(H100, gpu=MachineGpu("RTX 4090", "8.9", 24 * GB))
AMPERE = replace(H100, gpu=MachineGpu("RTX 3090", "8.6", 24 * GB))

VERSIONS = {"onnxruntime": "1.31.1", "tensorrt": "11.4.0.106", "tensorrt-rtx": "1.7.1"}


def entry(kind: str, target: str, precision: str, **changes: object) -> CatalogEntry:
    made = CatalogEntry(
        path=f"{kind}-{target}-{precision}",
        sha256="0" * 64,
        key="0" * 64,
        config="longlive-1.3b",
        kind=kind,
        version=VERSIONS.get(kind, "1"),
        target=target,
        precision=precision,
        width=832,
        height=480,
        graphs=("step", "prompt"),
        bytes=3 * GB,
        memory_bytes=8 * GB,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


CATALOG = [
    entry("onnxruntime", "cpu", "fp16"),
    entry("onnxruntime", "cpu", "fp32"),
    entry("tensorrt", "sm90", "bf16"),
    entry("tensorrt", "sm90", "fp8"),
    entry("tensorrt", "sm90", "fp16"),
    entry("tensorrt-rtx", "sm89", "fp16"),
    entry("tensorrt-rtx", "sm89", "bf16"),
]


@pytest.mark.parametrize(
    ("machine", "wish", "best"),
    [
        (H100, Preference(), "tensorrt-sm90-fp8"),
        (H100, Preference(precisions=("fp16", "bf16")), "tensorrt-sm90-fp16"),
        (H100, Preference(precisions=("fp32",)), "onnxruntime-cpu-fp32"),
        (ADA, Preference(), "tensorrt-rtx-sm89-bf16"),
        (AMPERE, Preference(), "onnxruntime-cpu-fp32"),
        (CPU, Preference(), "onnxruntime-cpu-fp32"),
        (CPU, Preference(precisions=("fp16",)), "onnxruntime-cpu-fp16"),
    ],
)
def test_the_best_for_each_machine(machine: Machine, wish: Preference, best: str) -> None:
    choice = choose(CATALOG, machine, wish, "there")
    assert choice.best.path == best
    assert choice.verdicts[0].entry is choice.best
    assert {verdict.entry.path for verdict in choice.verdicts} == {item.path for item in CATALOG}


@pytest.mark.parametrize(
    ("item", "machine", "obstacle"),
    [
        (entry("tensorrt", "sm90", "fp8"), CPU, "needs a GPU (sm90)"),
        (entry("tensorrt", "sm90", "fp16"), ADA, "built for sm90, and the GPU is RTX 4090 (sm89)"),
        (entry("tensorrt", "sm86", "fp8"), AMPERE, "FP8 needs sm89"),
        (
            entry("tensorrt", "sm90", "fp8", options={"gpu_name": "NVIDIA H200"}),
            H100,
            "built for NVIDIA H200, and the GPU is NVIDIA H100",
        ),
        (entry("tensorrt", "sm90", "fp8", options={"strip": True}), H100, "longlive-trt refit"),
        (
            entry("tensorrt", "sm90", "fp8", version="12.0", options={"version_compatible": True}),
            H100,
            "built with tensorrt 12.0",
        ),
        (
            entry("tensorrt", "sm90", "fp8", version="11.3.0.9"),
            H100,
            "built with tensorrt 11.3.0.9 and runs with no other; 11.4.0.106",
        ),
        (
            entry("tensorrt", "sm90", "fp8"),
            replace(H100, versions={}),
            install_command("tensorrt"),
        ),
        (
            entry("onnxruntime", "cpu", "fp32", version="1.40.0"),
            CPU,
            engine_upgrade("1.40.0"),
        ),
        (entry("onnxruntime", "cpu", "bf16"), CPU, "no bf16 arithmetic on a CPU"),
        (entry("onnxruntime", "cpu", "fp32", memory_bytes=40 * GB), CPU, "more than 40.0 GB"),
        (entry("tensorrt", "sm90", "fp8", memory_bytes=90 * GB), H100, "of 80.0 GB here"),
        (entry("openvino", "cpu", "fp32"), CPU, "update longlive-trt"),
    ],
)
def test_what_is_missing_is_said(item: CatalogEntry, machine: Machine, obstacle: str) -> None:
    with pytest.raises(BundleError) as caught:
        choose([item], machine, Preference(), "there")
    assert obstacle in str(caught.value)
    assert "longlive-trt build" in str(caught.value)


def test_fp8_runs_on_a_cpu_and_is_taken_last() -> None:
    fp8, fp16 = entry("onnxruntime", "cpu", "fp8"), entry("onnxruntime", "cpu", "fp16")
    assert choose([fp8], CPU, Preference(), "there").best is fp8
    assert choose([fp8, fp16], CPU, Preference(), "there").best is fp16


def test_another_configuration_is_not_taken() -> None:
    with pytest.raises(BundleError, match="tiny was asked for"):
        choose(CATALOG, H100, Preference(config="tiny"), "there")


def test_an_empty_catalog() -> None:
    with pytest.raises(BundleError, match="the catalog is empty"):
        choose([], CPU, Preference(), "there")


@pytest.mark.parametrize(
    "item",
    [
        entry("tensorrt", "sm90", "fp8", options={"gpu_name": "NVIDIA H100"}),
        entry("tensorrt", "sm80", "fp8", options={"hardware_compatibility": "ampere-plus"}),
        entry(
            "tensorrt",
            "sm90",
            "fp8",
            options={"gpu_name": "NVIDIA H200", "hardware_compatibility": "same-capability"},
        ),
        entry("tensorrt", "sm90", "fp8", version="11.2.1", options={"version_compatible": True}),
    ],
)
def test_engines_that_were_built_to_travel(item: CatalogEntry) -> None:
    assert choose([item], H100, Preference(), "there").best is item


def test_of_equals_the_larger_picture_and_the_newer_engine() -> None:
    old = entry("onnxruntime", "cpu", "fp32", version="1.9.0", path="old")
    new = entry("onnxruntime", "cpu", "fp32", version="1.24.0", path="new")
    small = entry("onnxruntime", "cpu", "fp32", width=192, height=128, path="small")
    choice = choose([small, old, new], CPU, Preference(), "there")
    assert [verdict.entry.path for verdict in choice.verdicts] == ["new", "old", "small"]
