"""Conversations over the socket, against a whole server."""

import io
import json
import time
from itertools import pairwise
from typing import Any

import av
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from longlive_trt.serving.protocol import KEY, LAST_OF_BLOCK, Picture
from longlive_trt.serving.settings import Limits, Pacing
from tests.fakes.live import FakeModel, color_of
from tests.serving.conftest import Running, Socket, StartServer, require_shown_is_no_fault


def decoder_of(start: dict[str, Any]) -> Any:
    import base64

    context = av.CodecContext.create("h264", "r")
    context.extradata = base64.b64decode(start["description"])
    return context


def color_shown(decoder: Any, picture: Picture) -> Any:
    (frame,) = decoder.decode(av.Packet(picture.payload))
    return frame.to_ndarray(format="rgb24")[8:].mean((0, 1))


def test_the_first_pictures(live: Running) -> None:
    socket = live.start("a red car")
    start = socket.wait("video.start")
    assert (start["width"], start["height"], start["fps"], start["epoch"]) == (64, 48, 16, 0)
    assert start["seed"] == "1" and start["codec"].startswith("avc1.")
    while len(socket.pictures) < 33:
        socket.take()
    frames = [picture.frame for picture in socket.pictures]
    assert frames == list(range(33))
    keys = [picture.frame for picture in socket.pictures if picture.flags & KEY]
    assert keys == [0, 9, 21]
    lasts = [picture.frame for picture in socket.pictures if picture.flags & LAST_OF_BLOCK]
    assert lasts == [8, 20, 32]
    assert [picture.pts_us for picture in socket.pictures[:17:8]] == [0, 500_000, 1_000_000]


def test_a_prompt_is_acknowledged_cut_and_seen(live: Running) -> None:
    socket = live.start("a red car")
    decoder = decoder_of(socket.wait("video.start"))
    assert color_shown(decoder, socket.picture()) == pytest.approx(color_of("red"), abs=12)
    socket.for_seconds(0.3)
    socket.send("playback.shown", epoch=0, frame=4)
    socket.send("session.interaction", prompt="a blue boat at night", event_id="e1")
    queued = socket.wait("session.interaction.queued")
    effect = queued["takes_effect"]
    assert queued["event_id"] == "e1" and effect["frame"] in (9, 21)
    assert 0 < effect["in_ms"] <= 1500
    cut = (
        next(m for m in reversed(socket.messages) if m["type"] == "video.cut")
        if any(m["type"] == "video.cut" for m in socket.messages)
        else socket.wait("video.cut")
    )
    assert (cut["epoch"], cut["frame"]) == (1, effect["frame"])
    applied = next(
        (m for m in socket.messages if m.get("event_id") == "e1" and "epoch" in m), None
    ) or socket.wait("session.interaction.applied", event_id="e1")
    assert applied["frame"] == effect["frame"]
    picture = socket.picture()
    while picture.epoch == 0:
        picture = socket.picture()
    assert (picture.frame, picture.flags & KEY) == (effect["frame"], KEY)
    assert color_shown(decoder_of(socket.messages[0]), picture) == pytest.approx(
        color_of("blue night"), abs=12
    )
    # Nothing of the old epoch comes after the cut.
    count = len(socket.pictures)
    socket.for_seconds(0.5)
    assert all(picture.epoch == 1 for picture in socket.pictures[count:])


def test_pictures_come_no_faster_than_they_are_shown(live: Running) -> None:
    socket = live.start()
    socket.wait("video.start")
    begun = time.monotonic()
    socket.for_seconds(2.5)
    shown = (time.monotonic() - begun) * 16
    newest = socket.pictures[-1].frame
    assert shown < newest <= shown + 3 * 12


