"""Every error that a user can cause, and the exit code it ends with.

``LongLiveError``        the base; exit code 1
├── ``UsageError``       the request itself is wrong (options, configuration, prompts); exit code 2
│   └── ``ConfigError``  a configuration key or value
├── ``CheckpointError``  weights that cannot be read, do not fit, or are not finite
├── ``ExportError``      a graph that could not be made, or does not compute what torch computes
├── ``BundleError``      a bundle that is incomplete, altered, newer, or made for something else
├── ``EngineError``      an engine that cannot be built, loaded or run here
│   └── ``NotFiniteError`` a block whose latents are not numbers
├── ``PluginError``      a kernel that cannot be compiled, or arguments it does not take
│   └── ``LostGpuError`` a fault after which nothing of this process runs on the GPU any more
└── ``OutputError``      a video, picture or state file that cannot be written

A message says what was wrong, where, and what to do.
"""

import re
from collections.abc import Iterable

_LONGEST_QUOTE, _QUOTE_HEAD, _QUOTE_TAIL = 200, 120, 60
_LONGEST_LINE, _LINE_HEAD, _LINE_TAIL = 1000, 500, 400
# What stands in quotes, and what has no space in it.
_QUOTES = re.compile(r"'[^'\n]{200,}'|\"[^\"\n]{200,}\"|\S{200,}")


class LongLiveError(Exception):
    """An expected failure; the command line prints its message without a traceback."""

    exit_code = 1


class UsageError(LongLiveError):
    exit_code = 2


class ConfigError(UsageError):
    pass


class CheckpointError(LongLiveError):
    pass


class ExportError(LongLiveError):
    pass


class BundleError(LongLiveError):
    pass


class EngineError(LongLiveError):
    pass


class NotFiniteError(EngineError):
    pass


class PluginError(LongLiveError):
    pass


class LostGpuError(PluginError):
    pass


class OutputError(LongLiveError):
    pass


def shortened(message: str, quoted: Iterable[str] = ()) -> str:
    """A message with at most some 200 characters of each thing that it quotes."""
    for text in quoted:
        for part in (text, text.partition("=")[2]):
            if len(part) > _LONGEST_QUOTE:
                message = message.replace(part, _cut(part, _QUOTE_HEAD, _QUOTE_TAIL))
    message = _QUOTES.sub(lambda quote: _cut(quote[0], _QUOTE_HEAD, _QUOTE_TAIL), message)
    lines = message.split("\n")
    return "\n".join(
        _cut(line, _LINE_HEAD, _LINE_TAIL) if len(line) > _LONGEST_LINE else line for line in lines
    )


def _cut(text: str, head: int, tail: int) -> str:
    return f"{text[:head]}[...]{text[-tail:]}"
