"""What a machine without network needs to run this checkout: the tree, and packages it lacks.

    python -m benchmarks.gpu.pack --extras gpu,serve,quantize --have there.txt --out out/packed
    sh out/packed/unpack.sh FOLDER                     # there, beside the parts

`there.txt` is what `pip list --format=freeze` prints there. What of that fits is left out, with all
that it needs itself. The rest comes as wheels, with the versions of constraints.txt, unpacked into
one folder for PYTHONPATH. The tree is HEAD's. Both are cut into parts of at most --part-mib.
What was packed is listed in ``packages.txt``, which --have takes too: a package that is named to
the first of two packs comes with the second, and work begins there before it has come.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from email.parser import HeaderParser
from fnmatch import fnmatch
from pathlib import Path
from zipfile import ZipFile

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.harness import ROOT, parser

_NEWEST_GLIBC, _OLDEST_GLIBC = 39, 5
_LISTED = re.compile(r"([A-Za-z0-9][\w.-]*)(?:==(\S+))?")
UNPACK = """\
#!/bin/sh
# Joins and unpacks the parts beside it:  sh unpack.sh FOLDER
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1" && cd "$1"
cat "$here"/part.* | python3 -c '
import sys, tarfile
tarfile.open(fileobj=sys.stdin.buffer, mode="r|xz").extractall(".", filter="tar")'
echo "cd $PWD/tree && export PYTHONPATH=$PWD/site"
"""

Fetch = Callable[[Requirement], Path]
"""The wheel of a requirement, without what it needs."""


def roots(extras: Iterable[str]) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = project["optional-dependencies"]
    unknown = [extra for extra in extras if extra not in known]
    if unknown:
        raise SystemExit(f"--extras {','.join(unknown)}: no such extra; there are {list(known)}")
    lines = [*project["dependencies"], *(line for extra in extras for line in known[extra])]
    return [Requirement(line) for line in lines]


def listed(text: str) -> dict[str, str | None]:
    """Versions by name; None where a line has no version."""
    found = (_LISTED.match(line) for line in text.splitlines())
    return {canonicalize_name(match[1]): match[2] for match in found if match}


def missing(
    wanted: Sequence[Requirement], have: Mapping[str, str | None], python: str, fetch: Fetch
) -> dict[str, Path]:
    """Wheels by name: of what is wanted, and of what those need, as far as it is not there."""
    environment = {name: str(value) for name, value in default_environment().items()}
    environment |= {"python_version": python, "python_full_version": f"{python}.0"}
    wheels: dict[str, Path] = {}
    asked: set[tuple[str, str]] = set()
    waiting = [(each, frozenset({""})) for each in wanted]
    while waiting:
        requirement, of_extras = waiting.pop(0)
        name, extras = canonicalize_name(requirement.name), frozenset({"", *requirement.extras})
        marker = requirement.marker
        applies = marker is None or any(
            marker.evaluate({**environment, "extra": extra}) for extra in of_extras
        )
        new = {extra for extra in extras if (name, extra) not in asked}
        if not applies or not new or _is_there(requirement, have):
            continue
        asked |= {(name, extra) for extra in new}
        if name not in wheels:
            wheels[name] = fetch(requirement)
        waiting += [(each, frozenset(new)) for each in _needs(wheels[name])]
    return wheels


def _is_there(requirement: Requirement, have: Mapping[str, str | None]) -> bool:
    name = canonicalize_name(requirement.name)
    version = have.get(name)
    return name in have and (version is None or requirement.specifier.contains(version, True))


def _needs(wheel: Path) -> list[Requirement]:
    with ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if fnmatch(name, "*.dist-info/METADATA"))
        headers = HeaderParser().parsestr(archive.read(metadata).decode("utf-8"))
    return [Requirement(line) for line in headers.get_all("Requires-Dist", [])]


def _for_there(python: str) -> list[str]:
    """Options of pip: wheels of another Python, for the common builds of Linux."""
    machine = os.uname().machine
    numbers = range(_NEWEST_GLIBC, _OLDEST_GLIBC - 1, -1)
    names = [*(f"manylinux_2_{n}" for n in numbers), "manylinux2014", "manylinux1"]
    platforms = [f"--platform={name}_{machine}" for name in names]
    return ["--only-binary=:all:", f"--python-version={python}", *platforms]


def _pip(*arguments: str) -> None:
    quiet = ("--disable-pip-version-check", "-q", "--no-deps")
    command, *rest = arguments
    subprocess.run([sys.executable, "-m", "pip", command, *quiet, *rest], check=True)


def fetching(folder: Path, python: str) -> Fetch:
    def fetch(requirement: Requirement) -> Path:
        before = set(folder.iterdir())
        wish = f"{requirement.name}{requirement.specifier}"
        pins = ["-c", str(ROOT / "constraints.txt")]
        _pip("download", *pins, *_for_there(python), "-d", str(folder), wish)
        (wheel,) = set(folder.iterdir()) - before
        print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB", flush=True)
        return wheel

    return fetch


def unpack_wheels(wheels: Iterable[Path], site: Path, python: str, left_out: Sequence[str]) -> None:
    files = [str(wheel) for wheel in wheels]
    site.mkdir()
    if files:
        _pip(
            *("install", "--no-index", "--no-compile", *_for_there(python)),
            *("--target", str(site), *files),
        )
    for path in sorted(site.rglob("*")):
        if path.is_file() and any(fnmatch(str(path.relative_to(site)), one) for one in left_out):
            path.unlink()


def write_parts(folder: Path, out: Path, part_bytes: int) -> list[Path]:
    """All that is in the folder, compressed and cut."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("part.*"):
        old.unlink()
    pack, pipe, parts = ["tar", "-C", str(folder), "-c", "."], subprocess.PIPE, []
    with (
        subprocess.Popen(pack, stdout=pipe) as tar,
        subprocess.Popen(["xz", "-6", "-T0"], stdin=tar.stdout, stdout=pipe) as xz,
    ):
        for number, piece in enumerate(_pieces(xz, part_bytes)):
            parts.append(out / f"part.{number:02d}")
            parts[-1].write_bytes(piece)
    if tar.returncode or xz.returncode:
        raise SystemExit("tar or xz failed: see above")
    (out / "unpack.sh").write_text(UNPACK)
    return parts


