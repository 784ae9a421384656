"""The commands of README.md, docs/ and the commands' own help, as a reader would type them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from longlive_trt.cli import COMMANDS, LazyGroup, cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OURS = "longlive-trt"

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SHELL = ("", "sh")
_OPERATORS = {"|", "||", "&&", ";", ">", "<", ">>"}
_VARIABLE = re.compile(r"[A-Z_]+=\S*")
_PROGRAM = re.compile(r"[a-z][\w./-]*")


@dataclass(frozen=True)
class Line:
    """One line of a block, its continuations joined and its comment gone."""

    page: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each program that it starts."""
        lexer = shlex.shlex(self.text, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        found: list[list[str]] = [[]]
        for word in lexer:
            if word in _OPERATORS:
                found.append([])
            elif found[-1] or not _VARIABLE.fullmatch(word):
                found[-1].append(word)
        return [words for words in found if words]


def lines() -> list[Line]:
    return [line for page in PAGES for block in shell_blocks(page) for line in block]


def shell_blocks(page: Path) -> list[list[Line]]:
    """Those whose every line begins with the name of a program."""
    text = page.read_text(encoding="utf-8")
    found = (
        list(_lines_of(page.name, block)) for kind, block in _BLOCK.findall(text) if kind in _SHELL
    )
    return [block for block in found if block and all(map(_is_command, block))]


def example_lines() -> list[Line]:
    """Those at the end of each command's help."""
    return [
        Line(f"{name} --help", text.strip())
        for name in COMMANDS
        for text in (command_named(name).epilog or "").splitlines()
        if text.startswith("  ")
    ]


def command_named(name: str) -> click.Command:
    assert isinstance(cli, LazyGroup)
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"no command {name}"
    return command


def parse(words: list[str]) -> click.Context:
    """By the real parser; click's errors say what it does not take."""
    name, *arguments = words[1:]
    return command_named(name).make_context(name, arguments)


def _lines_of(page: str, block: str) -> Iterator[Line]:
    for line in block.replace("\\\n", " ").splitlines():
        text = re.sub(r"(^|\s)#.*$", "", line).strip()
        if text:
            yield Line(page, text)


def _is_command(line: Line) -> bool:
    try:
        words = line.commands[0]
    except ValueError:
        return False
    return _PROGRAM.fullmatch(words[0]) is not None and len(words) > 1 and "──" not in line.text
