"""Which compiler takes which option, and what is said when one is not there."""

import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from longlive_trt.commands.making.build import command
from longlive_trt.configs import ModelConfig
from longlive_trt.engines.compiler import BuildOptions, option_flag
from longlive_trt.engines.registry import compiler_named
from longlive_trt.engines.trt.flavors import FLAVORS, load_bindings
from longlive_trt.errors import EngineError, UsageError
from longlive_trt.extras import install_command, missing_module_message
from longlive_trt.precision import precision_named

FP16 = precision_named("fp16")
ONLY_TENSORRT = {
    "workspace_bytes": 1,
    "hardware_compatibility": "ampere-plus",
    "version_compatible": True,
    "refittable": True,
    "strip": True,
    "timing_cache": Path("timing"),
}
BOTH = {
    "gpu": "sm89",
    "batch": 2,
    "attention": "standard",
    "allow_decomposed_attention": True,
    "optimization_level": 3,
    "weight_streaming_bytes": 1,
}


WITHOUT_GPU = {name: value for name, value in BOTH.items() if name != "gpu"}


@pytest.mark.parametrize(("name", "value"), [*ONLY_TENSORRT.items(), *WITHOUT_GPU.items()])
def test_onnxruntime_takes_none_of_them_on_a_cpu(name: str, value: Any) -> None:
    options = BuildOptions(**{name: value})
    expected = f"{option_flag(name)} does not apply to --engine onnxruntime; leave it out"
    with pytest.raises(UsageError, match=expected):
        compiler_named("onnxruntime", options, FP16, ModelConfig())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *ONLY_TENSORRT.items(),
        *((name, value) for name, value in WITHOUT_GPU.items() if name != "batch"),
    ],
)
def test_for_a_gpu_onnxruntime_takes_a_batch_only(name: str, value: Any) -> None:
    assert (
        compiler_named(
            "onnxruntime", BuildOptions(gpu="sm90", batch=2), FP16, ModelConfig()
        ).options["batch"]
        == 2
    )
    with pytest.raises(UsageError, match=f"{option_flag(name)} does not apply"):
        compiler_named(
            "onnxruntime", BuildOptions(gpu="sm90", **{name: value}), FP16, ModelConfig()
        )


@pytest.mark.parametrize(("name", "value"), ONLY_TENSORRT.items())
def test_what_only_tensorrt_takes(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{option_flag(name)} does not apply to --engine tens"):
        compiler_named("tensorrt-rtx", BuildOptions(**{name: value}), FP16, ModelConfig())


def test_every_option_has_a_flag_of_the_command() -> None:
    flags = {flag for parameter in command.params for flag in parameter.opts}
    taken = {option_flag(name) for flavor in FLAVORS.values() for name in flavor.options}
    assert taken <= flags
    assert taken == {option_flag(name) for name in {*ONLY_TENSORRT, *BOTH}}


def test_an_unknown_engine_is_answered_with_the_known_ones() -> None:
    allowed = "allowed: onnxruntime, tensorrt, tensorrt-rtx"
    with pytest.raises(UsageError, match=allowed):
        compiler_named("tvm", BuildOptions(), FP16, ModelConfig())
    answer = CliRunner().invoke(command, ["--onnx", "x", "--out", "y", "--engine", "tvm"])
    assert answer.exit_code == 2
    assert "tensorrt-rtx" in answer.output


@pytest.mark.parametrize(
    ("engine", "modules", "extra"),
    [
        ("tensorrt", ["tensorrt"], "tensorrt"),
        ("tensorrt-rtx", ["tensorrt_rtx", "tensorrt_rtx_bindings"], "tensorrt-rtx"),
    ],
)
def test_without_its_package_the_extra_is_named(
    engine: str, modules: list[str], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError) as missing:
        compiler_named(engine, BuildOptions(), FP16, ModelConfig())
    said = missing_module_message(str(missing.value.name))
    assert said is not None
    assert install_command(extra) in said


def test_bindings_without_their_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken_bindings.py"
    broken.write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EngineError, match=r"broken_bindings is installed, but.*libnvinfer\.so"):
        load_bindings("broken_bindings")