def test_a_draft_is_made_ahead_and_promoted(start_server: StartServer) -> None:
    live = start_server(FakeModel(block_s=0.02))
    socket = live.start()
    socket.for_seconds(1.0)
    socket.send("prompt.draft", prompt="a green car")
    socket.for_seconds(0.45)
    assert "a green car" in live.model.encoded
    assert "a green car" in {prompt for _, prompt in live.model.made}
    assert socket.pictures[-1].epoch == 0
    end = time.monotonic() + 5
    while time.monotonic() < end:
        socket.send("session.interaction", prompt="a green car")
        queued = socket.wait("session.interaction.queued")
        if queued["speculated"]:
            break
        # Enter came in the moment between two hidden blocks.
        socket.send("session.interaction", prompt="a red car")
        socket.send("prompt.draft", prompt="a green car")
        socket.for_seconds(1.2)
    assert queued["speculated"]
    text = live.ask("GET", "/metrics").body.decode()
    assert 'longlive_speculations_total{outcome="promoted"} 1.0' in text


def test_jpeg_for_browsers_without_a_decoder(live: Running) -> None:
    socket = live.start("a red car", format="jpeg")
    start = socket.wait("video.start")
    assert start["codec"] is None and start["description"] is None
    picture = socket.picture()
    assert picture.kind == 2 and picture.payload[:2] == b"\xff\xd8"
    with av.open(io.BytesIO(picture.payload)) as container:
        (frame,) = container.decode(video=0)
        found = frame.to_ndarray(format="rgb24")[8:].mean((0, 1))
    assert found == pytest.approx(color_of("red"), abs=12)


def test_fragments_are_one_video_whatever_is_taken_back(live: Running) -> None:
    """As vLLM-Omni's clients do: the binary messages in a row are a file."""
    socket = live.start("a red car", format="m4s", num_frames=60)
    socket.wait("video.start")
    socket.for_seconds(1.0)
    socket.send(
        "session.interaction",
        interaction={"event_id": "x", "event": {"prompt": "a blue boat"}, "transition_chunks": 2},
    )
    done = socket.wait("session.done", timeout=15)
    assert done["reason"] == "finished" and done["chunks"] == len(socket.binary)
    assert not done["stopped"] and done["request_id"]
    chunks = [m for m in socket.messages if m["type"] == "video.chunk_metadata"]
    assert [chunk["byte_length"] for chunk in chunks] == [len(data) for data in socket.binary]
    assert [chunk["transport_chunk_index"] for chunk in chunks] == list(range(len(chunks)))
    assert [chunk["kind"] for chunk in chunks] == ["init"] + ["media"] * (len(chunks) - 1)
    assert sum(chunk["num_frames"] for chunk in chunks) == 69
    data = b"".join(socket.binary)
    with av.open(io.BytesIO(data)) as container:
        frames = [
            (frame.time, frame.to_ndarray(format="rgb24")[8:].mean((0, 1)))
            for frame in container.decode(video=0)
        ]
    assert len(frames) == 69
    assert [time for time, _ in frames] == pytest.approx(np.arange(69) / 16)
    assert frames[0][1] == pytest.approx(color_of("red"), abs=12)
    assert frames[-1][1] == pytest.approx(color_of("blue"), abs=12)


def test_two_viewers_see_the_same(live: Running) -> None:
    first = live.start()
    start = first.wait("video.start")
    first.for_seconds(1.2)
    second = live.connect()
    second.send("session.start", format="h264", session=start["session"], token=start["token"])
    joined = second.wait("video.start")
    assert joined["session"] == start["session"] and joined["frame"] >= 9
    picture = second.picture()
    assert picture.frame == joined["frame"] and picture.flags & KEY
    for _ in range(30):
        second.picture()
    first.for_seconds(0.2)
    here = {picture.frame: picture.payload for picture in first.pictures}
    assert all(here[p.frame] == p.payload for p in second.pictures if p.frame in here)
    # What one sends, both are told.
    second.send("session.interaction", prompt="a white bird", frame=400)
    timeline = first.wait("timeline")
    assert [cue["prompt"] for cue in timeline["cues"]] == ["a red car", "a white bird"]


