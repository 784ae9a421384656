"""Full TensorRT is not installed where these tests run: what we call must be in its bindings.

The names are those of the binding library itself, which can be read without being loaded.
"""

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.engines.trt import flavors as tensorrt_flavors
from longlive_trt.engines.trt.flavors import Target, TensorRt

ENGINES = Path(tensorrt_flavors.__file__).parent
# What holds an object of TensorRT's own in our sources.
HOLDERS = {
    *("trt", "config", "builder", "network", "parser", "layer", "attention", "profile"),
    *("context", "cache", "ours", "theirs", "runtime", "refitter", "inspector", "formats"),
    *("_engine", "_runtime", "_context", "_trt", "strategies"),
}
RTX_CLASS = "TensorRtRtx"


def library(package: str, name: str) -> bytes:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed: pip install --no-deps {package_name(package)}")
    return (Path(spec.origin).parent / name).read_bytes()


def package_name(package: str) -> str:
    return package.replace("tensorrt_", "tensorrt-").replace("_bindings", "-cu13-bindings")


@dataclass(frozen=True)
class NameTable:
    """The strings of a library. Linkers let a string be the end of a longer one."""

    data: bytes = field(repr=False)

    def __contains__(self, name: object) -> bool:
        return str(name).encode() + b"\0" in self.data


@pytest.fixture(scope="module")
def tensorrt_names() -> NameTable:
    return NameTable(library("tensorrt_bindings", "tensorrt.so"))


@pytest.fixture(scope="module")
def rtx_names() -> NameTable:
    return NameTable(library("tensorrt_rtx_bindings", "tensorrt_rtx.so"))


def modules() -> list[Path]:
    """Those that call TensorRT."""
    parts = ("", "_attention", "_engine", "_flavors", "_graph", "_monitor", "_refit")
    return [ENGINES / f"tensorrt{part}.py" for part in parts] + [ENGINES / "timing_cache.py"]


def used_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every attribute of something that is TensorRT's: ``trt.Builder``, ``config.set_flag``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and root_of(node.value) in HOLDERS:
            yield node.attr, node.lineno


def root_of(node: ast.expr) -> str:
    """The name before the last dots: ``self._engine`` and ``trt.BuilderFlag`` count too."""
    while isinstance(node, ast.Attribute):
        if node.attr in HOLDERS:
            return node.attr
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def classes_of(path: Path) -> tuple[ast.Module, ast.Module]:
    """The module without what only TensorRT-RTX runs, and that alone."""
    tree = ast.parse(path.read_text())
    only_rtx = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == RTX_CLASS]
    only_rtx += [n for n in tree.body if isinstance(n, ast.FunctionDef) and "rtx" in n.name]
    rest = [node for node in tree.body if node not in only_rtx]
    return ast.Module(rest, []), ast.Module([*only_rtx], [])


# What Python's own objects have, and what the packages' Python files add.
OWN_NAMES = {"__version__", "__class__", "removesuffix"}


def test_the_reader_finds_what_is_used() -> None:
    tree = ast.parse("trt.BuilderFlag.REFIT; self._engine.num_io_tensors; config.set_flag(x)")
    assert {name for name, _ in used_names(tree)} == {
        "BuilderFlag",
        "REFIT",
        "num_io_tensors",
        "set_flag",
    }


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_shared_code_uses_names_that_both_bindings_have(
    path: Path, tensorrt_names: NameTable, rtx_names: NameTable
) -> None:
    shared, only_rtx = classes_of(path)
    assert missing(shared, tensorrt_names) == []
    assert missing(only_rtx, rtx_names) == []
    if path.stem != "tensorrt_flavors":
        assert missing(shared, rtx_names) == []


def missing(tree: ast.Module, table: NameTable) -> list[str]:
    return [
        f"line {line}: {name}"
        for name, line in used_names(tree)
        if name not in table and name not in OWN_NAMES
    ]


def test_the_flavors_differ_where_the_bindings_do(
    tensorrt_names: NameTable, rtx_names: NameTable
) -> None:
    only_rtx = {"num_compute_capabilities", "set_compute_capability", "CudaGraphStrategy"}
    for name in only_rtx:
        assert name in rtx_names
        assert name not in tensorrt_names
    assert "set_flags_of" not in tensorrt_names
    assert "PREFER_AOT_PYTHON_PLUGINS" in tensorrt_names
    assert "PREFER_AOT_PYTHON_PLUGINS" not in rtx_names


class Recorder:
    """Stands for a TensorRT object: takes only names that the bindings have."""

    def __init__(self, names: NameTable, record: dict[str, Any] | None = None) -> None:
        object.__setattr__(self, "_names", names)
        object.__setattr__(self, "record", {} if record is None else record)

    def __getattr__(self, name: str) -> Any:
        assert name in self._names, name
        if name == name.upper():
            return name
        if name[0].isupper():
            return Recorder(self._names)
        return lambda *arguments: self.record.setdefault(name, []).append(arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        assert name in self._names, name
        self.record[name] = value


def configured(names: NameTable, **options: Any) -> dict[str, Any]:
    config = Recorder(names)
    target = Target((9, 0), "NVIDIA H100 80GB HBM3")
    TensorRt().configure(Recorder(names), config, target, BuildOptions(**options))
    recorded: dict[str, Any] = config.record
    return recorded


def test_tensorrt_is_configured_as_asked(tensorrt_names: NameTable) -> None:
    plain = configured(tensorrt_names)
    assert plain == {"set_flag": [("EDITABLE_TIMING_CACHE",)]}
    asked = configured(
        tensorrt_names,
        workspace_bytes=1 << 30,
        hardware_compatibility="ampere-plus",
        version_compatible=True,
        strip=True,
    )
    assert asked["set_memory_pool_limit"] == [("WORKSPACE", 1 << 30)]
    assert asked["hardware_compatibility_level"] == "AMPERE_PLUS"
    flags = {flag for (flag,) in asked["set_flag"]}
    assert flags >= {"VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL"}


@pytest.mark.parametrize("options", [{"refittable": True}, {"refittable": True, "strip": True}])
def test_refitting_with_other_weights_excludes_the_promise_of_the_same(
    tensorrt_names: NameTable, options: dict[str, Any]
) -> None:
    flags = {flag for (flag,) in configured(tensorrt_names, **options)["set_flag"]}
    assert "REFIT" in flags
    assert "REFIT_IDENTICAL" not in flags


def test_same_capability_is_the_level_of_that_name(tensorrt_names: NameTable) -> None:
    asked = configured(tensorrt_names, hardware_compatibility="same-capability")
    assert asked["hardware_compatibility_level"] == "SAME_COMPUTE_CAPABILITY"
