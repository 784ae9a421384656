"""Behind Debian's nginx, under a path prefix."""

import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from longlive_trt.client import LiveClient
from tests.serving.conftest import Running, StartServer

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(NGINX is None, reason="no nginx; scripts/live_tools.sh installs it"),
]

# As docs/live.md has it.
CONFIGURATION = """
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
daemon off;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location /live/ {{
            proxy_pass http://127.0.0.1:{upstream}/;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_buffering off;
            proxy_read_timeout 1h;
        }}
    }}
}}
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.fixture
def behind(start_server: StartServer, tmp_path: Path) -> Iterator[tuple[Running, str]]:
    live = start_server(root_path="/live", allowed_hosts=("localhost",))
    port = free_port()
    path = tmp_path / "nginx.conf"
    path.write_text(CONFIGURATION.format(folder=tmp_path, port=port, upstream=live.port))
    process = subprocess.Popen([str(NGINX), "-c", str(path), "-p", str(tmp_path)])
    address = f"http://localhost:{port}/live"
    try:
        end = time.monotonic() + 10
        while True:
            try:
                urllib.request.urlopen(f"{address}/health").read()  # noqa: S310
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.05)
        yield live, address
    finally:
        process.terminate()
        process.wait(10)


def test_socket_and_http_through_the_proxy(behind: tuple[Running, str]) -> None:
    _, address = behind
    client = LiveClient(address)
    created = client.ask("POST", "/v1/sessions", {"prompt": "a red car"})
    assert created["ws_url"] == f"{address.replace('http', 'ws')}/v1/realtime/video"
    with client.join(created["id"], created["token"]) as video:
        frames = []
        for picture in video:
            frames.append(picture.frame)
            if len(frames) == 20:
                video.prompt("a blue boat")
            if picture.epoch == 1:
                break
        assert frames == list(range(frames[0], frames[0] + len(frames)))
        assert video.recording()[4:8] == b"ftyp"


def test_the_page_through_the_proxy(behind: tuple[Running, str]) -> None:
    _, address = behind
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: line.type == "error" and faults.append(line.text))
        page.goto(f"{address}/")
        page.fill("#prompt", "a red car")
        end = time.monotonic() + 20
        while page.inner_text("#status") != "Ready":
            assert time.monotonic() < end
            time.sleep(0.05)
        page.press("#prompt", "Enter")
        while page.evaluate("document.querySelector('live-player').shown") < 20:
            assert time.monotonic() < end
            time.sleep(0.05)
        browser.close()
    assert faults == []
