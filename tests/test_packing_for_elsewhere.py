"""What a machine without network needs, packed and unpacked again."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.gpu import pack
from benchmarks.gpu.pack import listed, missing, roots, unpack_wheels, write_parts, write_tree

NEEDS = {
    "engine-gpu": ["plain", 'numbers>=2; extra == "cuda"', 'never; python_version < "3.10"'],
    "numbers": ["plain<9", 'odd; extra == "other"'],
    "plain": [],
    "tool": ["engine-gpu"],
}


def wheel(folder: Path, name: str) -> Path:
    stem = f"{name.replace('-', '_')}-3.0"
    path = folder / f"{stem}-py3-none-any.whl"
    with ZipFile(path, "w") as archive:
        needs = "".join(f"Requires-Dist: {need}\n" for need in NEEDS[name])
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 3.0\n{needs}"
        archive.writestr(f"{stem}.dist-info/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{stem}.dist-info/WHEEL", tags)
        archive.writestr(f"{stem}.dist-info/RECORD", "")
        module = name.replace("-", "_")
        archive.writestr(f"{module}/__init__.py", f"name = {name!r}\n")
        archive.writestr(f"{module}/libwide.so", "large")
    return path


@pytest.mark.parametrize(
    ("wanted", "have", "expected"),
    [
        ("engine-gpu", "", ["engine-gpu", "plain"]),
        ("engine-gpu[cuda]", "", ["engine-gpu", "numbers", "plain"]),
        ("tool", "Engine_GPU==1.0\n", ["tool"]),
        # What is there does not fit.
        ("engine-gpu[cuda]>=2", "engine-gpu==1.0\nplain 5\n", ["engine-gpu", "numbers"]),
        ("numbers", "plain==9.5\n", ["numbers", "plain"]),
    ],
)
def test_what_is_missing_is_fetched_with_what_it_needs(
    tmp_path: Path, wanted: str, have: str, expected: list[str]
) -> None:
    found = missing(
        [Requirement(wanted)], listed(have), "3.12", lambda need: wheel(tmp_path, need.name)
    )
    assert sorted(found) == expected


def test_what_comes_with_one_pack_is_left_out_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "roots", lambda _: [Requirement("engine-gpu[cuda]")])
    monkeypatch.setattr(
        pack, "fetching", lambda folder, _: lambda need: wheel(folder, canonicalize_name(need.name))
    )
    (tmp_path / "there.txt").write_text("engine-gpu==3.0\n")
    there, first = tmp_path / "there.txt", tmp_path / "first"
    packed: list[str] = []
    monkeypatch.setattr(
        pack, "unpack_wheels", lambda wheels, *_: packed.extend(path.stem for path in wheels)
    )

    def run(out: Path, *given: str | Path) -> list[str]:
        packed.clear()
        line = ["pack", "--no-tree", "--out", str(out), "--have", *map(str, given)]
        monkeypatch.setattr(sys, "argv", line)
        pack.main()
        return sorted(stem.split("-")[0] for stem in packed)

    assert run(first, there, "--also", "numbers") == ["numbers", "plain"]
    assert (first / "packages.txt").read_text() == "numbers==3.0\nplain==3.0\n"
    assert run(tmp_path / "second", first / "packages.txt") == ["engine_gpu"]


def test_extras_are_those_of_the_project() -> None:
    names = {requirement.name for requirement in roots(["gpu", "serve"])}
    assert {"numpy", "onnxruntime-gpu", "websockets"} <= names
    with pytest.raises(SystemExit, match="no such extra"):
        roots(["gpus"])


def test_parts_give_the_same_files_there(tmp_path: Path) -> None:
    packed, out, there = (tmp_path / name for name in ("packed", "out", "there"))
    packed.mkdir()
    unpack_wheels([wheel(tmp_path, name) for name in NEEDS], packed / "site", "3.12", ["*/lib*.so"])
    parts = write_parts(packed, out, 1000)
    assert len(parts) > 1 and all(part.stat().st_size <= 1000 for part in parts)
    program = ["sh", str(out / "unpack.sh"), str(there)]
    said = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    assert said.strip() == f"cd {there}/tree && export PYTHONPATH={there}/site"
    assert (there / "site" / "engine_gpu" / "__init__.py").read_text() == "name = 'engine-gpu'\n"
    assert not list(there.rglob("libwide.so"))


def test_the_tree_is_what_is_committed(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree")
    # Areas are linked into the package.
    assert (tmp_path / "tree" / "longlive_trt" / "runtime" / "session.py").is_file()
    assert not (tmp_path / "tree" / ".git").exists()
