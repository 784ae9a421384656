"""Each rule of docs/robustness.md has one place: nothing else parses, or opens a console."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AREAS = ("configs", "engines", "runtime", "calibration", "export", "serving", "plugins", "quality")
LINKED = (*AREAS, "demo")
FACE = ("longlive_trt/*.py", "longlive_trt/*/*.py", "longlive_trt/commands/*/*.py")
OWN_WORDS = {
    # What this program, its server, pip or a child of it has just written.
    *("configs/dump.py", "longlive_trt/client.py", "longlive_trt/extras.py"),
    *("longlive_trt/probes.py", "plugins/kernels/registry.py"),
    *("longlive_trt/commands/shipping/inspect.py", "longlive_trt/commands/making/build.py"),
    "serving/cluster/journal.py",
}
PLACES = {
    "json.loads": {"longlive_trt/reading/documents.py", *OWN_WORDS},
    "json.load": set[str](),
    "yaml.safe_load": set[str](),
    "yaml.load": set[str](),
    "safe_open": set[str](),
    "load_file": set[str](),
    "Console": {"longlive_trt/console/printing.py"},
    "urllib.request.urlopen": {"longlive_trt/reading/answers.py", "longlive_trt/client.py"},
}


def sources() -> Iterator[Path]:
    for area in AREAS:
        yield from (ROOT / area).rglob("*.py")
    for pattern in FACE:
        yield from (p for p in ROOT.glob(pattern) if p.relative_to(ROOT).parts[1] not in LINKED)


def calls(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("call", PLACES)
def test_one_place(call: str) -> None:
    found = {str(path.relative_to(ROOT)) for path in sources() if call in calls(path)}
    assert found <= PLACES[call]
    assert PLACES[call] <= found, "a place that is none any more"
