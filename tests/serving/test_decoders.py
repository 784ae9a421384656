"""A model with two decoders: which one makes the pictures, chosen while the video runs."""

import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi")

import longlive_trt as ll
from longlive_trt.serving.engine import load_model
from longlive_trt.serving.live.costs import Costs
from longlive_trt.serving.live.maker import Maker
from longlive_trt.serving.live.plan import Make, Plan
from longlive_trt.serving.live.schedule import Cue
from longlive_trt.serving.settings import Pacing
from tests.fakes.live import FakeModel
from tests.serving.conftest import Running, Socket, StartServer
from tests.serving.test_plan import CLOCK

BOTH = ("full", "light")


def brightness(socket: Socket, count: int) -> list[int]:
    """Of the pictures that come next."""
    return [_middle(socket.picture().payload) for _ in range(count)]


def _middle(jpeg: bytes) -> int:
    import io

    from PIL import Image

    return int(np.asarray(Image.open(io.BytesIO(jpeg)))[24, 32].max())


@pytest.fixture
def both(start_server: StartServer) -> Running:
    return start_server(FakeModel(decoders=BOTH))


def test_a_viewer_chooses_the_decoder_while_the_video_runs(both: Running) -> None:
    socket = both.start(format="jpeg")
    start = socket.wait("video.start")
    assert (start["decoders"], start["decoder"]) == (["full", "light"], "full")
    assert brightness(socket, 9)[-1] > 200
    socket.send("session.decoder", decoder="light")
    assert socket.wait("stats", decoder="light")["decoder"] == "light"
    end = time.monotonic() + 10
    while brightness(socket, 1)[0] > 150:
        assert time.monotonic() < end
    socket.send("session.decoder", decoder="full")
    while brightness(socket, 1)[0] < 150:
        assert time.monotonic() < end


def test_a_session_may_begin_with_the_light_one(both: Running) -> None:
    socket = both.start(format="jpeg", decoder="light")
    assert socket.wait("video.start")["decoder"] == "light"
    assert brightness(socket, 3)[-1] < 150
    body = {"prompt": "a red car", "decoder": "light"}
    assert both.ask("POST", "/v1/sessions", body).status == 201
    assert both.ask("GET", "/v1/models").json["data"][0]["decoders"] == ["full", "light"]


def test_a_decoder_that_is_not_there_is_refused_in_a_sentence(live: Running) -> None:
    socket = live.start()
    assert socket.wait("video.start")["decoders"] == ["full"]
    socket.send("session.decoder", decoder="light")
    error = socket.wait("error")
    assert error["code"] == "bad_request"
    assert error["message"] == "There is no decoder 'light' here, only the full one."
    answer = live.ask("POST", "/v1/sessions", {"prompt": "x", "decoder": "tiny"})
    assert (answer.status, answer.code) == (422, "bad_request")
    refused = live.start(decoder="light")
    assert refused.wait("error")["code"] == "bad_request"


def test_the_only_decoder_may_be_asked_for(live: Running) -> None:
    """As a session does that moves to another host."""
    socket = live.start(format="jpeg", decoder="full")
    assert socket.wait("video.start")["decoder"] == "full"
    assert brightness(socket, 9)[-1] > 200
    socket.send("session.decoder", decoder="full")
    assert brightness(socket, 30)[-1] > 200
    assert socket.wait("stats")["decoder"] == "full"


def test_a_choice_outlasts_what_is_taken_back() -> None:
    """A checkpoint has the decoder of its time; the block that is made anew has the chosen one."""
    model = FakeModel(decoders=BOTH)
    plan = Plan(CLOCK, Pacing(lead_blocks=4), Costs(), [Cue(1, 0, "a red car")])
    plan._costs.observe("cycle", 0.0)
    maker = Maker(model, plan, 7, "exact", now=lambda: 0.0)

    def make() -> int:
        answer = plan.next_turn(0.0)
        assert isinstance(answer, tuple) and isinstance(answer[1], Make)
        made = maker.make(answer[1])
        assert made is not None and plan.finished(answer[1])
        first = CLOCK.first_frame(answer[1].block)
        for frame in range(first, first + len(made.frames)):
            plan.playhead.handed_out(frame, 0.0)
        return int(made.frames[0, 24, 32, 0])

    assert make() == make() == make() == 220
    maker.decoder = "light"
    assert make() == 110
    assert plan.interact("a white bird", 0.0).cue.block == 1
    assert make() == 120 and maker.decoder_in_use == "light"


def test_the_demo_changes_its_decoder_between_blocks() -> None:
    with ll.load("demo", device="cpu") as pipeline:
        folder = Path(pipeline.bundle.folder)
    model = load_model(folder, "cpu")
    try:
        assert model.facts.decoders == BOTH
        video = model.open(3, "exact")
        video.prompt("a red car drives to the right through the desert")
        first = video.step()
        assert video.decoder_name == "full"
        kept = video.checkpoint()
        by_full = video.step()
        video.rollback(kept)
        video.decoder("light")
        by_light = video.step()
        assert video.decoder_name == "light"
        assert first.frames.shape[0] == 9 and by_light.frames.shape == by_full.frames.shape
        assert np.array_equal(by_light.latents, by_full.latents), "latents do not know it"
        apart = np.abs(by_light.frames.astype(int) - by_full.frames).mean()
        assert 0.1 < apart < 10
        video.close()
    finally:
        model.close()