def test_a_viewer_comes_back(start_server: StartServer) -> None:
    live = start_server(return_s=20)
    socket = live.start()
    start = socket.wait("video.start")
    socket.for_seconds(0.8)
    socket.connection.close()
    time.sleep(0.3)
    made = live.model.made[-1][0]
    time.sleep(0.8)
    # Nobody watches: it waits.
    assert live.model.made[-1][0] <= made + 1
    again = live.connect()
    again.send("session.start", format="h264", session=start["session"], token=start["token"])
    assert again.wait("video.start")["session"] == start["session"]
    frame = again.picture().frame
    assert abs(frame - socket.pictures[-1].frame) < 40
    again.for_seconds(1.0)
    assert again.pictures[-1].frame > frame


def test_a_session_nobody_comes_back_to_is_saved_and_goes_on(start_server: StartServer) -> None:
    live = start_server(return_s=0.2)
    socket = live.start("a red car", seed=5)
    start = socket.wait("video.start")
    socket.for_seconds(1.0)
    socket.connection.close()
    end = time.monotonic() + 5
    while (facts := live.ask("GET", f"/v1/sessions/{start['session']}", token=start["token"]).json)[
        "status"
    ] == "running":
        assert time.monotonic() < end
        time.sleep(0.05)
    assert facts["state"] and "resumed" in facts["message"]
    again = live.connect()
    again.send("session.start", format="h264", resume=facts["state"])
    resumed = again.wait("video.start")
    assert resumed["seed"] == "5" and resumed["frame"] == resumed["resumed_at_frame"] > 8
    assert again.picture().frame == resumed["frame"]
    joining = live.connect()
    joining.send("session.start", session=start["session"], token=start["token"])
    assert joining.wait("error")["code"] == "session_ended"


def test_pause_and_go_on(live: Running) -> None:
    socket = live.start()
    socket.for_seconds(0.8)
    socket.send("session.pause")
    socket.for_seconds(0.5)
    count = len(socket.pictures)
    socket.for_seconds(1.2)
    assert len(socket.pictures) <= count + 12
    socket.send("session.resume")
    socket.for_seconds(1.6)
    assert len(socket.pictures) > count + 12


def test_a_restart_shows_another_video(live: Running) -> None:
    socket = live.start()
    socket.for_seconds(0.8)
    socket.send("session.restart", seed=99, prompt="a white train")
    cut = socket.wait("video.cut")
    assert cut["frame"] == 0 and cut["reason"] == "restart"
    picture = socket.picture()
    while picture.epoch != cut["epoch"]:
        picture = socket.picture()
    assert picture.frame == 0
    # One video is open: the old one was closed.
    assert live.model.open_videos == 1


def test_a_cue_is_moved_and_removed(live: Running) -> None:
    socket = live.start()
    socket.wait("video.start")
    socket.send("session.interaction", prompt="a white bird", frame=300)
    cue = socket.wait("session.interaction.queued")["cue"]
    socket.send("timeline.edit", cue=cue, frame=400, prompt="a green bird")
    end = time.monotonic() + 5
    while True:
        cues = socket.wait("timeline")["cues"]
        if cues[-1]["frame"] == 405:
            break
        assert time.monotonic() < end
    assert cues[-1]["prompt"] == "a green bird" and cues[-1]["state"] == "sent"
    time.sleep(0.6)
    socket.send("timeline.remove", cue=cue)
    while len(socket.wait("timeline")["cues"]) > 1:
        assert time.monotonic() < end
    socket.send("timeline.remove", cue=cue)
    assert socket.wait("error")["code"] == "not_found"


def test_stop(live: Running) -> None:
    socket = live.start()
    socket.picture()
    socket.send("session.stop")
    done = socket.wait("session.done")
    assert done["reason"] == "stopped" and done["frames"] > 0
    assert socket.close_code() == 1000
    assert live.model.open_videos == 0


def test_a_ping_comes_back(live: Running) -> None:
    socket = live.start()
    socket.send("session.ping", sent_ms=123.5)
    assert socket.wait("session.pong")["sent_ms"] == 123.5


