"""``longlive-trt serve`` as a process: its address, its refusals, its end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from longlive_trt.cli import main
from longlive_trt.engines import loader
from longlive_trt.errors import PluginError

pytest.importorskip("fastapi")

ROOT = Path(__file__).resolve().parents[2]


def ready(address: str) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            if urllib.request.urlopen(f"{address}ready").status == 200:  # noqa: S310
                return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.fixture
def served(video_bundle: Path, tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    arguments = ["serve", "--bundle", video_bundle, "--port", "0", "--data", tmp_path / "data"]
    process = subprocess.Popen(
        [sys.executable, "-m", "longlive_trt", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("Open http://localhost:")
    address = line.split()[1]
    try:
        ready(address)
        yield process, address
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 0), pytest.param(signal.SIGINT, 130, marks=pytest.mark.exhaustive)],
)
def test_a_signal_ends_it_with_states_saved(
    served: tuple["subprocess.Popen[str]", str], tmp_path: Path, number: int, code: int
) -> None:
    from longlive_trt.client import LiveClient

    process, address = served
    with LiveClient(address).open("my own words", seed=2) as video:
        assert next(iter(video)).pixels().shape[2] == 3
        process.send_signal(number)
        for _ in video:
            pass
        assert video.done is not None and video.done["reason"] == "drained"
        assert video.done["state"]
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    (state,) = (tmp_path / "data" / "states").glob("*.state")
    assert state.stem == video.done["state"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["states"]
    lines = [json.loads(line) for line in errors.splitlines()]
    assert {"ready", "session started", "session ended"} <= {line["event"] for line in lines}
    assert "my own words" not in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bundle", "no-such"], "no such bundle"),
        (["--bundle", ".", "--host", "0.0.0.0"], "give --token"),  # noqa: S104
        (["--bundle", ".", "--tls-cert", "no-such.pem"], "no-such.pem: no such file"),
    ],
)
def test_what_cannot_be_served(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--port", "0", *arguments]) == 2
    error = capfd.readouterr().err.strip()
    assert words in error and error.startswith("error: ") and "\n" not in error


def test_a_bundle_without_a_decoder_is_refused_before_it_listens(
    mini_bundle: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", "0", "--bundle", str(mini_bundle("relative"))]) in (1, 2)
    error = capfd.readouterr().err.strip()
    assert error.startswith("error: ") and "--vae" in error and "\n" not in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "cuda"], "this machine has no GPU that can be used"),
        (["--device", "cpu", "--decode-device", "cuda:1"], "runs on a CPU here, and decodes"),
        (["--decode-device", "gpu7"], "give another GPU by its number, as cuda:1"),
    ],
)
def test_a_gpu_that_cannot_be_had_is_refused_before_it_listens(
    arguments: list[str],
    words: str,
    video_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def none(_ordinal: int = 0) -> None:
        raise PluginError("no CUDA device can be used")

    monkeypatch.setattr(loader, "device_facts", none)
    assert main(["serve", "--port", "0", "--bundle", str(video_bundle), *arguments]) in (1, 2)
    error = capfd.readouterr().err.strip()
    assert words in error and error.startswith("error: ") and "\n" not in error


def test_a_port_in_use(video_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--bundle", str(video_bundle), "--port", str(port)]) == 2
    assert f"127.0.0.1 port {port} cannot be used" in capfd.readouterr().err


def test_a_missing_extra_names_its_command() -> None:
    source = (
        "import sys; sys.modules['fastapi'] = None; sys.modules['uvicorn'] = None;"
        "from longlive_trt.cli import main; sys.exit(main(['serve', '--bundle', '.']))"
    )
    process = subprocess.run(
        [sys.executable, "-c", source],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 1
    assert process.stderr.startswith(
        "error: this needs fastapi and uvicorn, which are not installed: "
    )
    assert process.stderr.endswith("[serve]'\n")
