"""The table of what a GPU measures, which must be right before there is one; and its runner."""

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import record
from benchmarks.gpu.machine import Machine, visible
from benchmarks.gpu.record import Outcome, Runner, chosen_names, line
from benchmarks.gpu.steps import PREPARATIONS, STEPS, TABLE, TWO_GPUS, Step
from tests.documentation.documented import parse

ROOT = Path(__file__).resolve().parents[1]
H200 = {"index": "0", "uuid": "GPU-0", "name": "NVIDIA H200", "compute_cap": "9.0"}
ALL = (*PREPARATIONS, *TWO_GPUS, *STEPS)
# Every program reads its own arguments as it does when it runs, and ends there.
PARSE = """
import argparse, json, runpy, sys
from _pytest.config import _prepareconfig

def parsing(original):
    def parse(*arguments, **options):
        original(*arguments, **options)
        raise SystemExit("parsed")
    return parse

argparse.ArgumentParser.parse_args = parsing(argparse.ArgumentParser.parse_args)
for module, arguments in json.load(sys.stdin):
    if module == "pytest":
        _prepareconfig(arguments)._ensure_unconfigure()
        continue
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)  # another one may have imported it
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert end.code == "parsed", (module, arguments)
    else:
        raise AssertionError(f"{module} has not read its arguments")
"""


def machine(count: int = 1, **changes: Any) -> Machine:
    options: dict[str, Any] = {"has_module": lambda _: True, "has_program": lambda _: True}
    gpus = [{**H200, "index": str(n), "uuid": f"GPU-{n}"} for n in range(count)]
    return Machine(tuple(gpus), **{**options, **changes})


# ---- the table -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Without the interpreter, or what it runs under: what Python is told."""
    folder = tmp_path_factory.mktemp("table")
    runner = Runner(machine(2), folder / "work", folder / "out")
    found = {step.name: runner.command(step) for step in ALL}
    return {name: words[words.index(sys.executable) + 1 :] for name, words in found.items()}


def test_names_and_files_are_told_apart() -> None:
    assert len(TABLE) == len(ALL)
    for names in ([s.record for s in ALL if s.record], [s.makes for s in ALL if s.makes]):
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("step", ALL, ids=lambda step: step.name)
def test_what_a_step_takes_is_made_by_what_it_needs(step: Step) -> None:
    made = {TABLE[name].makes for name in step.needs} | {step.makes}
    assert set(re.findall(r"\{work\}/([\w-]+)", step.command)) == made - {""}
    written = set(re.findall(r"\{out\}/([\w{}./-]+)", step.command))
    assert step.prints_record or not step.record or any(map(step.record.startswith, written))
    assert bool(step.makes) == (step in PREPARATIONS)


@pytest.mark.parametrize("step", ALL, ids=lambda step: step.name)
def test_what_a_step_reads_of_the_checkout_is_there(step: Step) -> None:
    words = shlex.split(step.command)
    paths = [word for word in words if word.startswith(("tests/", "demo/", "benchmarks/"))]
    assert all((ROOT / path).exists() for path in paths)
    if "pytest" not in words:
        return
    for path in paths:
        files = [ROOT / path] if path.endswith(".py") else (ROOT / path).rglob("test_*.py")
        assert any("mark.gpu" in file.read_text() for file in files), path


def test_every_test_of_a_gpu_is_in_a_step() -> None:
    paths = [w for step in ALL for w in step.command.split() if w.startswith("tests/")]
    for file in (ROOT / "tests").rglob("test_*.py"):
        name = str(file.relative_to(ROOT))
        if "pytest.mark.gpu" in file.read_text() and file != Path(__file__):
            assert any(name == path or name.startswith(f"{path}/") for path in paths), name


def test_our_command_takes_every_line(commands: Mapping[str, list[str]]) -> None:
    ours = [words for words in commands.values() if words[1] == "longlive_trt"]
    assert len(ours) > len(PREPARATIONS)
    for _, _, *words in ours:
        parse(["longlive-trt", *words])


