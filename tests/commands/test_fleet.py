"""``fleet`` and ``serve --cluster``: what they refuse, and what they print."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from longlive_trt.cli import main
from longlive_trt.commands.running.fleet import _Fleet, _Host, _table
from tests.fakes.fleet import start_fleet

pytest.importorskip("fastapi")

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "secret"  # noqa: S105


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--hosts", "2"], "--hosts is about a fleet: add --cluster ray"),
        (["--save-every", "5"], "--save-every is about a fleet"),
        (["--cluster", "ray"], "--cluster: give --store"),
        (
            ["--cluster", "ray", "--store", "s", "--hosts", "3", "--most-hosts", "2"],
            "--most-hosts 2 is less than --hosts 3",
        ),
    ],
)
def test_what_serve_refuses(
    arguments: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 2
    error = capfd.readouterr().err.strip()
    assert words in error and error.startswith("error: ") and "\n" not in error


def test_without_ray_the_extra_is_named() -> None:
    source = (
        "import sys; sys.modules['ray'] = None;"
        "from longlive_trt.cli import main;"
        "sys.exit(main(['serve', '--cluster', 'ray', '--store', 'states']))"
    )
    process = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert "this needs ray, which is not installed" in process.stderr
    assert "[cluster]" in process.stderr and "Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "--server", "localhost"], "give an address with http:// or https://"),
        (["status", "--server", "http://127.0.0.1:9"], "no answer that can be read"),
    ],
)
def test_where_no_fleet_is(
    arguments: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["fleet", *arguments]) in (1, 2)
    error = capfd.readouterr().err.strip()
    assert words in error and "\n" not in error


def test_status_names_bundles_that_differ() -> None:
    hosts = [_Host(f"host-{n}", "here", 2, 0, False, key * 64, {}) for n, key in enumerate("aba")]
    table = _table(_Fleet((), 6, 0, 0, 0), hosts).splitlines()
    assert table[-1] == (
        f"Hosts have different bundles: {'a' * 16} on 2, {'b' * 16} on 1; sessions stay with those "
        f"of their own."
    )
    assert "bundles" not in _table(_Fleet((), 2, 0, 0, 0), hosts[:1])


def test_status_and_drain(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fleet = start_fleet(tmp_path, hosts=2, token=TOKEN)
    try:
        server = ["--server", f"http://localhost:{fleet.port}", "--token", "secret"]
        assert main(["fleet", "drain", "host-1", *server]) == 0
        assert capfd.readouterr().out.strip() == "host-1 is empty: 0 sessions moved"
        assert main(["fleet", "status", *server]) == 0
        table = capfd.readouterr().out.splitlines()
        assert table[1].startswith("host-1") and table[1].endswith("draining")
        assert table[2].startswith("host-2") and not table[2].endswith("draining")
        assert table[3] == "0 of 4 slots taken, 0 waiting, 0 moving"
        assert main(["fleet", "drain", "host-1", "--undo", *server]) == 0
        assert main(["fleet", "status", "--json", *server]) == 0
        facts = json.loads(capfd.readouterr().out.partition("\n")[2])
        assert not facts["hosts"][0]["is_draining"]
        assert main(["fleet", "drain", "host-9", *server]) == 1
        assert "no such host" in capfd.readouterr().err
        assert main(["fleet", "status", "--server", server[1], "--token", "wrong"]) == 1
        assert "access token" in capfd.readouterr().err
    finally:
        fleet.stop()