def test_an_idle_session_makes_room(start_server: StartServer) -> None:
    live = start_server(idle_s=0.5)
    socket = live.start()
    done = socket.wait("session.done")
    assert done["reason"] == "idle" and done["state"]
    assert socket.close_code() == 1000


def test_a_model_that_breaks_ends_the_session_and_nothing_else(start_server: StartServer) -> None:
    live = start_server(FakeModel(failing_at=3))
    socket = live.start()
    done = socket.wait("session.done")
    assert done["reason"] == "failed" and "the engine broke" in done["message"]
    assert socket.close_code() == 1011
    live.model.failing_at = None
    assert live.start().picture().frame == 0


# ---- the queue -------------------------------------------------------------------------------


def test_who_comes_too_many_waits_in_order(start_server: StartServer) -> None:
    live = start_server(sessions=2)
    running = [live.start() for _ in range(2)]
    for socket in running:
        socket.wait("video.start")
    waiting = []
    for number in range(1, 7):
        waiting.append(live.start())
        queued = waiting[-1].wait("session.queued")
        assert (queued["position"], queued["waiting"]) == (number, number)
    ready = live.ask("GET", "/ready").json
    assert (ready["running"], ready["waiting"], ready["slots"]) == (2, 6, 2)
    running[0].send("session.stop")
    waiting[0].wait("video.start")
    assert waiting[1].wait("session.queued")["position"] == 1
    # One that gives up moves the others.
    waiting[2].send("session.stop")
    assert waiting[3].wait("session.queued", position=2)
    running[1].connection.close()


def test_a_full_queue_says_so(start_server: StartServer) -> None:
    live = start_server(sessions=1, limits=Limits(waiting=1))
    live.start().wait("video.start")
    live.start().wait("session.queued")
    third = live.start()
    error = third.wait("error")
    assert error["code"] == "server_full" and "queue" in error["message"]
    assert third.close_code() == 1013


def test_who_waits_may_still_say_what_was_shown(start_server: StartServer) -> None:
    live = start_server(sessions=1)
    live.start().wait("video.start")
    require_shown_is_no_fault(live.start())


# ---- abuse -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        "no json",
        "{}",
        "[1]",
        '{"type": "session.start", "format": "gif"}',
        b"\x00\x01binary",
        "9" * 9,
    ],
)
def test_what_is_no_message_is_told(live: Running, data: str | bytes) -> None:
    socket = live.start()
    socket.wait("video.start")
    socket.connection.send(data)
    error = socket.wait("error")
    assert error["code"] == "bad_request" and error["message"]
    assert socket.picture()


def test_before_the_start_too(live: Running) -> None:
    socket = live.connect()
    socket.connection.send("{")
    assert "That is not JSON" in socket.wait("error")["message"]
    socket.send("session.jump")
    assert "no message 'session.jump'; there are 'session.start'" in socket.wait("error")["message"]
    socket.send("session.pause")
    assert socket.wait("error")["code"] == "not_started"
    socket.send("session.start", prompt="a red car", format="h264")
    assert socket.wait("video.start")


def test_a_second_start_is_refused(live: Running) -> None:
    socket = live.start()
    socket.wait("video.start")
    socket.send("session.start", prompt="x")
    assert socket.wait("error")["code"] == "already_started"


def test_nothing_said_for_long(start_server: StartServer) -> None:
    live = start_server(limits=Limits(start_timeout_s=0.2))
    socket = live.connect()
    assert socket.wait("error")["code"] == "not_started"
    assert socket.close_code() == 1008


def test_a_message_that_is_too_large_ends_the_socket(live: Running) -> None:
    socket = live.start()
    socket.wait("video.start")
    socket.connection.send(json.dumps({"type": "prompt.draft", "prompt": "x" * 20_000}))
    assert socket.close_code() == 1009


def test_a_prompt_that_is_too_long(live: Running) -> None:
    socket = live.start()
    socket.wait("video.start")
    socket.send("session.interaction", prompt="x" * 4001)
    assert "4000" in socket.wait("error")["message"]


