"""``longlive-trt fleet status`` and ``drain``: asked of a gateway, by HTTP."""

import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, urlsplit

import click

from longlive_trt.commands._voice import Voice, examples, speaking
from longlive_trt.console.wording import byte_size
from longlive_trt.errors import LongLiveError, UsageError
from longlive_trt.reading.documents import parse_json
from longlive_trt.reading.failures import refusing

_EXAMPLES = examples(
    "longlive-trt fleet status",
    "longlive-trt fleet drain HOST --server https://video.example.com --token SECRET",
)
_TIMEOUT_S = 180
_WIDTH = 12

server_option = click.option(
    "--server", default="http://localhost:8400", show_default=True, help="A gateway's address."
)
token_option = click.option(
    "--token", envvar="LONGLIVE_TOKEN", help="The fleet's token.  [or: LONGLIVE_TOKEN]"
)


@click.group(epilog=_EXAMPLES)
def command() -> None:
    """Show the hosts of a fleet, and empty one."""


@command.command()
@server_option
@token_option
@speaking
def status(server: str, token: str | None, voice: Voice) -> None:
    """All hosts with their slots, sessions and states."""
    facts = _ask("GET", server, "/v1/admin/hosts", token)
    try:
        table = _table(facts)
    except (KeyError, TypeError, ValueError):
        raise LongLiveError(f"{server}: its answer names no hosts; is it a gateway?") from None
    voice.result(table, facts)


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
    saved = _ask("POST", server, path, token)["saved"]
    words = (
        f"{host} takes sessions again"
        if undo
        else f"{host} is empty: {len(saved)} session{'' if len(saved) == 1 else 's'} moved"
    )
    voice.result(words, {"host": host, "draining": not undo, "states": saved})


def _ask(method: str, server: str, path: str, token: str | None) -> Any:
    if urlsplit(server).scheme not in ("http", "https"):
        raise UsageError(f"--server {server}: give an address with http:// or https://")
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    request = urllib.request.Request(  # noqa: S310
        server.rstrip("/") + path, headers=headers, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            data = answer.read()
    except urllib.error.HTTPError as error:
        raise LongLiveError(f"{server}: {_reason(error)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise LongLiveError(f"{server}: no gateway answers there ({reason})") from None
    with refusing(LongLiveError, server, "is it a fleet's gateway?"):
        return parse_json(data)


def _reason(error: urllib.error.HTTPError) -> str:
    if error.code == 404:
        return "no such host, or not a fleet's gateway; `fleet status` lists the hosts"
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {error.code}"


def _table(facts: Any) -> str:
    head = f"{'host':{_WIDTH}}{'sessions':>10}{'slots':>7}{'saves':>8}{'failed':>8}"
    head += f"{'state':>12}  process"
    lines = [head, *(_line(host) for host in facts["hosts"])]
    lines.append(
        f"{facts['running']} of {facts['slots']} slots taken, {facts['waiting']} waiting, "
        f"{facts['moving']} moving"
    )
    return "\n".join(lines)


def _line(host: Any) -> str:
    figures = host["figures"]
    draining = "  draining" if host["is_draining"] else ""
    state = byte_size(int(figures.get("state_bytes", 0)))
    return (
        f"{host['name']:{_WIDTH}}{host['running']:>10}{host['slots']:>7}"
        f"{int(figures.get('saves', 0)):>8}{int(figures.get('save_failures', 0)):>8}"
        f"{state:>12}  {host['node']}{draining}"
    )
