"""``longlive-trt fleet status`` and ``drain``: asked of a gateway, by HTTP."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar
from urllib.parse import quote

import click

from longlive_trt.commands._voice import Voice, examples, speaking
from longlive_trt.console.printing import plain
from longlive_trt.console.wording import byte_size
from longlive_trt.errors import LongLiveError, UsageError
from longlive_trt.reading.answers import Answer, ask, require_address
from longlive_trt.reading.failures import ReadingError, refusing
from longlive_trt.reading.shapes import field, structured

_EXAMPLES = examples(
    "longlive-trt fleet status",
    "longlive-trt fleet drain HOST --server https://video.example.com --token SECRET",
)
_TIMEOUT_S = 180
_WIDTH = 12
_IS_IT_ONE = "is it a fleet's gateway?"

T = TypeVar("T")

server_option = click.option(
    "--server", default="http://localhost:8400", show_default=True, help="A gateway's address."
)
token_option = click.option(
    "--token", envvar="LONGLIVE_TOKEN", help="The fleet's token.  [or: LONGLIVE_TOKEN]"
)


@click.group(epilog=_EXAMPLES)
def command() -> None:
    """Show the hosts of a fleet, and empty one."""


@dataclass(frozen=True)
class _Host:
    name: str
    node: str
    slots: int
    running: int
    is_draining: bool
    bundle_key: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class _Fleet:
    hosts: tuple[Any, ...]
    slots: int
    running: int
    waiting: int
    moving: int


@dataclass(frozen=True)
class _Drained:
    saved: tuple[str, ...]


@command.command()
@server_option
@token_option
@speaking
def status(server: str, token: str | None, voice: Voice) -> None:
    """All hosts with their slots, sessions and states."""
    facts = _ask("GET", server, "/v1/admin/hosts", token)
    with refusing(LongLiveError, f"{server}: its answer", _IS_IT_ONE):
        fleet = _known(_Fleet, facts)
        hosts = [_known(_Host, host) for host in fleet.hosts]
    voice.result(_table(fleet, hosts), facts)


@command.command()
@click.argument("host")
@click.option("--undo", is_flag=True, help="Let sessions in again.")
@server_option
@token_option
@speaking
def drain(host: str, undo: bool, server: str, token: str | None, voice: Voice) -> None:
    """Let no session in at HOST any more, and give those that run there to other hosts.

    Each goes on where it was, with the same bits; HOST can be switched off then.
    """
    undone = "?undo=true" if undo else ""
    path = f"/v1/admin/hosts/{quote(host, safe='')}/drain{undone}"
    answer = _ask("POST", server, path, token)
    with refusing(LongLiveError, f"{server}: its answer", _IS_IT_ONE):
        saved = _known(_Drained, answer).saved
    words = (
        f"{host} takes sessions again"
        if undo
        else f"{host} is empty: {len(saved)} session{'' if len(saved) == 1 else 's'} moved"
    )
    voice.result(words, {"host": host, "draining": not undo, "states": saved})


def _ask(method: str, server: str, path: str, token: str | None) -> Any:
    require_address("--server", server)
    if token is not None and not (token.isascii() and token.isprintable()):
        raise UsageError("--token: characters that no header can carry; give the fleet's token")
    with refusing(LongLiveError, server, _IS_IT_ONE):
        answer = ask(method, server.rstrip("/") + path, token, seconds=_TIMEOUT_S)
    if not 200 <= answer.status < 300:
        raise LongLiveError(f"{server}: {_reason(answer)}")
    with refusing(LongLiveError, f"{server}: its answer", _IS_IT_ONE):
        return answer.values()


def _reason(answer: Answer) -> str:
    """What a gateway says is wrong, or what can be said of another's answer."""
    if answer.status == 404:
        return "no such host, or not a fleet's gateway; `fleet status` lists the hosts"
    try:
        error = field(Mapping[str, Any], answer.values(), "the answer").get("error")
        message = field(Mapping[str, Any], error, "error").get("message")
        return plain(field(str, message, "error.message"))
    except ReadingError:
        return f"the server answered {answer.status}; {_IS_IT_ONE}"


def _known(kind: type[T], values: Any) -> T:
    """A later version may say more than is read here."""
    names = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    if isinstance(values, Mapping):
        values = {name: value for name, value in values.items() if name in names}
    return structured(kind, values)


def _table(fleet: _Fleet, hosts: list[_Host]) -> str:
    head = f"{'host':{_WIDTH}}{'sessions':>10}{'slots':>7}{'saves':>8}{'failed':>8}"
    head += f"{'state':>12}  process"
    last = (
        f"{fleet.running} of {fleet.slots} slots taken, {fleet.waiting} waiting, "
        f"{fleet.moving} moving"
    )
    return "\n".join([head, *map(_line, hosts), last, *_differing(hosts)])


def _differing(hosts: list[_Host]) -> list[str]:
    """Sessions of one bundle cannot go to hosts that have another."""
    counts = Counter(host.bundle_key for host in hosts)
    if len(counts) < 2:
        return []
    keys = ", ".join(f"{plain(key[:16])} on {count}" for key, count in counts.most_common())
    return [f"Hosts have different bundles: {keys}; sessions stay with those of their own."]


def _line(host: _Host) -> str:
    figures = host.figures
    draining = "  draining" if host.is_draining else ""
    state = byte_size(int(figures.get("state_bytes", 0)))
    return (
        f"{plain(host.name):{_WIDTH}}{host.running:>10}{host.slots:>7}"
        f"{int(figures.get('saves', 0)):>8}{int(figures.get('save_failures', 0)):>8}"
        f"{state:>12}  {plain(host.node)}{draining}"
    )
