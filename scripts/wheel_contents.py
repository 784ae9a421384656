"""Compare a wheel with the checkout it was built from: ``wheel_contents.py WHEEL CHECKOUT``.

Every file of the package and of the areas linked into it must be inside once, and nothing else.
"""

import os
import sys
import zipfile
from collections import Counter
from pathlib import Path

PACKAGE = "longlive_trt"


def expected_files(checkout: Path) -> Counter[str]:
    names: Counter[str] = Counter()
    for folder, subfolders, files in os.walk(checkout / PACKAGE, followlinks=True):
        subfolders[:] = [name for name in subfolders if name != "__pycache__"]
        names.update(str((Path(folder) / name).relative_to(checkout)) for name in files)
    return names


def packaged_files(wheel: Path) -> Counter[str]:
    names = zipfile.ZipFile(wheel).namelist()
    return Counter(name for name in names if ".dist-info/" not in name and not name.endswith("/"))


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
