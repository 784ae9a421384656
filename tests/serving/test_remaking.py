"""Recordings by the full decoder, of videos that were shown by the light one."""

import http.client
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")

import longlive_trt as ll
from longlive_trt.serving.engine import load_model
from longlive_trt.serving.live.kept.latents import KeptLatents
from longlive_trt.serving.live.kept.remaking import Remake
from longlive_trt.serving.live.plan import Idle
from longlive_trt.serving.live.turns import Work
from longlive_trt.serving.problems import ProblemError
from longlive_trt.serving.settings import Limits
from tests.fakes.live import FakeModel, color_of
from tests.serving.conftest import Answer, Running, Socket, StartServer
from tests.serving.test_http import pictures_of

BOTH = ("full", "light")
FPS = 160
RED, BLUE = color_of("red"), color_of("blue")


class Watched:
    """A session that begins with the light decoder, and its viewer."""

    def __init__(self, live: Running, **values: Any) -> None:
        self.live, self.socket = live, live.start(decoder="light", **values)
        start = self.socket.wait("video.start")
        self.token, self.path = start["token"], f"/v1/sessions/{start['session']}"

    def recording(self, query: str = "") -> Answer:
        return self.live.ask("GET", f"{self.path}/recording.mp4{query}", token=self.token)

    def download(self) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """The recording by the full decoder, of which nothing was read yet."""
        connection = http.client.HTTPConnection("localhost", self.live.port, timeout=20)
        headers = {"authorization": f"Bearer {self.token}"}
        connection.request("GET", f"{self.path}/recording.mp4?decoder=full", None, headers)
        return connection, connection.getresponse()

    def until(self, frame: int) -> Socket:
        while self.socket.picture().frame < frame:
            pass
        return self.socket


@pytest.fixture
def start(start_server: StartServer) -> Callable[..., Running]:
    def begin(model: FakeModel | None = None, **options: Any) -> Running:
        return start_server(model or FakeModel(decoders=BOTH, fps=FPS), **options)

    return begin


