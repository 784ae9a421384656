"""How what belongs to a user is shown: short, on one line, and never taken for markup."""

import io
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

QUOTED_CHARACTERS = 200
"""The most of one text or value that a message repeats."""
_LINE_CHARACTERS = 1000
# What stands in quotes, and what has no space in it.
_QUOTES = re.compile(r"'[^'\n]{200,}'|\"[^\"\n]{200,}\"|\S{200,}")


def quoted(value: object) -> str:
    """A value as Python writes it, the middle of a long one left out."""
    try:
        text = repr(value)
    except ValueError:
        # Python refuses to write numbers of thousands of digits.
        return "a number of thousands of digits"
    return cut(text)


def plain(value: object) -> str:
    """A text without quotes around it: printable characters only, and short."""
    return cut(escaped(str(value)))


def cut(text: str, most: int = QUOTED_CHARACTERS) -> str:
    """The beginning and the end of a long text."""
    if len(text) <= most:
        return text
    return f"{text[: most * 3 // 5]}[...]{text[-most * 3 // 10 :]}"


def escaped(text: str) -> str:
    """Control characters, and bytes that are not UTF-8, as escapes."""
    if text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def message_lines(message: str, arguments: Iterable[str] = ()) -> str:
    """An error's message for a terminal.

    Its own line ends stay; those in ``arguments`` of the command line, which it may repeat, go.
    """
    for argument in arguments:
        for part in (argument, argument.partition("=")[2]):
            if part.strip() and (len(part) > QUOTED_CHARACTERS or not part.isprintable()):
                message = message.replace(part, plain(part))
    return "\n".join(shortened(escaped(line)) for line in message.split("\n"))


def shortened(line: str) -> str:
    """With at most some 200 characters of each thing that it quotes."""
    return cut(_QUOTES.sub(lambda quote: cut(quote[0]), line), _LINE_CHARACTERS)


def console(
    *,
    file: TextIO | None = None,
    stderr: bool = False,
    file_width: int | None = None,
    force_terminal: bool | None = None,
) -> "Console":
    """Every console: a name with ``[/b]`` or ``:smile:`` in it is printed as it is.

    ``file_width``: of lines that go to something else than a terminal.
    """
    from rich.console import Console

    made = Console(
        file=file, stderr=stderr, force_terminal=force_terminal, markup=False, emoji=False
    )
    if file_width is not None and not made.is_terminal:
        made.width = file_width
    return made


def accept_every_character() -> None:
    """What a stream's encoding lacks is written as an escape, and is no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def storable(text: str) -> str:
    """A text that may hold bytes of a name, as UTF-8 can keep it."""
    return text.encode("utf-8", "backslashreplace").decode()


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