def test_a_prompt_that_the_model_cuts_is_told(live: Running) -> None:
    socket = live.start()
    socket.wait("video.start")
    socket.send("session.interaction", prompt="very " * 40 + "long")
    assert socket.wait("session.notice")["message"] == "That prompt was cut."


def test_too_many_messages_and_prompts(live: Running) -> None:
    socket = live.start()
    socket.wait("video.start")
    for number in range(8):
        socket.send("session.interaction", prompt=f"car {number}")
    errors = [socket.wait("error") for _ in range(3)]
    assert {error["code"] for error in errors} == {"rate_limited"}
    for _ in range(40):
        socket.send("session.ping")
    socket.for_seconds(0.3)
    assert any("Too many messages" in m.get("message", "") for m in socket.messages)


def test_a_flood_ends_the_socket(live: Running) -> None:
    socket = live.start()
    socket.wait("video.start")
    try:
        for _ in range(300):
            socket.send("session.ping")
    except ConnectionClosed:
        pass
    assert socket.close_code() == 1008


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Origin": "https://evil.example"}, 403, "forbidden_origin"),
        ({"Origin": "null"}, 403, "forbidden_origin"),
        ({"Host": "evil.example"}, 421, "forbidden_host"),
    ],
)
def test_other_sites_are_kept_out(
    live: Running, headers: dict[str, str], status: int, code: str
) -> None:
    if "Host" in headers:
        answer = live.ask("GET", "/v1/models", headers=headers)
        assert (answer.status, answer.code) == (status, code)
        return
    with pytest.raises(InvalidStatus) as refused:
        live.connect(origin=headers["Origin"])
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body)["error"]["code"] == code


def test_a_token_is_asked_for(start_server: StartServer) -> None:
    live = start_server(token="secret")  # noqa: S106
    socket = live.start()
    assert socket.wait("error")["code"] == "unauthorized"
    assert socket.close_code() == 1008
    assert live.start(access="wrong").wait("error")["code"] == "unauthorized"
    assert live.start(access="secret").wait("video.start")
    headers = {"Authorization": "Bearer secret"}
    by_header = live.connect(additional_headers=headers)
    by_header.send("session.start", prompt="x", format="h264")
    assert by_header.wait("video.start")


def test_sessions_are_not_to_be_guessed(live: Running) -> None:
    start = live.start().wait("video.start")
    for session, token in ((start["session"], "x"), (start["session"], None), ("y", "z")):
        socket = live.connect()
        socket.send("session.start", session=session, token=token)
        assert socket.wait("error")["code"] == "not_found"


@pytest.mark.exhaustive
def test_a_slow_reader_skips_to_the_newest_block(start_server: StartServer) -> None:
    """Large pictures, and a client that does not read them for a while."""
    model = FakeModel(width=512, height=384)
    paint = type(model.open(0, "exact"))._paint

    def noisy(self: Any, index: int) -> Any:
        pixels = paint(self, index)
        return np.random.default_rng(index).integers(0, 256, pixels.shape, np.uint8)

    live = start_server(model, pacing=Pacing(lead_blocks=2))
    type(model.open(0, "exact"))._paint = noisy  # type: ignore[method-assign]
    try:
        socket: Socket = live.start()
        socket.wait("video.start")
        time.sleep(6)
        socket.for_seconds(1.5)
    finally:
        type(model.open(0, "exact"))._paint = paint  # type: ignore[method-assign]
    frames = [picture.frame for picture in socket.pictures]
    gaps = [(before, after) for before, after in pairwise(frames) if after != before + 1]
    assert gaps, frames
    keys = {picture.frame: picture.flags & KEY for picture in socket.pictures}
    assert all(keys[after] for _, after in gaps)
    text = live.ask("GET", "/metrics").body.decode()
    (line,) = [row for row in text.splitlines() if row.startswith("longlive_frames_dropped_total{")]
    assert float(line.split()[-1]) > 0
