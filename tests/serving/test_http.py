"""The HTTP side: sessions, videos, operation, and what is refused."""

import io
import json
import logging
import shutil
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from longlive_trt.errors import BundleError
from longlive_trt.serving.operation import logs
from longlive_trt.serving.server import bind, make_server
from longlive_trt.serving.settings import Limits, Settings
from tests.fakes.live import FakeModel, color_of
from tests.serving.conftest import Running, Socket, StartServer


def joined(live: Running, created: Any) -> Socket:
    socket = live.connect()
    socket.send("session.start", format="h264", session=created["id"], token=created["token"])
    socket.wait("video.start")
    return socket


def created(live: Running, prompt: str = "a red car", **values: Any) -> Any:
    answer = live.ask("POST", "/v1/sessions", {"prompt": prompt, "seed": 3, **values})
    assert answer.status == 201, answer.body
    return answer.json


def pictures_of(data: bytes) -> list[Any]:
    with av.open(io.BytesIO(data)) as container:
        return [
            frame.to_ndarray(format="rgb24")[8:].mean((0, 1)) for frame in container.decode(video=0)
        ]


def test_a_session_from_beginning_to_end(live: Running) -> None:
    session = created(live)
    path, token = f"/v1/sessions/{session['id']}", session["token"]
    assert session["ws_url"] == f"ws://localhost:{live.port}/v1/realtime/video"
    assert token not in session["ws_url"] and session["seed"] == "3"
    socket = joined(live, session)
    socket.for_seconds(0.6)
    taken = live.ask("POST", f"{path}/interactions", {"prompt": "a blue boat"}, token=token)
    assert taken.status == 202
    effect = taken.json["takes_effect"]
    assert effect["frame"] in (9, 21) and effect["block"] in (1, 2) and effect["in_ms"] >= 0
    socket.for_seconds(2.0)
    facts = live.ask("GET", path, token=token).json
    assert (facts["status"], facts["viewers"], facts["epoch"]) == ("running", 1, 1)
    assert [cue["prompt"] for cue in facts["cues"]] == ["a red car", "a blue boat"]
    video = live.ask("GET", f"{path}/recording.mp4", token=token)
    assert video.headers["content-type"] == "video/mp4"
    shown = pictures_of(video.body)
    assert shown[0] == pytest.approx(color_of("red"), abs=12)
    assert shown[-1] == pytest.approx(color_of("blue"), abs=12)
    assert shown[effect["frame"] - 1] == pytest.approx(color_of("red"), abs=12)
    assert shown[effect["frame"]] == pytest.approx(color_of("blue"), abs=12)
    last = live.ask("GET", f"{path}/recording.mp4?seconds=0.5", token=token)
    assert 8 <= len(pictures_of(last.body)) < len(shown)
    ended = live.ask("DELETE", path, token=token).json
    assert ended["status"] == "ended"
    # What was recorded is there for a while.
    assert live.ask("GET", f"{path}/recording.mp4", token=token).status == 200
    again = live.ask("POST", f"{path}/interactions", {"prompt": "x"}, token=token)
    assert (again.status, again.code) == (410, "session_ended")


def test_a_recipe_and_a_state(live: Running) -> None:
    session = created(live, timeline=[{"frame": 30, "prompt": "a green car"}])
    path, token = f"/v1/sessions/{session['id']}", session["token"]
    socket = joined(live, session)
    socket.for_seconds(1.0)
    recipe = live.ask("GET", f"{path}/recipe", token=token).json
    assert (recipe["seed"], recipe["switch"], recipe["bundle_key"]) == (3, "exact", "f" * 64)
    assert recipe["prompts"][:2] == [
        {"frame": 0, "prompt": "a red car"},
        {"frame": 9, "prompt": "a green car"},
    ]
    assert recipe["frames"] % 3 == 0 and "--timeline recipe.json" in recipe["command"]
    state = live.ask("POST", f"{path}/state", token=token)
    assert state.status == 201
    resumed = live.ask("POST", "/v1/sessions", {"resume": state.json["state_id"]})
    assert resumed.status == 201 and resumed.json["seed"] == "3"
    assert joined(live, resumed.json).picture().frame > 0


