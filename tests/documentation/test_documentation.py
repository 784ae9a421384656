"""Every command that is written down is one that the program takes. Those that can run here are
run in ``test_documented_runs.py``.
"""

import importlib.util
import re
import tomllib
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement

from longlive_trt.cli import COMMANDS
from tests.documentation.documented import (
    OURS,
    PAGES,
    ROOT,
    Line,
    command_named,
    example_lines,
    lines,
    parse,
    shell_blocks,
)

# What a page starts beside our own command.
OTHERS = {"docker", "ffmpeg", "ffplay", "ssh", "eval", "cat", "curl", "echo", "printf"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def identified(line: Line) -> str:
    return f"{line.page}: {line.text[:60]}"


@pytest.mark.parametrize("line", lines() + example_lines(), ids=identified)
def test_a_command_is_one_that_its_program_takes(line: Line) -> None:
    for program, *arguments in line.commands:
        if program == OURS:
            parse([program, *arguments])
        elif program == "pip":
            check_requirements(arguments)
        elif program == "make":
            assert {word for word in arguments if "=" not in word} <= TARGETS
        elif program == "python":
            check_module(arguments)
        else:
            assert program in OTHERS or (ROOT / program).is_file(), program


def check_requirements(arguments: list[str]) -> None:
    """From the checkout: the package is on no index."""
    assert arguments[0] == "install"
    for text in (word for word in arguments[1:] if not word.startswith("-")):
        assert text.startswith(".")
        assert Requirement(f"here{text[1:]}").extras <= EXTRAS.keys()


def check_module(arguments: list[str]) -> None:
    assert arguments[0] == "-m"
    spec = importlib.util.find_spec(arguments[1])
    assert spec is not None and spec.origin is not None
    options = [word for word in arguments[2:] if word.startswith("--")]
    sources = [Path(spec.origin), *(ROOT / "benchmarks").glob("*.py")]
    text = "".join(path.read_text() for path in sources)
    assert all(f'"{option}"' in text for option in options)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_block_of_commands_is_overlooked(page: Path) -> None:
    blocks = re.findall(r"^```.*?^```", page.read_text(), re.MULTILINE | re.DOTALL)
    shown = [line for block in blocks for line in re.findall(f"^{OURS} .*$", block, re.MULTILINE)]
    found = [line for block in shell_blocks(page) for line in block]
    assert sum(line.text.startswith(f"{OURS} ") for line in found) == len(shown)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example(name: str) -> None:
    assert any(line.text.startswith(f"{OURS} {name}") for line in example_lines())


def parts_of(name: str, command: click.Command) -> dict[str, click.Command]:
    """A command, or those of a group."""
    if not isinstance(command, click.Group):
        return {name: command}
    return {f"{name} {part}": one for part, one in command.commands.items()}


@pytest.mark.parametrize("option", ["--quiet", "--json", "--overwrite"])
def test_an_option_means_the_same_everywhere(option: str) -> None:
    commands = {
        name: one for top in COMMANDS for name, one in parts_of(top, command_named(top)).items()
    }
    helps = {
        name: getattr(parameter, "help", None)
        for name, one in commands.items()
        for parameter in one.params
        if option in parameter.opts
    }
    if option in ("--quiet", "--json"):
        assert helps.keys() == commands.keys()
    assert len(set(helps.values())) == 1, helps
