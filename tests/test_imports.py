"""What may import what, and what must stay unimported."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
AREAS = sorted(
    init.parent.name for init in ROOT.glob("*/__init__.py") if init.parent.name != "longlive_trt"
)

# Which areas an area's modules may import; anything may import the package's `errors`, and its
# `extras` to say what to install.
MAY_IMPORT = {
    "configs": set[str](),
    "plugins": {"configs"},
    "engines": {"configs", "plugins"},
    "runtime": {"configs", "engines", "plugins"},
    "serving": {"configs", "engines", "plugins", "runtime"},
    "export": {"configs"},
    "calibration": {"configs", "export"},
}
# Above every area: only these know the command line.
COMMAND_LINE = {"cli", "commands", "doctor", "probes"}
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


def sources() -> list[Path]:
    tops = [ROOT / "longlive_trt", *(ROOT / area for area in AREAS)]
    return sorted(path for top in tops for path in top.rglob("*.py"))


def qualified_name(path: Path) -> list[str]:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return parts if parts[0] == "longlive_trt" else ["longlive_trt", *parts]


def imports_within_package(path: Path) -> Iterator[str]:
    """The part after ``longlive_trt.`` of all that a module imports from the package."""
    module = qualified_name(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = module[: -node.level] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            targets = [[*base, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        else:
            continue
        yield from (target[1] for target in targets if target[0] == "longlive_trt" and target[1:])


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


def test_every_area_has_a_rule() -> None:
    assert set(AREAS) <= MAY_IMPORT.keys()


@pytest.mark.parametrize("area", AREAS)
def test_dependencies_point_one_way(area: str) -> None:
    allowed = {area, *MAY_IMPORT[area]}
    forbidden = {*MAY_IMPORT, *COMMAND_LINE} - allowed
    faults = [
        f"{path.relative_to(ROOT)} imports {target}"
        for path in sorted((ROOT / area).rglob("*.py"))
        for target in imports_within_package(path)
        if target in forbidden
    ]
    assert faults == []


def test_the_import_reader_sees_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "runtime" / "module.py"
    module.parent.mkdir()
    module.write_text(
        "import longlive_trt.export.vae\n"
        "from longlive_trt import engines\n"
        "from .. import configs\n"
        "from ..plugins.launch import run\n"
        "from .ring import Ring\n"
        "def late():\n    from longlive_trt.calibration import rollout\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    found = list(imports_within_package(module))
    assert found == ["export", "engines", "configs", "plugins", "runtime", "calibration"]


def test_checkpoints_are_never_executed() -> None:
    unsafe = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in sources()
        for call in torch_load_calls(path)
        if "weights_only=True" not in {ast.unparse(keyword) for keyword in call.keywords}
    ]
    assert unsafe == []