def test_before_anything_was_shown(live: Running) -> None:
    session = created(live)
    path, token = f"/v1/sessions/{session['id']}", session["token"]
    answer = live.ask("GET", f"{path}/recording.mp4", token=token)
    assert answer.status in (200, 409)


@pytest.mark.parametrize("path", ["", "/recipe", "/recording.mp4"])
def test_a_session_is_its_owners(live: Running, path: str) -> None:
    session = created(live)
    own = f"/v1/sessions/{session['id']}{path}"
    for token in (None, "wrong", "ü"):
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        answer = live.ask("GET", own, headers=headers)
        assert (answer.status, answer.code) == (404, "not_found")
    answer = live.ask("GET", f"/v1/sessions/none{path}", token=session["token"])
    assert (answer.status, answer.code) == (404, "not_found")


def test_full(start_server: StartServer) -> None:
    live = start_server(sessions=1)
    first = created(live)
    answer = live.ask("POST", "/v1/sessions", {"prompt": "x"})
    error = answer.json["error"]
    assert (answer.status, error["code"], error["position"]) == (503, "server_full", 1)
    assert int(answer.headers["retry-after"]) > 0 and "number 1" in error["message"]
    other = live.ask("POST", "/v1/sessions", {"prompt": "y"}).json["error"]
    assert other["position"] == 2
    live.ask("DELETE", f"/v1/sessions/{first['id']}", token=first["token"])
    # The one behind is still behind; the first in the queue gets in with its ticket.
    behind = live.ask("POST", "/v1/sessions", {"prompt": "y", "ticket": other["ticket"]})
    assert behind.status == 503 and behind.json["error"]["position"] == 1
    came = live.ask("POST", "/v1/sessions", {"prompt": "x", "ticket": error["ticket"]})
    assert came.status == 201


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "That is not JSON: "),
        (b"[]", "dictionary"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "x" * 4001}, "4000"),
        ({"prompt": "x", "seed": -1}, "seed"),
        ({"prompt": "x", "switch": "fade"}, "fade"),
        ({"prompt": "x", "resume": "../../../etc/passwd"}, "saved state"),
        ({"prompt": "x", "resume": "0" * 32}, "saved state"),
    ],
)
def test_bad_requests(live: Running, body: Any, words: str) -> None:
    answer = live.ask("POST", "/v1/sessions", body)
    assert answer.status in (404, 422)
    assert words in answer.json["error"]["message"]


def test_sizes_and_rates(live: Running) -> None:
    answer = live.ask("POST", "/v1/sessions", {"prompt": "x" * 20_000})
    assert (answer.status, answer.code) == (413, "too_large")
    session = created(live)
    path = f"/v1/sessions/{session['id']}/interactions"
    codes = [
        live.ask("POST", path, {"prompt": f"{n}"}, token=session["token"]).status for n in range(6)
    ]
    assert codes[:4] == [202] * 4 and 429 in codes


def test_there_is_nothing_there(live: Running) -> None:
    for method, path, status, code in (
        ("GET", "/v1/nothing", 404, "not_found"),
        ("PUT", "/v1/sessions", 405, "method_not_allowed"),
        ("GET", "/../../etc/passwd", 404, "not_found"),
        ("GET", "/%2e%2e/%2e%2e/pyproject.toml", 404, "not_found"),
    ):
        answer = live.ask(method, path)
        assert (answer.status, answer.code) == (status, code), path


# ---- videos ----------------------------------------------------------------------------------