def half(color: tuple[int, ...]) -> list[int]:
    return [value // 2 for value in color]


def until(holds: Callable[[], object], timeout: float = 10) -> None:
    end = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_was_shown_by_the_light_one_is_kept_by_the_full_one(
    start: Callable[..., Running],
) -> None:
    watched = Watched(start())
    watched.until(20)
    watched.socket.send("session.interaction", prompt="a blue boat")
    effect = watched.socket.wait("session.interaction.applied")["frame"]
    watched.until(effect + 12)
    watched.live.ask("DELETE", watched.path, token=watched.token)
    shown, full = (pictures_of(watched.recording(query).body) for query in ("", "?decoder=full"))
    assert len(full) == len(shown)
    for pictures, red, blue in ((shown, half(RED), half(BLUE)), (full, RED, BLUE)):
        assert pictures[0] == pytest.approx(red, abs=12)
        assert pictures[effect - 1] == pytest.approx(red, abs=12)
        assert pictures[effect] == pytest.approx(blue, abs=12)
        assert pictures[-1] == pytest.approx(blue, abs=12)
    until(lambda: not watched.live.model.open_decoders)


def test_the_last_seconds_while_it_runs(start: Callable[..., Running]) -> None:
    watched = Watched(start())
    watched.until(60)
    answer = watched.recording("?seconds=0.2&decoder=full")
    assert (answer.status, answer.headers["content-type"]) == (200, "video/mp4")
    assert 32 <= len(pictures_of(answer.body)) <= 32 + 12


def test_latents_that_are_no_longer_kept(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longlive_trt.serving.live.kept.segments.SEGMENTS", 6)
    # So little that every block begins a part.
    watched = Watched(start(limits=Limits(latents_bytes=6)))
    watched.until(9 + 12 * 7)
    watched.live.ask("DELETE", watched.path, token=watched.token)
    answer = watched.recording("?decoder=full")
    error = answer.json["error"]
    assert (answer.status, error["code"]) == (409, "conflict")
    seconds = error["seconds"]
    assert f"(seconds={seconds:g})" in error["message"] and "--decoder full" in error["message"]
    again = watched.recording(f"?decoder=full&seconds={seconds}")
    assert again.status == 200
    assert len(pictures_of(again.body)) >= seconds * FPS
    # Nothing but the latents is gone.
    assert len(pictures_of(watched.recording().body)) > len(pictures_of(again.body))


@pytest.mark.exhaustive
def test_who_resumed_is_told_what_there_is(start: Callable[..., Running]) -> None:
    live = start()
    watched = Watched(live)
    watched.until(40)
    state = live.ask("POST", f"{watched.path}/state", token=watched.token).json["state_id"]
    later = live.start(prompt="", resume=state)
    started = later.wait("video.start")
    path = f"/v1/sessions/{started['session']}/recording.mp4?decoder=full"
    later.picture()
    answer = live.ask("GET", path, token=started["token"])
    assert (answer.status, answer.code) == (409, "conflict")
    assert "not kept here" in answer.json["error"]["message"]


def test_running_videos_come_first(start: Callable[..., Running]) -> None:
    """A model that is slower than its video leaves no time, until the video pauses."""
    model = FakeModel(decoders=BOTH, fps=64, block_s=0.25)
    watched = Watched(start(model, remake_patience_s=0.5))
    watched.until(20)
    answer = watched.recording("?decoder=full")
    assert (answer.status, answer.code) == (503, "server_full")
    assert "no time" in answer.json["error"]["message"] and answer.headers["retry-after"] == "30"
    watched.socket.send("session.pause")
    until(lambda: not model.open_decoders)
    assert watched.recording("?decoder=full").status == 200


@pytest.mark.exhaustive
def test_one_at_a_time_and_given_up_with_its_reader(start: Callable[..., Running]) -> None:
    model = FakeModel(decoders=BOTH, fps=FPS, decode_s=0.05)
    watched = Watched(start(model))
    watched.until(100)
    watched.socket.send("session.pause")
    connection, reading = watched.download()
    assert reading.status == 200 and reading.read(100)
    answer = watched.recording("?decoder=full")
    assert (answer.status, answer.code) == (503, "server_full")
    assert "Another recording" in answer.json["error"]["message"]
    reading.close()
    connection.close()
    until(lambda: not model.open_decoders)
    assert watched.recording("?decoder=full&seconds=0.1").status == 200


@pytest.mark.exhaustive
def test_it_ends_with_the_server(start: Callable[..., Running]) -> None:
    model = FakeModel(decoders=BOTH, fps=FPS, decode_s=0.2)
    watched = Watched(start(model))
    watched.until(100)
    watched.socket.send("session.pause")
    connection, reading = watched.download()
    watched.live.stop()
    with pytest.raises(http.client.IncompleteRead):
        reading.read()
    reading.close()
    connection.close()
    until(lambda: not model.open_decoders)


def test_what_cannot_be_asked_for(live: Running, start: Callable[..., Running]) -> None:
    socket = live.start()
    started = socket.wait("video.start")
    socket.picture()
    path = f"/v1/sessions/{started['session']}/recording.mp4"
    # Who has one decoder is shown by it.
    assert live.ask("GET", f"{path}?decoder=full", token=started["token"]).status == 200
    answer = live.ask("GET", f"{path}?decoder=light", token=started["token"])
    assert (answer.status, answer.code) == (422, "bad_request")
    watched = Watched(start())
    assert watched.recording("?decoder=tiny").code == "bad_request"


def test_a_decoder_that_there_is_no_room_for(start: Callable[..., Running]) -> None:
    class Small(FakeModel):
        def open_decoder(self, name: str) -> Any:
            raise ll.LongLiveError(f"{name}: 9 GiB are needed, and 1 GiB is free")

    watched = Watched(start(Small(decoders=BOTH, fps=FPS)))
    watched.until(20)
    for _ in range(2):
        answer = watched.recording("?decoder=full")
        assert (answer.status, answer.code) == (409, "conflict")
        assert "9 GiB are needed" in answer.json["error"]["message"]


# ---- without a server --------------------------------------------------------------------------


class Quiet:
    """In the place of the thread that makes blocks."""

    def __init__(self) -> None:
        self.workers: list[Any] = []

    def add(self, worker: Any) -> None:
        self.workers.append(worker)

    def remove(self, worker: Any) -> None:
        self.workers.remove(worker)

    def wake(self) -> None:
        pass


def test_a_frame_is_decoded_where_all_have_so_much_time() -> None:
    time_s, generator, closed = [0.0], Quiet(), list[bool]()

    def sleep(seconds: float) -> None:
        time_s[0] += seconds

    model = FakeModel(decoders=BOTH, decode_s=0.4, sleep=sleep)
    remake = Remake(
        model.open_decoder("full"),
        generator,  # type: ignore[arg-type]
        0.75,
        lambda: closed.append(True),
        lambda: time_s[0],
    )
    latents = np.zeros((1, 1, 35), np.float32)
    assert remake.spare_work(0.0, math.inf) is None, "nothing is asked for"
    assert isinstance(remake.next_work(0.0), Idle)
    first, second = remake.decode(latents), remake.decode(latents)
    assert remake.spare_work(0.0, 0.7) is None, "before one was decoded, a block's time is thought"
    work = remake.spare_work(0.0, 0.8)
    assert work is not None
    work.run()
    assert first.result(0).shape[0] == 1 and not second.done()
    assert remake.spare_work(0.0, 0.45) is None
    assert remake.spare_work(0.0, 0.55) is not None
    remake.stop()
    with pytest.raises(ProblemError):
        second.result(0)
    with pytest.raises(ProblemError):
        remake.decode(latents).result(0)
    over = remake.next_work(0.0)
    assert isinstance(over, Work)
    over.run()
    assert closed == [True] and generator.workers == [] and model.open_decoders == 0


def test_kept_blocks_outlast_what_happens_to_the_session(tmp_path: Path) -> None:
    kept = KeptLatents(tmp_path / "kept", 2, 1 << 20)
    values = [np.full((1, 3, 2, 4, 5), block, np.float32) for block in range(8)]
    for block in (2, 3, 5, 4, 5):
        kept.add(block, values[block])
    blocks = kept.blocks(0, 9)
    assert (blocks.begin, blocks.end) == (2, 6), "one that does not follow is left out"
    kept.cut(4)
    kept.add(4, values[7])
    kept.close()
    assert not list(tmp_path.iterdir())
    assert [float(one[0, 0, 0, 0, 0]) for one in blocks.read()] == [2, 3, 4, 5]
    assert all(one.shape == (1, 3, 2, 4, 5) for one in blocks.read())


@pytest.mark.exhaustive
def test_the_demo_full_pictures_of_a_light_preview() -> None:
    """From the beginning, the same bits as those of a video by the full decoder."""
    with ll.load("demo", device="cpu") as pipeline:
        folder = Path(pipeline.bundle.folder)
    model = load_model(folder, "cpu")
    try:
        assert model.past_blocks("light") == 4
        frames, kept = [], []
        for name in BOTH:
            video = model.open(3, "exact")
            video.prompt("a red car drives to the right through the desert")
            video.decoder(name)
            blocks = [video.step() for _ in range(2)]
            frames.append(np.concatenate([block.frames for block in blocks]))
            kept.append(np.concatenate([block.latents for block in blocks], axis=1))
            video.close()
        assert np.array_equal(*kept)
        decoder = model.open_decoder("full")
        made = [decoder.decode(kept[1][:, i : i + 1]) for i in range(kept[1].shape[1])]
        assert np.array_equal(np.concatenate(made), frames[0])
        decoder.close()
    finally:
        model.close()
