"""Whatever answers where a fleet's gateway is asked for: one line, exit code 1, and no waiting."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from longlive_trt.cli import main
from longlive_trt.commands.running import fleet
from longlive_trt.reading.documents import JSON_BYTES

HOST = {
    "name": "host-1",
    "node": "n",
    "slots": 2,
    "running": 0,
    "is_draining": False,
    "bundle_key": "k",
    "figures": {"saves": 3.0},
}
FACTS = {"hosts": [HOST], "slots": 2, "running": 0, "waiting": 0, "moving": 0}
STATUS = ("status",)
DRAIN = ("drain", "host-1")

Serve = Callable[[socket.socket], None]


@contextmanager
def server(serve: Serve, heads: list[bytes] | None = None) -> Iterator[str]:
    """Reads one request of each caller, and then does what is to be tried."""
    heads = [] if heads is None else heads
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                heads.append(connection.recv(65_536))
                serve(connection)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        # A thread in accept() is only woken by shutting down, not by closing.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def sends(body: bytes, status: str = "200 OK", *, length: int | None = None) -> Serve:
    size = len(body) if length is None else length
    head = f"HTTP/1.1 {status}\r\ncontent-length: {size}\r\nconnection: close\r\n\r\n".encode()
    return lambda connection: connection.sendall(head + body)


def answers(values: object, status: str = "200 OK") -> Serve:
    return sends(json.dumps(values).encode(), status)


def without(*keys: str) -> dict[str, object]:
    return {key: value for key, value in FACTS.items() if key not in keys}


def with_host(**changes: object) -> dict[str, object]:
    return {**FACTS, "hosts": [{**HOST, **changes}]}


def stays_silent(connection: socket.socket) -> None:
    connection.recv(1)


def drips(connection: socket.socket) -> None:
    """For two seconds a byte now and then, so that no single read is late."""
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    for _ in range(100):
        connection.sendall(b" ")
        time.sleep(0.02)


def grows(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(JSON_BYTES // (1 << 20) + 8):
        connection.sendall(b"[" * (1 << 20))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_TIMEOUT_S", 10)


def refusal(address: str, command: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> str:
    assert main(["fleet", *command, "--server", address]) == 1
    out, error = capfd.readouterr()
    assert out == ""
    assert error.startswith(f"error: {address}: ") and error.count("\n") == 1
    assert "Traceback" not in error and error.strip().isprintable()
    return error


@pytest.mark.parametrize("command", [STATUS, DRAIN])
@pytest.mark.parametrize(
    ("serve", "words"),
    [
        pytest.param(lambda _: None, "no answer that can be read", id="hangs up"),
        pytest.param(
            lambda connection: connection.sendall(b"\x00\xff\x1b[31mSSH-2.0\r\n\r\n"),
            "no answer that can be read",
            id="rubbish",
        ),
        pytest.param(sends(b'{"saved": [', length=99), "not valid JSON", id="cut short"),
        pytest.param(sends(b"<html>\x1b"), "not valid JSON", id="a page"),
        pytest.param(sends(b"\xff\xfe"), "not valid UTF-8", id="no text"),
        pytest.param(sends(b"[" * 100_000), "nested deeper", id="brackets"),
        pytest.param(sends(b'{"saved": NaN}'), "not valid JSON", id="NaN"),
        pytest.param(answers([1, 2]), "expected keys and values", id="a list"),
        pytest.param(answers(None), "expected keys and values", id="nothing"),
        pytest.param(answers({"data": []}), "is missing", id="other keys"),
        pytest.param(grows, "larger than 16 MiB", id="huge"),
        pytest.param(answers("no", "500 Oh"), "the server answered 500", id="failure, odd"),
        pytest.param(sends(b"\xff", "503 Oh"), "the server answered 503", id="failure, rubbish"),
        pytest.param(sends(b"{}", "304 Not"), "the server answered 304", id="not modified"),
        pytest.param(
            answers({"error": {"message": ["x"]}}, "400 Oh"),
            "the server answered 400",
            id="failure, no text",
        ),
        pytest.param(
            answers({"error": {"message": "a\x1b[2J\nb" + "x" * 10_000}}, "400 Oh"),
            r"a\x1b[2J\nbxxx",
            id="failure, control characters",
        ),
    ],
)
def test_what_is_no_gateway(
    command: tuple[str, ...], serve: Serve, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with server(serve) as address:
        assert words in refusal(address, command, capfd)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (without("moving"), "moving is missing"),
        ({**FACTS, "hosts": {}}, "hosts is {}; allowed: a list"),
        ({**FACTS, "hosts": [7]}, "expected keys and values, found int"),
        ({**FACTS, "slots": "many"}, "slots is 'many'; allowed: a whole number"),
        (with_host(name=None), "name is None; allowed: a text"),
        (with_host(figures={"saves": []}), "figures.saves is []; allowed: a number"),
        (with_host(is_draining="no"), "is_draining is 'no'"),
    ],
)
def test_hosts_of_another_shape(
    values: object, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with server(answers(values)) as address:
        assert words in refusal(address, STATUS, capfd)


@pytest.mark.parametrize("saved", [3, {"a": 1}, [1], None, "abc"])
def test_states_of_another_shape(saved: object, capfd: pytest.CaptureFixture[str]) -> None:
    with server(answers({"status": "drained", "saved": saved})) as address:
        assert "saved" in refusal(address, DRAIN, capfd)


@pytest.mark.parametrize("serve", [stays_silent, drips])
def test_nothing_is_waited_for_longer(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fleet, "_TIMEOUT_S", 0.3)
    begun = time.monotonic()
    with server(serve) as address:
        error = refusal(address, STATUS, capfd)
        assert time.monotonic() - begun < 1.5, "a byte now and then is no answer"
    assert "within 0.3 s" in error or "timed out" in error


def test_what_a_later_gateway_says_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    values = with_host(name="h\x1b[31m", weather="fine")
    with server(answers({**values, "weather": "fine"})) as address:
        assert main(["fleet", "status", "--server", address]) == 0
    table = capfd.readouterr().out
    assert "h\\x1b[31m" in table and "\x1b" not in table
    assert table.splitlines()[-1] == "0 of 2 slots taken, 0 waiting, 0 moving"


def test_a_token_stays_with_its_server() -> None:
    """Where an answer leads to another server, that one is asked without it."""
    heads: list[bytes] = []
    with server(answers(FACTS), heads) as other:
        found = f"HTTP/1.1 302 Found\r\nlocation: {other}\r\ncontent-length: 0\r\n\r\n".encode()
        with server(lambda connection: connection.sendall(found)) as address:
            assert main(["fleet", "status", "--server", address, "--token", "secret"]) == 0
    assert len(heads) == 1 and b"secret" not in heads[0]


@pytest.mark.parametrize(
    "address",
    [
        *("localhost", "http://", "ftp://host", "file:///etc/passwd", "http://[::1"),
        *("http://host:99999", "http://host:port", "http://a host", "http://host/\n"),
    ],
)
def test_what_is_no_address(address: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fleet", "status", "--server", address]) == 2
    error = capfd.readouterr().err
    assert "give an address with http:// or https://" in error and error.count("\n") == 1


@pytest.mark.parametrize("token", ["a\nb", "ключ"])
def test_what_is_no_token(token: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fleet", "status", "--server", "http://127.0.0.1:9", "--token", token]) == 2
    assert "--token: characters that no header can carry" in capfd.readouterr().err