def test_a_finite_video(live: Running) -> None:
    wish = {"prompt": "a red car", "seconds": "2", "seed": 9, "model": "fake"}
    job = live.ask("POST", "/v1/videos", wish).json
    assert job["object"] == "video" and job["status"] in ("queued", "in_progress")
    end = time.monotonic() + 10
    while (now := live.ask("GET", f"/v1/videos/{job['id']}").json)["status"] != "completed":
        assert time.monotonic() < end and now["status"] != "failed"
        time.sleep(0.05)
    assert (now["progress"], now["seconds"], now["size"]) == (100, "2", "64x48")
    content = live.ask("GET", f"/v1/videos/{job['id']}/content")
    shown = pictures_of(content.body)
    assert len(shown) == 32 and shown[-1] == pytest.approx(color_of("red"), abs=12)
    assert [one["id"] for one in live.ask("GET", "/v1/videos").json["data"]] == [job["id"]]
    assert live.ask("DELETE", f"/v1/videos/{job['id']}").json["deleted"]
    assert live.ask("GET", f"/v1/videos/{job['id']}").status == 404
    assert live.ask("GET", "/ready").json["running"] == 0


def test_videos_wait_for_their_turn_and_fail_in_words(start_server: StartServer) -> None:
    live = start_server(sessions=1)
    live.model.failing_at = 1
    jobs = [live.ask("POST", "/v1/videos", {"prompt": "x", "seconds": 4}).json for _ in range(2)]
    end = time.monotonic() + 10
    for job in jobs:
        while (now := live.ask("GET", f"/v1/videos/{job['id']}").json)["status"] != "failed":
            assert time.monotonic() < end
            time.sleep(0.05)
        assert "the engine broke" in now["error"]["message"]
        assert live.ask("GET", f"/v1/videos/{job['id']}/content").status == 409


@pytest.mark.parametrize("wish", [{"seconds": 0}, {"seconds": "601"}, {"size": "1x1"}])
def test_videos_that_cannot_be(live: Running, wish: dict[str, Any]) -> None:
    answer = live.ask("POST", "/v1/videos", {"prompt": "x", **wish})
    assert (answer.status, answer.code) == (422, "bad_request")


# ---- operation -------------------------------------------------------------------------------


def test_the_model_and_health(live: Running) -> None:
    (model,) = live.ask("GET", "/v1/models").json["data"]
    assert (model["id"], model["slots"], model["needs_token"]) == ("fake", 4, False)
    assert model["suggestions"] == ["a red car", "a blue boat at night"]
    assert live.ask("GET", "/health").json["status"] == "ok"


def test_the_metrics_have_their_names(live: Running) -> None:
    live.start().picture()
    text = live.ask("GET", "/metrics").body.decode()
    for name in (
        "longlive_sessions_running 1.0",
        "longlive_sessions_waiting 0.0",
        "longlive_session_slots 4.0",
        "longlive_time_to_first_frame_seconds_count 1.0",
        "longlive_prompt_to_display_seconds_count 0.0",
        'longlive_block_seconds_count{stage="block"}',
        'longlive_frames_dropped_total{reason="slow_viewer"} 0.0',
        'longlive_rollbacks_total{reason="prompt"} 0.0',
        'longlive_speculations_total{outcome="promoted"} 0.0',
        'longlive_build_info{bundle_key="ffffffffffffffff",model="fake",version=',
    ):
        assert name in text, name


def test_a_prompt_on_screen_is_measured(live: Running) -> None:
    socket = live.start()
    socket.for_seconds(0.5)
    socket.send("session.interaction", prompt="a blue boat")
    frame = socket.wait("session.interaction.queued")["takes_effect"]["frame"]
    picture = socket.picture()
    while picture.epoch == 0 or picture.frame < frame:
        picture = socket.picture()
    socket.send("playback.shown", epoch=picture.epoch, frame=frame)
    time.sleep(0.2)
    text = live.ask("GET", "/metrics").body.decode()
    assert "longlive_prompt_to_display_seconds_count 1.0" in text


