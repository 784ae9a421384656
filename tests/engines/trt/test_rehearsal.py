"""TensorRT's own path, rehearsed: its flavor, but with TensorRT-RTX's compiler underneath.

What only TensorRT has (plugins, refitting, an engine that is loaded) is not reached by this.
"""

from pathlib import Path
from typing import Any, ClassVar

import pytest

from longlive_trt.architectures import Architecture
from longlive_trt.engines.compiler import BuildOptions, GraphSource
from longlive_trt.engines.trt.compiler import TensorRtCompiler
from longlive_trt.engines.trt.flavors import Inspection, Target, TensorRt
from longlive_trt.errors import PluginError, UsageError
from longlive_trt.exports import read_export
from longlive_trt.precision import precision_named

rtx = pytest.importorskip(
    "tensorrt_rtx_bindings",
    reason="TensorRT-RTX is not installed: pip install 'longlive-trt[tensorrt-rtx]'",
)


class Rehearsal(TensorRt):
    architecture: ClassVar[Architecture] = Architecture(8, 9)

    def load(self) -> Any:
        return rtx

    def target(self, trt: Any, gpu: str | None) -> Target:
        return Target(self.architecture, "Rehearsal 9000")

    def configure(self, trt: Any, config: Any, target: Target, options: BuildOptions) -> None:
        super().configure(trt, config, target, options)
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)

    def inspect(self, trt: Any, logger: Any, plan: Any) -> Inspection:
        return Inspection(layers="not used", json='{"Layers": []}')


class Hopper(Rehearsal):
    architecture: ClassVar[Architecture] = Architecture(9, 0)


def compiler(exported: Path, flavor: TensorRt, precision: str, **options: Any) -> TensorRtCompiler:
    config = read_export(exported).config
    return TensorRtCompiler(flavor, BuildOptions(**options), precision_named(precision), config)


# TensorRT-RTX still has the calls, which do nothing there.
@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_a_graph_is_compiled_with_tensorrts_options(tiny_export: Path, tmp_path: Path) -> None:
    record = read_export(tiny_export)
    made = compiler(
        tiny_export,
        Rehearsal(),
        "fp16",
        workspace_bytes=1 << 30,
        optimization_level=2,
        weight_streaming_bytes=1 << 20,
        timing_cache=tmp_path / "timing",
    )
    info = record.graphs["prompt"]
    source = GraphSource("prompt", tiny_export / "prompt.onnx", info, record.config)
    made.compile(source, tmp_path, lambda _what, _done, _total: None)
    made.finish(tmp_path)
    assert made.options["gpu_name"] == "Rehearsal 9000"
    assert made.options["weight_streaming_bytes"] == 1 << 20
    assert "timing_cache" not in made.options
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"prompt.engine", "prompt.layers.json", "report.json", "timing"}
    (cache,) = (tmp_path / "timing").glob("*.timing")
    assert cache.name == f"tensorrt-{rtx.__version__}-sm89-Rehearsal-9000.timing"


@pytest.mark.parametrize(
    ("flavor", "precision", "options", "expected"),
    [
        (Hopper(), "fp16", {}, "plugin"),
        (Hopper(), "bf16", {}, "plugin"),
        (Hopper(), "fp16", {"attention": "standard"}, "standard"),
        (Hopper(), "fp32", {"allow_decomposed_attention": True}, "standard"),
        (Rehearsal(), "fp16", {}, "standard"),
    ],
)
def test_our_kernel_is_the_default_where_it_runs(
    tiny_export: Path, flavor: TensorRt, precision: str, options: dict[str, Any], expected: str
) -> None:
    assert compiler(tiny_export, flavor, precision, **options).options["attention"] == expected


@pytest.mark.parametrize(
    ("flavor", "precision", "reason"),
    [
        (Rehearsal(), "fp16", r"the kernel is for sm90, and the engines are for sm89"),
        (Hopper(), "fp32", r"the kernel has no fp32"),
    ],
)
def test_our_kernel_where_it_does_not_run(
    tiny_export: Path, flavor: TensorRt, precision: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=f"--attention plugin: {reason}; use --attention standard"):
        compiler(tiny_export, flavor, precision, attention="plugin")


def test_without_a_gpu_tensorrt_cannot_measure(
    tiny_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise PluginError("no CUDA device 0 can be used: no driver")

    monkeypatch.setattr("longlive_trt.plugins.cuda.driver.device_facts", absent)
    with pytest.raises(PluginError, match="no CUDA device"):
        TensorRt().target(rtx, None)


def test_tensorrt_builds_only_for_the_gpu_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    from longlive_trt.plugins.cuda.driver import DeviceFacts

    facts = DeviceFacts(0, "NVIDIA H100 80GB HBM3", (9, 0), 132, 0)
    monkeypatch.setattr("longlive_trt.plugins.cuda.driver.device_facts", lambda: facts)
    assert TensorRt().target(rtx, "sm90") == Target(Architecture(9, 0), "NVIDIA H100 80GB HBM3")
    with pytest.raises(UsageError, match=r"--gpu sm89: TensorRT measures.*which is sm90"):
        TensorRt().target(rtx, "sm89")
