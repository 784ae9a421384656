"""As much of the module ``tensorrt`` as the validator of ``tensorrt.plugin`` looks at.

The validator itself is the real one, pure Python inside the package tensorrt-cu13-bindings; only
the compiled library underneath is replaced.
"""

import enum
import importlib.util
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

DataType = enum.Enum("DataType", "FLOAT HALF BF16 INT64 INT32 INT8 FP8 INT4")
TensorFormat = enum.Enum("TensorFormat", "LINEAR")
DimensionOperation = enum.Enum(
    "DimensionOperation", "SUM SUB PROD FLOOR_DIV CEIL_DIV EQUAL LESS MAX MIN"
)
QuickPluginCreationRequest = enum.Enum(
    "QuickPluginCreationRequest", "STRICT_AOT STRICT_JIT PREFER_AOT PREFER_JIT UNKNOWN"
)
PluginFieldType = enum.Enum(
    "PluginFieldType", "INT8 INT16 INT32 INT64 FLOAT16 FLOAT32 FLOAT64 CHAR UNKNOWN"
)


class IDimensionExpr:
    """A dimension that is a number, or unknown until run time."""

    def __init__(self, value: int | None) -> None:
        self.value = value

    def is_constant(self) -> bool:
        return self.value is not None

    def get_constant_value(self) -> int | None:
        return self.value


class ExprBuilder:
    _OPERATIONS: ClassVar = {
        DimensionOperation.SUM: lambda a, b: a + b,
        DimensionOperation.PROD: lambda a, b: a * b,
        DimensionOperation.FLOOR_DIV: lambda a, b: a // b,
    }

    def constant(self, value: int) -> IDimensionExpr:
        return IDimensionExpr(value)

    def operation(self, op: Any, a: IDimensionExpr, b: IDimensionExpr) -> IDimensionExpr:
        known = a.value is not None and b.value is not None
        return IDimensionExpr(self._OPERATIONS[op](a.value, b.value) if known else None)


class Dims(list[int]):
    MAX_DIMS = 8


class PluginField:
    def __init__(self, name: str, data: Any, kind: Any) -> None:
        self.name, self.data, self.type = name, data, kind


class PluginTensorDesc:
    dims: Any = ()
    type: Any = None
    format: Any = TensorFormat.LINEAR
    scale: float = 1.0


class DynamicPluginTensorDesc:
    def __init__(self, dims: tuple[int, ...], dtype: Any) -> None:
        self.desc = PluginTensorDesc()
        self.desc.dims, self.desc.type = dims, dtype


class Registry:
    def __init__(self) -> None:
        self.creators: dict[tuple[str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> None:
        self.creators[namespace, creator.name] = creator

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return next(
            creator
            for (space, _), creator in self.creators.items()
            if space == namespace and creator.plugin_version == version
        )


class StubModule(types.ModuleType):
    """Whatever else is asked for is an empty class to derive from."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (), {"__init__": lambda self, *args: None})
        setattr(self, name, value)
        return value


def find_validator() -> Path | None:
    spec = importlib.util.find_spec("tensorrt_bindings")
    locations = list(spec.submodule_search_locations or []) if spec else []
    folders = [Path(location) / "plugin" for location in locations]
    return next((folder for folder in folders if (folder / "_validate.py").is_file()), None)


def install(validator: Path, monkeypatch: Any) -> Any:
    """Puts the stub and the real ``tensorrt.plugin`` in place for one test."""
    stub = StubModule("tensorrt")
    stub.__path__ = []
    registry = Registry()
    members: dict[str, Any] = {
        "DataType": DataType,
        "TensorFormat": TensorFormat,
        "DimensionOperation": DimensionOperation,
        "QuickPluginCreationRequest": QuickPluginCreationRequest,
        "PluginFieldType": PluginFieldType,
        "IDimensionExpr": IDimensionExpr,
        "Dims": Dims,
        "DimsExprs": lambda count: [None] * count,
        "PluginField": PluginField,
        "PluginFieldCollection": list,
        "PluginTensorDesc": PluginTensorDesc,
        "DynamicPluginTensorDesc": DynamicPluginTensorDesc,
        "PluginArgType": enum.Enum("PluginArgType", "INT"),
        "PluginArgDataType": enum.Enum("PluginArgDataType", "INT8 INT16 INT32"),
        "get_plugin_registry": lambda: registry,
        "float32": DataType.FLOAT,
        "int32": DataType.INT32,
    }
    for name, value in members.items():
        setattr(stub, name, value)
    stub.Logger = type("Logger", (), {"WARNING": 1, "log": lambda self, level, text: None})
    for name in [n for n in sys.modules if n == "tensorrt" or n.startswith("tensorrt.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorrt", stub)
    spec = importlib.util.spec_from_file_location(
        "tensorrt.plugin", validator / "__init__.py", submodule_search_locations=[str(validator)]
    )
    assert spec is not None and spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugin)
    before = set(sys.modules)
    spec.loader.exec_module(plugin)
    for name in set(sys.modules) - before:
        if name.startswith("tensorrt.plugin."):
            monkeypatch.setitem(sys.modules, name, sys.modules.pop(name))
    return plugin


class LaunchParams:
    pass


class SymbolSetter(dict[int, Any]):
    nbSymExprs = 0  # noqa: N815 - TensorRT's name


def build_plugin(
    name: str,
    types: Sequence[Any],
    shapes: Sequence[tuple[int | None, ...]],
    attributes: Mapping[str, Any],
    tactic: int,
) -> SimpleNamespace:
    """The calls that TensorRT makes while it builds an engine, in its order."""
    import tensorrt

    creator = tensorrt.get_plugin_registry().creators["longlive", name]
    fields = [PluginField(key, value, None) for key, value in attributes.items()]
    request = QuickPluginCreationRequest.STRICT_AOT
    made = creator.create_plugin(name, "longlive", fields, None, request)
    output_types = made.get_output_data_types(list(types), [len(shape) for shape in shapes])
    builder, count = ExprBuilder(), len(shapes)
    symbolic = [[IDimensionExpr(n) for n in shape] for shape in shapes]
    outputs = made.get_output_shapes(symbolic, [], builder)
    output_shapes = [tuple(e.value for e in expressions) for expressions in outputs]
    described = [
        DynamicPluginTensorDesc(tuple(-1 if n is None else n for n in shape), kind)
        for shape, kind in zip([*shapes, *output_shapes], [*types, *output_types], strict=True)
    ]
    combinations = made.get_supported_format_combinations(described, count)
    made.configure_plugin(described[:count], described[count:])
    tactics = made.get_valid_tactics()
    made.set_tactic(tactic)
    launch, symbols = LaunchParams(), SymbolSetter()
    all_symbolic = [*symbolic, *outputs]
    made.get_launch_params(all_symbolic, described, count, launch, symbols, builder)
    inside, outside = [d.desc for d in described[:count]], [d.desc for d in described[count:]]
    kernel_name, code = made.get_kernel(inside, outside)
    return SimpleNamespace(
        output_types=output_types,
        output_shapes=output_shapes,
        combinations=combinations,
        tactics=tactics,
        launch=launch,
        arguments=[symbols[i].expr.value for i in range(symbols.nbSymExprs)],
        name=kernel_name,
        code=code,
    )


def parameter_kinds(code: bytes, entry: str) -> list[str]:
    """The types of a kernel's parameters, as its PTX declares them."""
    text = code.decode()
    signature = text[text.index(f".entry {entry}(") :]
    signature = signature[: signature.index(")")]
    return [line.split()[1] for line in signature.splitlines() if ".param" in line]