def _pieces(program: "subprocess.Popen[bytes]", size: int) -> Iterator[bytes]:
    assert program.stdout is not None
    while piece := program.stdout.read(size):
        yield piece


def _line(package: tuple[str, Path]) -> str:
    """As `pip list --format=freeze` has it."""
    name, wheel = package
    return f"{name}=={wheel.name.split('-')[1]}\n"


def write_tree(folder: Path) -> None:
    """What is committed, and nothing that is ignored."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "-C", str(folder), "-x"], input=archive.stdout, check=True)


def main() -> None:
    options = parser(__doc__, out=False)
    options.add_argument("--extras", default="gpu", help="of pyproject.toml, with commas between")
    options.add_argument("--also", nargs="*", default=[], metavar="REQUIREMENT")
    options.add_argument(
        "--have", type=Path, nargs="*", default=[], metavar="FILE", help="what is installed there"
    )
    options.add_argument("--python", default="3.12", help="the version there")
    options.add_argument("--no-tree", action="store_true", help="packages alone")
    options.add_argument("--leave-out", nargs="*", default=[], metavar="PATTERN", help="of files")
    options.add_argument("--part-mib", type=int, default=44)
    options.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    given = options.parse_args()
    have = listed("\n".join(path.read_text(encoding="utf-8") for path in given.have))
    wanted = [*roots(given.extras.split(",")), *map(Requirement, given.also)]
    with tempfile.TemporaryDirectory() as scratch:
        wheels, packed = Path(scratch) / "wheels", Path(scratch) / "packed"
        wheels.mkdir()
        packed.mkdir()
        found = missing(wanted, have, given.python, fetching(wheels, given.python))
        unpack_wheels(found.values(), packed / "site", given.python, given.leave_out)
        if not given.no_tree:
            write_tree(packed / "tree")
        parts = write_parts(packed, given.out, given.part_mib << 20)
    (given.out / "packages.txt").write_text("".join(map(_line, found.items())), encoding="utf-8")
    for part in parts:
        print(f"{part}: {part.stat().st_size / 2**20:.1f} MiB")
    print(f"{len(found)} packages; there: sh unpack.sh FOLDER")


if __name__ == "__main__":
    main()
