"""Full TensorRT is not installed where these tests run: what we call must be in its bindings.

The names are those of the binding library itself, which can be read without being loaded. Every
attribute in our sources that is neither of this package nor of a library that we know must be one
of them, whatever the variable before the dot is called. The stand-ins that other tests run our code
against have no other names either.
"""

import ast
import collections
import hashlib
import importlib
import importlib.util
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import psutil
import pytest

from longlive_trt.architectures import HOPPER
from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.engines.trt import flavors
from longlive_trt.engines.trt.flavors import FLAVORS, Target, TensorRt, TensorRtRtx
from tests.engines.trt.test_engine import FakeContext, FakeEngine
from tests.engines.trt.test_refit import FakeTensorRt

ROOT = Path(__file__).resolve().parents[3]
SOURCES = sorted(Path(flavors.__file__).parent.glob("*.py"))
# Our objects, and those of libraries, whose attributes our sources for TensorRT read.
KNOWN_OBJECTS: tuple[Any, ...] = (
    *(str, bytes, int, float, list, tuple, dict, set, Path, BaseException),
    *(re.Pattern, re.Match, collections.Counter, threading.Event, threading.Thread),
    *(os.stat_result, type(hashlib.sha256()), np.ndarray, np.dtype),
    *(psutil.Process, type(psutil.virtual_memory()), type(psutil.Process().memory_info())),
    *(ir.Model, ir.Graph, ir.Node, ir.Value, ir.Function, ir.Attr, ir.Shape, ir.TensorProtocol),
    *(ir.DataType, onnx.ModelProto),
)
KNOWN_MODULES = ("numpy", "onnx_ir", "onnx_ir.serde", "psutil", "re", "json", "os", "threading")
STANDARD_MODULES = ("fcntl", "hashlib", "importlib", "logging", "shutil", "tempfile", "time")


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


@pytest.fixture(scope="module")
def known_names() -> set[str]:
    """Of everything but TensorRT."""
    modules = [importlib.import_module(name) for name in (*KNOWN_MODULES, *STANDARD_MODULES)]
    names = {name for thing in (*KNOWN_OBJECTS, *modules) for name in dir(thing)}
    for area in ("longlive_trt", "configs", "engines", "plugins"):
        for path in (ROOT / area).rglob("*.py"):
            names |= set(defined_names(ast.parse(path.read_text())))
    return names


def defined_names(tree: ast.Module) -> Iterator[str]:
    """Functions, classes, fields, constants, and what objects are given by their own methods."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            # What is set on something else is not ours.
            yield from [node.attr] if ast.unparse(node.value) == "self" else []
    for node in tree.body:
        if isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def foreign_names(tree: ast.AST, known: set[str]) -> list[tuple[str, int]]:
    """Attributes that nobody but TensorRT can have."""
    return [
        (node.attr, node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr not in known
    ]


def parts_of(path: Path) -> tuple[ast.Module, ast.Module, ast.Module]:
    """What a module has for both, for TensorRT alone, and for TensorRT-RTX alone."""
    tree, only = ast.parse(path.read_text()), (TensorRt.__name__, TensorRtRtx.__name__)
    bodies: tuple[list[ast.stmt], ...] = ([], [], [])
    for node in tree.body:
        name = node.name if isinstance(node, ast.ClassDef) else ""
        bodies[only.index(name) + 1 if name in only else 0].append(node)
    both, tensorrt, rtx = (ast.Module(body, []) for body in bodies)
    return both, tensorrt, rtx


def missing(tree: ast.AST, known: set[str], *tables: NameTable) -> list[str]:
    """Names that none of the tables has."""
    return [
        f"line {line}: {name}"
        for name, line in foreign_names(tree, known)
        if not any(name in table for table in tables)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_our_code_uses_names_that_the_bindings_have(
    path: Path, known_names: set[str], tensorrt_names: NameTable, rtx_names: NameTable
) -> None:
    both, tensorrt, rtx = parts_of(path)
    assert missing(tensorrt, known_names, tensorrt_names) == []
    assert missing(rtx, known_names, rtx_names) == []
    if path == Path(flavors.__file__):
        # Functions of the one or the other.
        assert missing(both, known_names, tensorrt_names, rtx_names) == []
    else:
        assert missing(both, known_names, tensorrt_names) == []
        assert missing(both, known_names, rtx_names) == []


def test_the_reader_needs_no_names_of_variables(known_names: set[str]) -> None:
    source = (
        "a.build_serialized_network(b, c); d.e.set_tensor_address(f, 1); g.append(h.joinpath())"
    )
    found = {name for name, _ in foreign_names(ast.parse(source), known_names)}
    assert found - {"e"} == {"build_serialized_network", "set_tensor_address"}


def test_the_reader_sees_nearly_all_that_is_called(known_names: set[str]) -> None:
    found = {
        name
        for path in SOURCES
        for name, _ in foreign_names(ast.parse(path.read_text()), known_names)
    }
    assert len(found) > 80
    assert found >= {"execute_async_v3", "refit_cuda_engine", "create_timing_cache", "set_flag"}


@pytest.mark.parametrize("stand_in", [FakeContext, FakeEngine, FakeTensorRt])
def test_stand_ins_have_no_names_of_their_own(stand_in: type, tensorrt_names: NameTable) -> None:
    """What runs against them runs against the bindings, as far as names go."""
    names = {name for name in vars(stand_in) if not name.startswith("_")}
    assert names
    assert [name for name in sorted(names) if name not in tensorrt_names] == []


def test_each_flavor_has_a_class() -> None:
    assert {type(flavor) for flavor in FLAVORS.values()} == {TensorRt, TensorRtRtx}


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

    def __init__(self, names: NameTable, **results: Any) -> None:
        """``results`` of methods; others return None."""
        for name, value in (("_names", names), ("_results", results), ("record", {})):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        assert name in self._names, name
        if name == name.upper():
            return name
        if name[0].isupper():
            return Recorder(self._names)
        return lambda *arguments: self._called(name, arguments)

    def _called(self, name: str, arguments: tuple[Any, ...]) -> Any:
        self.record.setdefault(name, []).append(arguments)
        return self._results.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        assert name in self._names, name
        self.record[name] = value


def configured(names: NameTable, **options: Any) -> dict[str, Any]:
    config = Recorder(names)
    target = Target(HOPPER, "NVIDIA H100 80GB HBM3")
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


def test_an_engine_is_inspected_and_gets_a_context(tensorrt_names: NameTable) -> None:
    trt, engine = Recorder(tensorrt_names), Recorder(tensorrt_names)
    TensorRt().create_context(trt, engine, True)
    assert engine.record["create_execution_context"] == [("USER_MANAGED",)]
    assert TensorRt().network_flags(trt, plugin=False) == 0


def test_a_context_of_tensorrt_rtx(rtx_names: NameTable) -> None:
    config = Recorder(rtx_names)
    engine = Recorder(rtx_names, create_runtime_config=config)
    TensorRtRtx().create_context(Recorder(rtx_names), engine, False)
    assert config.record["cuda_graph_strategy"] == "DISABLED"
    assert engine.record["create_execution_context"] == [(config,)]
