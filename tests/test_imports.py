"""What may import what, and what must stay unimported."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
AREAS = sorted(
    init.parent.name for init in ROOT.glob("*/__init__.py") if init.parent.name != "longlive_trt"
)
PACKAGE = "longlive_trt"

# By unit (a folder, or a module of the face), the units that it may import besides itself; what is
# in a folder without a rule of its own belongs to the folder above. Modules of the face without a
# rule, such as the commands, may import anything, and nothing below them may import them.
FOUNDATION = {
    *("errors", "basics", "console", "files", "contract", "dtypes", "architectures", "reading"),
    *("adapters", "ahead", "hadamard"),
}
ONNX = {"precision", "exports"}
ENGINES = {*FOUNDATION, *ONNX, "configs", "engines", "engines.bundles"}
RULES = {
    **{
        name: set[str]()
        for name in (
            "errors",
            "ahead",
            "basics",
            "architectures",
            "hadamard",
            "probes",
        )
    },
    "console": {"errors", "basics"},
    "reading": {"errors", "basics", "console"},
    "files": {"errors", "reading", "console"},
    "adapters": {"errors", "basics", "reading", "console", "files"},
    **{name: {"errors"} for name in ("contract", "dtypes")},
    "extras": {"errors", "probes"},
    "doctor": {"architectures", "extras", "probes", "console"},
    "precision": FOUNDATION,
    "exports": {*FOUNDATION, "configs"},
    "configs": FOUNDATION,
    "plugins.cuda": FOUNDATION,
    "plugins.attention": {*FOUNDATION, "plugins.cuda"},
    "plugins.kernels": {*FOUNDATION, "plugins.cuda", "plugins.attention"},
    "plugins": {*FOUNDATION, "plugins.cuda", "plugins.attention", "plugins.kernels"},
    "engines.bundles": {*ENGINES, "extras"},
    "engines.graphs": {*FOUNDATION, *ONNX, "configs", "plugins.attention", "plugins.kernels"},
    "engines.ort": {
        *ENGINES,
        *("extras", "engines.graphs"),
        *("plugins", "plugins.cuda", "plugins.attention", "plugins.kernels"),
    },
    "engines.trt": {*ENGINES, "plugins.cuda", "plugins.attention"},
    "engines": {
        *ENGINES,
        *("extras", "engines.ort", "engines.trt"),
        *("plugins", "plugins.cuda"),
    },
    "runtime.bench": {
        *FOUNDATION,
        *("configs", "exports", "engines", "engines.bundles", "plugins.cuda", "runtime"),
    },
    "runtime": {
        *FOUNDATION,
        *("configs", "exports", "engines", "engines.bundles"),
        *("plugins.cuda", "plugins.attention", "plugins.kernels"),
    },
    "export.models": {*FOUNDATION, "configs"},
    "export.checkpoints": {*FOUNDATION, "configs"},
    "export": {*FOUNDATION, *ONNX, "configs", "extras", "export.models", "export.checkpoints"},
    "calibration": {
        *FOUNDATION,
        *ONNX,
        *("configs", "export", "export.models", "export.checkpoints"),
    },
    "serving": {
        *FOUNDATION,
        *("configs", "engines", "engines.bundles", "runtime"),
    },
    "demo": {*FOUNDATION, "configs", "exports", "export.models"},
    "quality": {
        *FOUNDATION,
        *("configs", "engines", "engines.bundles", "runtime", "runtime.bench", "demo"),
    },
}
# The package `export` can be called, as the function of its name is the public one.
CALLS_ITS_FUNCTION = "export imports making.exporting"
COMPILERS_AND_TORCH = {"torch", "tensorrt", "tensorrt_bindings", "tensorrt_rtx_bindings"}

LOADED_AFTER_IMPORTING = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
sys.stdout.write("\\n".join({name.partition(".")[0] for name in sys.modules}))
"""
LOADED_AFTER_HELP = """
import sys
from longlive_trt.cli import main
assert main(["--help"]) == 0
sys.stdout.write("\\n" + "\\n".join({name.partition(".")[0] for name in sys.modules}))
"""
WITHOUT_AN_ENGINE_LIBRARY = """
import importlib, sys
sys.modules["onnxruntime"] = None
for name in sys.argv[1:]:
    importlib.import_module(name)
sys.stdout.write("\\n".join(sys.modules))
"""


def loaded_modules(source: str, *arguments: str) -> set[str]:
    process = subprocess.run(
        [sys.executable, "-c", source, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return set(process.stdout.split())


def find_modules(root: Path) -> dict[str, Path]:
    """Every module of the product by its name without the package's."""
    modules = {}
    for top in (root / PACKAGE, *(root / area for area in AREAS)):
        for path in sorted(top.rglob("*.py")):
            inner = path.relative_to(root).with_suffix("")
            # The package has links to the areas beside it.
            if inner.parts[0] == PACKAGE and len(inner.parts) > 2 and inner.parts[1] in AREAS:
                continue
            parts = [part for part in inner.parts if part not in (PACKAGE, "__init__")]
            modules[".".join(parts)] = path
    return modules


@pytest.fixture(scope="module")
def modules() -> dict[str, Path]:
    return find_modules(ROOT)


def unit_of(module: str) -> str:
    """The longest beginning of a module's name that has a rule; itself in the face without one."""
    parts = module.split(".")
    beginnings = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in beginnings if name in RULES), parts[0])