@pytest.mark.exhaustive
def test_every_other_program_takes_its_line(commands: Mapping[str, list[str]]) -> None:
    for module in ("torch", "modelopt"):
        pytest.importorskip(module)
    others = [words[1:] for words in commands.values() if words[1] != "longlive_trt"]
    told = json.dumps([(module, arguments) for module, *arguments in others])
    child = subprocess.run(
        [sys.executable, "-c", PARSE],
        cwd=ROOT,
        input=told,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert child.returncode == 0, child.stderr[-3000:]


@pytest.mark.exhaustive
def test_a_flag_that_a_program_has_not_would_be_seen() -> None:
    pytest.importorskip("torch")
    told = json.dumps([("benchmarks.soak", ["bundle", "--block", "3", "--nothing"])])
    program = [sys.executable, "-c", PARSE]
    child = subprocess.run(program, cwd=ROOT, input=told, capture_output=True, text=True)
    assert child.returncode and "--nothing" in child.stderr


# ---- the runner ------------------------------------------------------------------------------

Make = Callable[..., Runner]


def step(name: str, code: str = "pass", seconds: int = 1, **options: Any) -> Step:
    return Step(name, "a test", shlex.join(["python", "-c", code]), seconds, **options)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def runner(*steps: Step, here: Machine | None = None, **options: Any) -> Runner:
        table = {one.name: one for one in steps}
        folders = (tmp_path / "the work", tmp_path / "out")
        return Runner(here or machine(), *folders, table=table, **options)

    return runner


def results(runner: Runner) -> dict[str, str]:
    return {name: outcome.result for name, outcome in runner.outcomes.items()}


def test_a_failure_does_not_end_the_others(make: Make, tmp_path: Path) -> None:
    runner = make(step("bad", "raise SystemExit('it broke')"), step("good", "print('5.5 ms')"))
    runner.run(["bad", "good"])
    assert results(runner) == {"bad": "failed", "good": "done"}
    assert (runner.outcomes["bad"].code, runner.outcomes["bad"].says) == (1, "it broke")
    assert runner.outcomes["good"].says == "5.5 ms"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["machine"]["gpus"] == [H200]
    assert summary["steps"]["bad"]["result"] == "failed"
    assert (tmp_path / "out" / "good.log").read_text() == "5.5 ms\n"


def test_what_takes_too_long_is_ended_with_what_it_started(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "_GRACE_S", 0.5)
    sign = tmp_path / "sign"
    child = f"import time; time.sleep(3); open({str(sign)!r}, 'w')"
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    runner = make(step("long", code, seconds=0), step("next", seconds=0), budget_s=1)
    started = time.monotonic()
    runner.run(["long", "next"])
    assert time.monotonic() - started < 10
    assert results(runner)["long"] == "too long"
    assert runner.outcomes["long"].says == "was ended after 1 s"
    time.sleep(max(0, started + 4.5 - time.monotonic()))
    assert not sign.exists()


def test_a_step_begins_if_it_fits_into_what_is_left(make: Make) -> None:
    runner = make(
        step("made", seconds=50, makes="made", gpus=0),
        step("large", seconds=60, needs=("made",)),
        step("small", seconds=20),
        budget_s=100,
    )
    runner.run(["large", "small"])
    # With what is made for it first, it would not.
    assert results(runner) == {"large": "skipped", "small": "done"}
    assert runner.outcomes["large"].says == "takes 110 s, and 100 s are left"


def test_what_is_needed_is_made_once(make: Make, tmp_path: Path) -> None:
    target = tmp_path / "the work" / "bundle"
    steps = (
        step("bundle", f"open({str(target)!r}, 'x')", makes="bundle", gpus=0),
        step("one", needs=("bundle",)),
        step("two", needs=("bundle",)),
    )
    runner = make(*steps)
    runner.run(["one", "two"])
    assert results(runner) == {"bundle": "done", "one": "done", "two": "done"}
    again = make(*steps)
    again.run(["one", "two"])
    assert results(again) == {"one": "kept", "two": "kept"}
    anew = make(*steps, again=["two"])
    anew.run(["one", "two"])
    assert results(anew) == {"one": "kept", "bundle": "kept", "two": "done"}


def test_without_what_it_needs_a_step_is_skipped(make: Make) -> None:
    steps = (step("bundle", "raise SystemExit(1)", makes="b"), step("one", needs=("bundle",)))
    runner = make(*steps)
    runner.run(["one"])
    assert results(runner) == {"bundle": "failed", "one": "skipped"}
    assert runner.outcomes["one"].says == "needs bundle, which is not there"


def test_only_what_failed_or_lost_its_record_is_done_again(make: Make, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    code = (
        f"import pathlib; marks = pathlib.Path({str(marks)!r}); found = marks.exists(); "
        "marks.touch(); raise SystemExit(not found)"
    )
    steps = (
        step("weak", code),
        step("strong", "print(3)", record="strong_{card}.json", prints_record=True),
    )
    expected = [("failed", "done"), ("done", "kept"), ("kept", "kept"), ("kept", "done")]
    for number, (weak, strong) in enumerate(expected):
        made = tmp_path / "out" / "strong_h200.json"
        if number == 3:
            made.unlink()
        runner = make(*steps)
        runner.run(["weak", "strong"])
        assert results(runner) == {"weak": weak, "strong": strong}
        assert made.read_text() == "3\n"


@pytest.mark.parametrize(
    ("options", "here", "reason"),
    [
        ({}, machine(0), "needs 1 GPU, and no GPUs can be used"),
        ({"gpus": 2}, machine(1), "needs 2 GPUs, and 1 GPU can be used"),
        ({"capability": (10, 0)}, machine(), "needs compute capability 10.0, and this GPU has 9.0"),
        (
            {"modules": ("json", "modelopt")},
            machine(has_module=lambda name: name != "modelopt"),
            "not installed: modelopt",
        ),
        ({"needs": ("made",)}, machine(0), "made: needs 2 GPUs, and no GPUs can be used"),
    ],
)
def test_what_is_missing_is_one_line(make: Make, options: Any, here: Machine, reason: str) -> None:
    options = {"gpus": 0, **options} if "needs" in options else options
    runner = make(step("made", makes="made", gpus=2), step("one", **options), here=here)
    runner.run(["one"])
    assert (runner.outcomes["one"].result, runner.outcomes["one"].says) == ("skipped", reason)
    assert "made" not in runner.outcomes


def test_a_tool_that_is_not_there_is_named(make: Make) -> None:
    tool = Step("checked", "a test", "compute-sanitizer --tool memcheck python -c pass", 1)
    runner = make(tool, here=machine(has_program=lambda _: False))
    runner.run(["checked"])
    assert runner.outcomes["checked"].says == "compute-sanitizer is not installed"


def test_tests_that_were_all_skipped_prove_nothing(make: Make) -> None:
    runner = make(step("tests", "print('7 skipped in 1 s')", says=" passed"))
    runner.run(["tests"])
    assert results(runner) == {"tests": "failed"}


def test_all_of_it_is_one_file_after_every_step(make: Make, tmp_path: Path) -> None:
    archive = tmp_path / "back" / "records.tar.gz"
    runner = make(step("one", "print(1)"), step("two", "raise SystemExit(1)"), archive=archive)
    runner.run(["one", "two"])
    with tarfile.open(archive) as found:
        names = set(found.getnames())
    assert {"./one.log", "./two.log", "./summary.json"} <= names


def test_steps_of_one_gpu_run_side_by_side_on_several(make: Make, tmp_path: Path) -> None:
    """Each waits until the other has begun; what both need is made once, and pairs go first."""
    target, order = tmp_path / "the work" / "bundle", tmp_path / "order"
    note = f"import os, time; from pathlib import Path; order = Path({str(order)!r}); "
    tell = "order.open('a').write(os.environ.get('CUDA_VISIBLE_DEVICES', 'all') + ' '); "
    meet = "limit = time.monotonic() + 30\n"
    meet += "while len(order.read_text().split()) < 3 and time.monotonic() < limit: time.sleep(0.1)"
    steps = (
        step("bundle", f"open({str(target)!r}, 'x')", makes="bundle", gpus=0),
        step("one", note + tell + meet, needs=("bundle",)),
        step("two", note + tell + meet, needs=("bundle",)),
        step("pair", note + tell, gpus=2),
    )
    # The first GPU of three is hidden.
    runner = make(*steps, here=replace(machine(3), gpus=machine(3).gpus[1:]))
    runner.run(["one", "two", "pair"])
    assert set(results(runner).values()) == {"done"}
    first, *others = order.read_text().split()
    assert first == "all"
    assert sorted(others) == ["1", "2"]


def test_told_to_end_it_ends_all_that_it_started(tmp_path: Path) -> None:
    code = f"""
import signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from benchmarks.gpu.record import Runner
from tests.test_gpu_records import machine, step
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
folder = Path({str(tmp_path)!r})
sleep = "import os, time; open({str(tmp_path)!r} + '/' + str(os.getpid()), 'x'); time.sleep(60)"
steps = [step(name, sleep) for name in ("one", "two", "three")]
runner = Runner(machine(2), folder / "w", folder / "o", table={{each.name: each for each in steps}})
runner.run(["one", "two", "three"])
"""
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    limit = time.monotonic() + 60
    while len(begun := [int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()]) < 2:
        assert time.monotonic() < limit and child.poll() is None
        time.sleep(0.1)
    child.terminate()
    assert child.wait(20) == 1
    for pid in begun:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert len([p for p in tmp_path.iterdir() if p.name.isdigit()]) == 2


def test_two_gpus_are_used_first_where_there_are_two() -> None:
    ones, twos = chosen_names(machine(1), None), chosen_names(machine(2), None)
    assert ones == [one.name for one in STEPS]
    assert twos == [one.name for one in (*TWO_GPUS, *STEPS)]
    assert chosen_names(machine(1), "soak,bf16") == ["soak", "bf16"]
    with pytest.raises(SystemExit, match="--only nothing: no such step"):
        chosen_names(machine(1), "soak,nothing")


@pytest.mark.parametrize(
    ("chosen", "indices"),
    [(None, "012"), ("1", "1"), ("2,0", "20"), ("GPU-1", "1"), ("", "")],
)
def test_gpus_that_are_hidden_are_not_used(chosen: str | None, indices: str) -> None:
    found = visible(list(machine(3).gpus), chosen)
    assert "".join(gpu["index"] for gpu in found) == indices


@pytest.mark.parametrize(
    ("name", "capability", "expected"),
    [
        ("NVIDIA H200", "9.0", {"card": "h200", "sm": "sm90"}),
        ("NVIDIA H100 80GB HBM3", "9.0", {"card": "h100", "sm": "sm90"}),
        ("NVIDIA GeForce RTX 4090", "8.9", {"card": "gpu", "sm": "sm89"}),
    ],
)
def test_names_follow_the_gpu(name: str, capability: str, expected: dict[str, str]) -> None:
    gpu = {"name": name, "compute_cap": capability}
    assert Machine((gpu,)).names == expected


def test_a_line_is_short() -> None:
    assert len(line("one", Outcome("failed", 3.2, 1, "x" * 500))) == 120


@pytest.mark.exhaustive
def test_the_list_shows_every_step() -> None:
    program = [sys.executable, "-m", "benchmarks.gpu.record", "--list"]
    shown = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"  {one.name} " in shown for one in ALL)
