"""The package lists, the pins and the uninstalled checkout agree with what is there."""

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import longlive_trt
from longlive_trt.extras import EXTRA_OF_MODULE

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
AREAS = {path.parent for path in ROOT.glob("*/__init__.py")} - {ROOT / "longlive_trt"}


def test_every_area_is_linked_into_the_package() -> None:
    links = {path for path in (ROOT / "longlive_trt").iterdir() if path.is_symlink()}
    assert {link.resolve() for link in links} == AREAS
    assert all(str(link.readlink()) == f"../{link.name}" for link in links)


@pytest.mark.parametrize("area", sorted(path.name for path in AREAS))
def test_an_area_imports_as_a_part_of_the_package(area: str) -> None:
    module_file = import_module(f"longlive_trt.{area}").__file__
    assert module_file is not None
    assert Path(module_file).resolve().parent == ROOT / area


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for top in (*AREAS, ROOT / "longlive_trt") for path in top.rglob("*.py")}
    assert {folder for folder in folders if not (folder / "__init__.py").is_file()} == set()


def test_versions_agree() -> None:
    assert PYPROJECT["project"]["version"] == longlive_trt.__version__


def test_the_wheel_says_whose_it_is_and_where_its_model_comes_from() -> None:
    project = PYPROJECT["project"]
    assert project["authors"][0]["name"]
    assert project["urls"] and all(url.startswith("https://") for url in project["urls"].values())


def test_every_extra_that_errors_name_exists() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"].keys()
    assert {*EXTRA_OF_MODULE.values(), "cpu", "gpu", "ship"} <= extras


@pytest.mark.parametrize("extra", ["", *PYPROJECT["project"]["optional-dependencies"]])
def test_only_two_extras_bring_an_engine(extra: str) -> None:
    project = PYPROJECT["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    engines = {name for line in lines if (name := Requirement(line).name).startswith("onnxruntime")}
    assert engines == {"cpu": {"onnxruntime"}, "gpu": {"onnxruntime-gpu"}}.get(extra, set())


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def direct_requirements() -> list[Requirement]:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"].values()
    found = [Requirement(line) for line in sum(extras, project["dependencies"])]
    # Its libraries come from NVIDIA's own index, so that no pin of it can be tried.
    return [requirement for requirement in found if requirement.name != "tensorrt-cu13"]


@pytest.mark.parametrize("requirement", direct_requirements(), ids=str)
def test_direct_dependencies_are_pinned_within_their_range(requirement: Requirement) -> None:
    pinned = pins().get(canonicalize_name(requirement.name))
    assert pinned is not None, f"constraints.txt does not pin {requirement.name}"
    assert requirement.specifier.contains(pinned)


def test_constraints_pin_exactly_and_name_no_index() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert all(Requirement(line).specifier for line in pinned)
    assert all(line.count("==") == 1 and "://" not in line for line in pinned)
    assert len(pins()) == len(pinned)


def test_an_uninstalled_checkout_runs_from_anywhere(tmp_path: Path) -> None:
    # -S and -I leave out the editable installation and the current folder; the dependencies stay.
    paths = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    source = (
        f"import runpy, sys; sys.path[:0] = {paths!r}; sys.argv = ['cli.py', '--help'];"
        f"runpy.run_path({str(ROOT / 'cli.py')!r}, run_name='__main__')"
    )
    process = subprocess.run(
        [sys.executable, "-S", "-I", "-c", source],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "doctor" in process.stdout


def test_the_shim_is_the_command() -> None:
    (script,) = PYPROJECT["project"]["scripts"].items()
    assert script == ("longlive-trt", "longlive_trt.cli:main")
    process = subprocess.run(
        [sys.executable, ROOT / "cli.py", "no-such-command"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 2
    assert process.stderr.startswith("Usage: longlive-trt")