def test_every_answer_is_guarded(live: Running) -> None:
    for path in ("/", "/v1/models", "/v1/nothing", "/app.js"):
        headers = live.ask("GET", path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_the_page_is_all_from_here(live: Running) -> None:
    page = live.ask("GET", "/").body.decode()
    assert "<live-player>" in page
    for word in ("http:", "https:", "//", "style=", "onclick="):
        assert word not in page.replace("<!doctype", ""), word
    for name in ("app.js", "style.css", "icons.svg", "player.js"):
        assert live.ask("GET", f"/{name}").status == 200


def test_the_description_of_the_api(live: Running) -> None:
    paths = live.ask("GET", "/openapi.json").json["paths"]
    assert set(paths) == {
        "/v1/sessions", "/v1/sessions/{id}", "/v1/sessions/{id}/interactions",
        "/v1/sessions/{id}/state", "/v1/sessions/{id}/recording.mp4", "/v1/sessions/{id}/recipe",
        "/v1/videos", "/v1/videos/{id}", "/v1/videos/{id}/content", "/v1/models", "/health",
        "/ready", "/metrics", "/v1/realtime/schema.json", "/v1/admin/drain",
    }  # fmt: skip


def test_not_ready_while_loading_and_when_it_fails(start_server: StartServer) -> None:
    class Slow(FakeModel):
        def open(self, *arguments: Any) -> Any:
            time.sleep(0.6)
            return super().open(*arguments)

    live = start_server(Slow(), wait=False)
    answer = live.ask("GET", "/ready")
    assert (answer.status, answer.json["status"]) == (503, "loading")
    assert live.ask("GET", "/v1/models").code == "loading"
    assert live.ask("GET", "/health").status == 200
    socket = live.connect()
    assert socket.wait("error")["code"] == "loading"
    assert socket.close_code() == 1013

    class Broken(FakeModel):
        def open(self, *arguments: Any) -> Any:
            raise BundleError("the bundle is damaged; fetch it again")

    live = start_server(Broken(), wait=False)
    end = time.monotonic() + 5
    while (found := live.ask("GET", "/ready").json)["status"] != "failed":
        assert time.monotonic() < end
    assert found["message"] == "the bundle is damaged; fetch it again"


def test_draining_saves_what_runs(live: Running) -> None:
    socket = live.start()
    socket.for_seconds(0.6)
    drained = live.ask("POST", "/v1/admin/drain").json
    assert len(drained["saved"]) == 1
    done = socket.wait("session.done")
    assert (done["reason"], done["state"]) == ("drained", drained["saved"][0])
    assert socket.close_code() == 1012
    answer = live.ask("GET", "/ready")
    assert (answer.status, answer.json["status"]) == (503, "draining")
    assert live.ask("POST", "/v1/sessions", {"prompt": "x"}).code == "draining"


def test_the_server_goes_down_in_order(start_server: StartServer, tmp_path: Any) -> None:
    live = start_server()
    socket = live.start()
    socket.for_seconds(0.6)
    live.server.should_exit = True
    done = socket.wait("session.done")
    assert done["reason"] == "drained"
    assert socket.close_code() == 1012
    end = time.monotonic() + 10
    while not live.model.is_closed:
        assert time.monotonic() < end
        time.sleep(0.02)
    states = list((tmp_path / "data" / "states").glob("*.state"))
    assert [path.stem for path in states] == [done["state"]]
    # The next server finds it.
    other = start_server()
    resumed = other.connect()
    resumed.send("session.start", format="h264", resume=done["state"])
    assert resumed.wait("video.start")["resumed_at_frame"] > 0


def test_other_addresses_ask_for_the_token(start_server: StartServer) -> None:
    live = start_server(token="secret")  # noqa: S106
    for method, path in (
        ("POST", "/v1/sessions"),
        ("POST", "/v1/videos"),
        ("GET", "/v1/videos"),
        ("GET", "/metrics"),
        ("POST", "/v1/admin/drain"),
    ):
        body = {"prompt": "x"} if method == "POST" else None
        answer = live.ask(method, path, body)
        assert (answer.status, answer.code) == (401, "unauthorized"), path
        assert live.ask(method, path, body, token="wrong").status == 401  # noqa: S106
    assert live.ask("GET", "/v1/models").json["data"][0]["needs_token"]
    assert live.ask("POST", "/v1/sessions", {"prompt": "x"}, token="secret").status == 201  # noqa: S106


def test_hosts_and_origins(start_server: StartServer) -> None:
    live = start_server(allowed_hosts=("video.example",))
    fine = {"Host": "video.example", "Origin": "https://video.example"}
    assert live.ask("GET", "/v1/models", headers=fine).status == 200
    for headers, code in (
        ({"Host": "evil.example"}, "forbidden_host"),
        ({"Origin": "https://evil.example"}, "forbidden_origin"),
        ({"Origin": f"http://localhost:{live.port + 1}"}, "forbidden_origin"),
    ):
        assert live.ask("GET", "/v1/models", headers=headers).code == code


def test_states_that_are_too_many_make_room(start_server: StartServer) -> None:
    live = start_server(limits=Limits(states=2, prompts_per_second=100))
    session = created(live)
    joined(live, session).for_seconds(0.6)
    path = f"/v1/sessions/{session['id']}/state"
    ids = [live.ask("POST", path, token=session["token"]).json["state_id"] for _ in range(4)]
    found = [live.ask("POST", "/v1/sessions", {"resume": one}).status for one in ids]
    assert found == [404, 404, 201, 201]


@pytest.fixture
def set_up_logs() -> Iterator[Callable[..., None]]:
    names = ("longlive_trt", "uvicorn", "websockets")
    before = {n: (logging.getLogger(n).handlers, logging.getLogger(n).propagate) for n in names}
    yield logs.set_up
    for name, (handlers, propagate) in before.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(logging.NOTSET)


@pytest.mark.parametrize("prompts", [False, True])
def test_logs_are_json_and_hold_no_prompt(
    set_up_logs: Callable[..., None], capsys: pytest.CaptureFixture[str], prompts: bool
) -> None:
    set_up_logs(prompts=prompts)
    log = logging.getLogger("longlive_trt.serving")
    log.info("prompt", extra={"session": "s1", "prompt": "my secret"})
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["session"], line["level"]) == ("prompt", "s1", "info")
    assert ("prompt" in line) is prompts


