"""The registry of engines: one entry says all that others ask of a kind."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from longlive_trt.configs import ModelConfig
from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.engines.ort.cpu_compiler import OnnxRuntimeCompiler
from longlive_trt.engines.ort.gpu_compiler import OnnxRuntimeGpuCompiler
from longlive_trt.engines.registry import DEFAULT, KINDS, compiler_named
from longlive_trt.engines.trt.compiler import TensorRtCompiler
from longlive_trt.engines.trt.flavors import FLAVORS
from longlive_trt.errors import UsageError
from longlive_trt.extras import EXTRA_OF_MODULE
from longlive_trt.precision import precision_named

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = ROOT / "engines" / "registry.py"


def test_an_entry_is_found_by_its_name() -> None:
    assert list(KINDS) == ["onnxruntime", "tensorrt", "tensorrt-rtx"]
    assert all(kind.name == name for name, kind in KINDS.items())
    assert KINDS["onnxruntime"] is DEFAULT


def test_of_two_kinds_one_is_faster() -> None:
    assert len({kind.speed_rank for kind in KINDS.values()}) == len(KINDS)


def test_every_flavor_of_tensorrt_has_an_entry() -> None:
    assert FLAVORS.keys() == KINDS.keys() - {DEFAULT.name}


def test_the_extra_that_is_named_is_one() -> None:
    for kind in KINDS.values():
        command = kind.install_command("1.2.3")
        extra = command.partition("[")[2].partition("]")[0]
        assert extra in EXTRA_OF_MODULE.values() or kind.name in command


@pytest.mark.parametrize(
    ("engine", "options", "compiler"),
    [
        ("onnxruntime", BuildOptions(), OnnxRuntimeCompiler),
        ("onnxruntime", BuildOptions(gpu="sm90"), OnnxRuntimeGpuCompiler),
        ("tensorrt-rtx", BuildOptions(gpu="sm89"), TensorRtCompiler),
    ],
)
def test_compilers(engine: str, options: BuildOptions, compiler: type) -> None:
    if engine == "tensorrt-rtx":
        pytest.importorskip("tensorrt_rtx_bindings")
    found = compiler_named(engine, options, precision_named("fp16"), ModelConfig())
    assert isinstance(found, compiler)
    assert found.kind.kind == engine
    assert found.kind.version == KINDS[engine].library_version()


def test_an_unknown_kind() -> None:
    with pytest.raises(UsageError, match="engine abacus is unknown; allowed: onnxruntime, tens"):
        compiler_named("abacus", BuildOptions(), precision_named("fp16"), ModelConfig())


def comparisons(source: str) -> list[str]:
    """Where a kind's name is compared with something, or looked for in something."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        and any(
            name in ast.unparse(node)
            for name in ("engine.kind", ".KIND", *(f"'{kind}'" for kind in KINDS))
        )
    ]


@pytest.mark.parametrize("area", ["engines", "runtime", "longlive_trt/commands"])
def test_nobody_else_tells_kinds_apart(area: str) -> None:
    """Another kind of engines is one more entry, and no other change."""
    found = {
        str(path.relative_to(ROOT)): comparisons(path.read_text())
        for path in sorted((ROOT / area).rglob("*.py"))
        if path != REGISTRY
    }
    assert {path: texts for path, texts in found.items() if texts} == {}


def test_the_reader_sees_comparisons() -> None:
    reader: Callable[[str], list[str]] = comparisons
    assert reader("if bundle.manifest.engine.kind == other: pass")
    assert reader("if kind in ('tensorrt', 'tensorrt-rtx'): pass")
    assert not reader("KINDS[bundle.manifest.engine.kind].suffix")