def imported(tree: ast.AST, module: str, known: Mapping[str, Path]) -> Iterator[str]:
    """Modules of the product that are imported there, by their names without the package's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = _base_of(node, module, known)
            names = [[*base, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] == PACKAGE:
                yield from _known_beginning(name[1:], known)


def _base_of(node: ast.ImportFrom, module: str, known: Mapping[str, Path]) -> list[str]:
    named = node.module.split(".") if node.module else []
    if not node.level:
        return named
    own = [PACKAGE, *module.split(".")]
    is_package = known[module].name == "__init__.py" if module in known else False
    return own[: len(own) - node.level + is_package] + named


def _known_beginning(parts: list[str], known: Mapping[str, Path]) -> Iterator[str]:
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in known:
            yield ".".join(parts[:length])
            return


def module_level(tree: ast.Module) -> ast.Module:
    """Without what is inside functions, which may run later or never."""

    class Outside(ast.NodeTransformer):
        def visit_FunctionDef(self, _node: ast.FunctionDef) -> None:
            return None

    stripped: ast.Module = Outside().visit(tree)
    return stripped


def find_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Some modules that import each other in a circle; empty if there is none."""
    finished: set[str] = set()
    for start in graph:
        path: list[str] = []
        stack = [(start, False)]
        while stack:
            module, is_left = stack.pop()
            if is_left:
                finished.add(path.pop())
            elif module in path:
                return [*path[path.index(module) :], module]
            elif module not in finished:
                path.append(module)
                stack.append((module, True))
                stack += [(target, False) for target in sorted(graph.get(module, ()))]
    return []


def torch_load_calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            yield node


@pytest.mark.parametrize("area", ["configs", "engines", "plugins", "runtime"])
def test_areas_import_neither_torch_nor_a_compiler(area: str) -> None:
    loaded = loaded_modules(LOADED_AFTER_IMPORTING, f"longlive_trt.{area}")
    assert "longlive_trt" in loaded
    assert not loaded & COMPILERS_AND_TORCH


def test_help_imports_nothing_heavy() -> None:
    loaded = loaded_modules(LOADED_AFTER_HELP)
    assert "click" in loaded
    assert not loaded & (COMPILERS_AND_TORCH | {"onnx", "onnxruntime", "numpy", "av"})


def test_all_but_onnxruntimes_engines_is_there_without_it() -> None:
    """A base installation has no library that runs engines."""
    names = ("engines.registry", "engines.loader", "engines.build", "runtime.assembly")
    loaded = loaded_modules(WITHOUT_AN_ENGINE_LIBRARY, *(f"longlive_trt.{n}" for n in names))
    assert "longlive_trt.engines.registry" in loaded
    assert not {name for name in loaded if name.startswith("longlive_trt.engines.ort.")}
    assert not {name for name in loaded if name.startswith("longlive_trt.engines.trt.")}


def test_every_area_has_a_rule() -> None:
    assert set(AREAS) <= RULES.keys()
    assert {target for allowed in RULES.values() for target in allowed} <= RULES.keys()


@pytest.mark.parametrize("unit", RULES)
def test_dependencies_point_one_way(unit: str, modules: dict[str, Path]) -> None:
    allowed = {unit, *RULES[unit], ""}
    faults = [
        f"{module} imports {target}"
        for module, path in modules.items()
        if module and unit_of(module) == unit
        for target in imported(ast.parse(path.read_text()), module, modules)
        if unit_of(target) not in allowed
    ]
    assert faults == ([CALLS_ITS_FUNCTION] if unit == "export" else [])


def test_no_modules_import_each_other_in_a_circle(modules: dict[str, Path]) -> None:
    graph = {
        module: {
            target
            for target in imported(module_level(ast.parse(path.read_text())), module, modules)
            if target not in (module, "")
        }
        for module, path in modules.items()
        # The package's own names come from all over, when they are asked for.
        if module
    }
    assert find_cycle(graph) == []


def test_a_circle_is_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []


def test_what_is_imported_late_is_no_circle() -> None:
    tree = ast.parse("import longlive_trt.cli\ndef late():\n    import longlive_trt.errors\n")
    known = {"cli": Path("cli.py"), "errors": Path("errors.py")}
    assert list(imported(module_level(tree), "x", known)) == ["cli"]


def test_the_import_reader_sees_every_form() -> None:
    source = (
        "import longlive_trt.export.models.vae\n"
        "from longlive_trt import contract, engines\n"
        "from longlive_trt.configs import load_config\n"
        "from ..plugins.cuda.driver import check\n"
        "from .ring import Ring\n"
        "from typing import Any\n"
        "def late():\n    from longlive_trt.calibration import cache\n"
    )
    names = (
        *("export.models.vae", "contract", "engines", "configs", "plugins.cuda.driver"),
        *("runtime.ring", "runtime.session", "calibration.cache"),
    )
    known = {name: Path(f"{name}.py") for name in names}
    found = list(imported(ast.parse(source), "runtime.session", known))
    assert found == [
        *("export.models.vae", "contract", "engines", "configs", "plugins.cuda.driver"),
        *("runtime.ring", "calibration.cache"),
    ]


@pytest.mark.parametrize(
    ("module", "unit"),
    [
        ("plugins.kernels.gemm", "plugins.kernels"),
        ("plugins.onnxruntime_bridge", "plugins"),
        ("runtime.memory.cuda", "runtime"),
        ("engines.registry", "engines"),
        ("contract", "contract"),
        ("commands.making.build", "commands"),
    ],
)
def test_units(module: str, unit: str) -> None:
    assert unit_of(module) == unit


def test_checkpoints_are_never_executed(modules: dict[str, Path]) -> None:
    unsafe = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in modules.values()
        for call in torch_load_calls(path)
        if "weights_only=True" not in {ast.unparse(keyword) for keyword in call.keywords}
    ]
    assert unsafe == []