def test_who_is_refused_is_no_fault_of_the_server(
    live: Running, set_up_logs: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logs(prompts=False)
    with pytest.raises(InvalidStatus, match="403"):
        live.connect(origin="https://evil.example")
    live.start().wait("video.start")
    assert '"level": "error"' not in capsys.readouterr().err


def test_over_tls(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = ["-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate)]
    command = [openssl, "req", "-x509", "-days", "2", *names, *made]
    subprocess.run(command, check=True, capture_output=True)
    listening = bind(Settings(port=0))
    settings = Settings(port=0, sessions=1)
    server = make_server(settings, FakeModel, certificate=certificate, key=key)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    trusted = ssl.create_default_context(cafile=str(certificate))
    port = listening.getsockname()[1]
    try:
        end = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(
                    f"https://localhost:{port}/ready", context=trusted
                ) as answer:
                    assert json.load(answer)["status"] == "ready"
                break
            except urllib.error.HTTPError:
                assert time.monotonic() < end
                time.sleep(0.05)
        with connect(f"wss://localhost:{port}/v1/realtime/video", ssl=trusted) as socket:
            socket.send('{"type": "session.start", "prompt": "a red car", "format": "h264"}')
            assert json.loads(socket.recv(timeout=10))["type"] == "video.start"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
