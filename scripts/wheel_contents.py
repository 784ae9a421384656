"""Compare a wheel with the checkout it was built from: ``wheel_contents.py WHEEL CHECKOUT``.

Every source, configuration and kernel file of the packages must be inside, and nothing else.
"""

import sys
import tomllib
import zipfile
from pathlib import Path


def expected_files(checkout: Path) -> set[str]:
    setuptools = tomllib.loads((checkout / "pyproject.toml").read_text())["tool"]["setuptools"]
    files: set[str] = set()
    for package in setuptools["packages"]:
        folder = checkout / setuptools["package-dir"][package]
        for pattern in ("*.py", *setuptools["package-data"].get(package, [])):
            found = (path for path in folder.glob(pattern) if path.is_file())
            files |= {f"{package.replace('.', '/')}/{path.relative_to(folder)}" for path in found}
    return files


def packaged_files(wheel: Path) -> set[str]:
    names = zipfile.ZipFile(wheel).namelist()
    return {name for name in names if ".dist-info/" not in name and not name.endswith("/")}


def main() -> int:
    wheel, checkout = map(Path, sys.argv[1:])
    expected, packaged = expected_files(checkout), packaged_files(wheel)
    for name in sorted(expected - packaged):
        sys.stderr.write(f"wheel: error: {name} is not in {wheel.name}\n")
    for name in sorted(packaged - expected):
        sys.stderr.write(f"wheel: error: {wheel.name} holds {name}, which no package owns\n")
    return 1 if expected != packaged else 0


if __name__ == "__main__":
    sys.exit(main())
