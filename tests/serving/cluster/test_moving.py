"""Sessions outlive their hosts: drained or killed, what viewers see is what one host would make."""

import time
from itertools import pairwise
from typing import Any

import pytest

from longlive_trt.serving.operation import memory
from longlive_trt.serving.web.rooms import Rooms
from tests.fakes.live import FakeModel
from tests.serving.cluster.conftest import Reached, StartFleet
from tests.serving.conftest import Socket, require_shown_is_no_fault


def watch_until(socket: Socket, frame: int, timeout: float = 15.0) -> None:
    """Like a page: says what it shows."""
    end = time.monotonic() + timeout
    while True:
        picture = socket.picture(max(0.01, end - time.monotonic()))
        if picture.frame % 12 == 0:
            socket.send("playback.shown", epoch=picture.epoch, frame=picture.frame)
        if picture.frame >= frame:
            return


def watched(start: StartFleet) -> tuple[Reached, Socket, dict[str, Any]]:
    """A session that has run for a while on one of two hosts."""
    fleet = start(hosts=2)
    socket = fleet.start("a red car")
    began = socket.wait("video.start")
    watch_until(socket, 30)
    return fleet, socket, began


def shown(socket: Socket) -> dict[int, bytes]:
    """What was on screen: of every picture the newest epoch's."""
    return {
        picture.frame: picture.payload
        for picture in sorted(socket.pictures, key=lambda picture: picture.epoch)
    }


def owner_of(reached: Reached, began: dict[str, Any]) -> str:
    return reached.fleet.owner(began["session"])


def test_eight_sessions_are_spread_evenly_and_the_ninth_waits(start: StartFleet) -> None:
    fleet = start(hosts=4)
    sockets = [fleet.start(seed=number) for number in range(8)]
    for socket in sockets:
        socket.wait("video.start")
    assert fleet.fleet.running() == {f"host-{number}": 2 for number in range(1, 5)}
    ninth = fleet.start(seed=9)
    assert ninth.wait("session.queued")["position"] == 1
    tenth = fleet.start(seed=10)
    assert tenth.wait("session.queued")["position"] == 2
    sockets[0].send("session.stop")
    assert sockets[0].wait("session.done")["reason"] == "stopped"
    ninth.wait("video.start")
    assert tenth.wait("session.queued")["position"] == 1


def test_who_waits_may_still_say_what_was_shown(start: StartFleet) -> None:
    """As who comes back to another gateway does."""
    fleet = start(hosts=1)
    for number in range(2):
        fleet.start(seed=number).wait("video.start")
    require_shown_is_no_fault(fleet.start(seed=2))


def test_a_gateway_gives_memory_back_when_a_socket_is_gone(
    start: StartFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = start(hosts=1)
    given: list[str] = []
    monkeypatch.setattr(memory, "give_back", lambda: given.append("back"))
    # Nothing is told of a session here but by its socket.
    monkeypatch.setattr(Rooms, "_ended", lambda *_: None)
    socket = gateway.start()
    socket.wait("video.start")
    assert not given
    socket.connection.close()
    end = time.monotonic() + 10
    while not given and time.monotonic() < end:
        time.sleep(0.05)
    assert given


def test_a_drained_host_gives_its_sessions_away_with_the_same_bits(start: StartFleet) -> None:
    fleet, socket, began = watched(start)
    socket.send("session.interaction", prompt="a blue boat")
    socket.wait("session.interaction.applied")
    before = owner_of(fleet, began)
    assert fleet.ask("POST", f"/v1/admin/hosts/{before}/drain").status == 200
    moving = socket.wait("session.moving")
    assert moving["reason"] == "drained"
    cut = socket.wait("video.cut", reason="moved")
    moved = socket.wait("session.moved")
    assert moved["after_s"] < 5 and cut["frame"] == moved["frame"] == moving["frame"]
    after = owner_of(fleet, began)
    assert after != before
    watch_until(socket, moved["frame"] + 60)
    # The state was read, and does not stay on the machine.
    assert list((fleet.fleet.store.parent / after / "states").iterdir()) == []
    # No picture is missing, and none came twice under one epoch.
    frames = sorted(shown(socket))
    assert frames == list(range(frames[-1] + 1))
    assert next(p.frame for p in socket.pictures if p.epoch == cut["epoch"]) == cut["frame"]
    compare_with_one_host(fleet, began)


def compare_with_one_host(fleet: Reached, began: dict[str, Any]) -> None:
    """What the newest owner made is what a model makes that nothing happens to."""
    owner = fleet.fleet.models[owner_of(fleet, began)]
    made = owner.latents_of(owner.newest_seed)
    answer = fleet.ask("GET", f"/v1/sessions/{began['session']}/recipe", token=began["token"])
    recipe = answer.json
    video = FakeModel().open(recipe["seed"], "exact")
    cues = {prompt["frame"] // 3: prompt["prompt"] for prompt in recipe["prompts"]}
    latents = []
    for block in range(recipe["frames"] // 3):
        if block in cues:
            video.prompt(cues[block])
        latents.append(video.step().latents.tobytes())
    assert made and all(latents[block] == data for block, data in made.items())


@pytest.mark.parametrize(
    "kind",
    ["h264", *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in ("jpeg", "m4s"))],
)
def test_a_killed_host_costs_nothing_but_time(start: StartFleet, kind: str) -> None:
    fleet = start(hosts=2, save_every_s=0.6)
    socket = fleet.start("a red car", format=kind)
    began = socket.wait("video.start")
    socket.for_seconds(1.5)
    socket.send("session.interaction", prompt="a blue boat")
    socket.wait("session.interaction.queued")
    socket.for_seconds(0.3)
    before = owner_of(fleet, began)
    fleet.fleet.hosts.kill(before)
    moving = socket.wait("session.moving")
    assert moving["reason"] == "lost"
    moved = socket.wait("session.moved")
    assert "saved state" in moved["message"]
    assert owner_of(fleet, began) != before
    socket.for_seconds(2)
    if kind == "m4s":
        chunks = [m for m in socket.messages if m["type"] == "video.chunk_metadata"]
        assert [chunk["transport_chunk_index"] for chunk in chunks] == list(range(len(chunks)))
        assert [chunk["kind"] for chunk in chunks].count("init") == 1
        shown_chunks = chunks[1:]
        assert all(b["frame"] == a["frame"] + a["num_frames"] for a, b in pairwise(shown_chunks))
        assert shown_chunks[-1]["frame"] > moved["frame"]
    else:
        frames = sorted(shown(socket))
        assert frames == list(range(frames[-1] + 1)) and frames[-1] > moved["frame"] + 12
    compare_with_one_host(fleet, began)


def test_a_session_without_a_state_begins_anew_and_catches_up(start: StartFleet) -> None:
    fleet = start(hosts=2)
    socket = fleet.start("a red car")
    began = socket.wait("video.start")
    watch_until(socket, 40)
    fleet.fleet.hosts.kill(owner_of(fleet, began))
    moved = socket.wait("session.moved")
    assert moved["made_again"] > 0
    told = len(socket.messages)
    watch_until(socket, moved["frame"] + 40)
    frames = sorted(shown(socket))
    assert frames == list(range(frames[-1] + 1))
    # What was made again takes no effect again.
    kinds = [message["type"] for message in socket.messages[told:]]
    assert "session.interaction.applied" not in kinds
    compare_with_one_host(fleet, began)


@pytest.mark.exhaustive
def test_a_store_that_lost_its_states_costs_time_only(start: StartFleet) -> None:
    fleet = start(hosts=2, save_every_s=0.5)
    socket = fleet.start("a red car")
    began = socket.wait("video.start")
    watch_until(socket, 60)
    fleet.fleet.hosts.kill(owner_of(fleet, began))
    for path in (fleet.fleet.store / "states").iterdir():
        path.unlink()
    moved = socket.wait("session.moved")
    watch_until(socket, moved["frame"] + 40)
    frames = sorted(shown(socket))
    assert frames == list(range(frames[-1] + 1))
    compare_with_one_host(fleet, began)


def test_what_is_said_while_a_session_moves_reaches_its_next_owner(start: StartFleet) -> None:
    fleet = start(hosts=1, slots=1)
    socket = fleet.start("a red car")
    began = socket.wait("video.start")
    watch_until(socket, 30)
    fleet.fleet.hosts.kill("host-1")
    socket.wait("session.moving")
    socket.send("session.interaction", prompt="a blue boat", event_id="mine")
    time.sleep(0.3)
    fleet.fleet.add("host-2")
    moved = socket.wait("session.moved")
    queued = socket.wait("session.interaction.queued")
    assert queued["prompt"] == "a blue boat" and queued["event_id"] == "mine"
    applied = socket.wait("session.interaction.applied")
    assert applied["frame"] >= moved["frame"] > 0
    assert owner_of(fleet, began) == "host-2"


def test_a_lost_host_that_fails_late_does_not_silence_the_next(start: StartFleet) -> None:
    """What it was told last fails when the session runs elsewhere already."""
    fleet, socket, began = watched(start)
    before = owner_of(fleet, began)
    fleet.fleet.hosts.deaf_s[before] = 1.5
    socket.send("session.interaction", prompt="a blue boat")
    time.sleep(0.2)
    fleet.fleet.hosts.kill(before)
    moved = socket.wait("session.moved")
    assert socket.wait("session.interaction.queued")["prompt"] == "a blue boat"
    watch_until(socket, moved["frame"] + 40)
    socket.send("session.interaction", prompt="a white train")
    assert socket.wait("session.interaction.queued")["prompt"] == "a white train"
    socket.wait("session.interaction.applied")
    compare_with_one_host(fleet, began)


def test_a_session_whose_host_hears_nobody_moves(start: StartFleet) -> None:
    """Pictures come from it still, but it takes no command."""
    fleet, socket, began = watched(start)
    before = owner_of(fleet, began)
    fleet.fleet.hosts.deaf_s[before] = 0.1
    socket.send("session.interaction", prompt="a blue boat")
    assert socket.wait("session.moved")["reason"] == "lost"
    assert socket.wait("session.interaction.queued")["prompt"] == "a blue boat"
    socket.wait("session.interaction.applied")
    assert owner_of(fleet, began) != before
    compare_with_one_host(fleet, began)


def test_a_host_that_was_taken_for_dead_gives_up(start: StartFleet) -> None:
    fleet = start(hosts=2, save_every_s=0.5)
    socket = fleet.start("a red car")
    began = socket.wait("video.start")
    before = owner_of(fleet, began)
    zombie = fleet.fleet.hosts.hosts[before]
    watch_until(socket, 20)
    fleet.fleet.hosts.kill(before)
    socket.wait("session.moved")
    end = time.monotonic() + 5
    while zombie.view().running:
        assert time.monotonic() < end
        time.sleep(0.05)
    news = fleet.fleet.registry.news(began["session"], 2)
    assert news is not None and news.status == "running"


def test_viewers_that_share_a_session_move_together(start: StartFleet) -> None:
    fleet = start(hosts=2)
    first = fleet.start("a red car")
    began = first.wait("video.start")
    second = fleet.connect()
    values = {"session": began["session"], "token": began["token"], "format": "jpeg"}
    second.send("session.start", **values)
    second.wait("video.start")
    watch_until(first, 30)
    second.for_seconds(0.1)
    fleet.ask("POST", f"/v1/admin/hosts/{owner_of(fleet, began)}/drain")
    first.wait("session.moved")
    second.wait("session.moved")
    assert sum(fleet.fleet.running().values()) == 1
    watch_until(first, 90)
    assert second.picture().epoch == first.pictures[-1].epoch


@pytest.mark.exhaustive
def test_a_paused_video_stays_paused(start: StartFleet) -> None:
    fleet, socket, began = watched(start)
    socket.send("session.pause")
    socket.wait("stats", paused=True)
    fleet.fleet.hosts.kill(owner_of(fleet, began))
    socket.wait("session.moved")
    assert socket.wait("stats")["paused"]
    socket.for_seconds(0.5)
    stands = socket.pictures[-1].frame
    socket.for_seconds(1.0)
    assert socket.pictures[-1].frame == stands
    socket.send("session.resume")
    watch_until(socket, stands + 30)
    frames = sorted(shown(socket))
    assert frames == list(range(frames[-1] + 1))


def test_a_restart_is_not_undone_by_an_older_state(start: StartFleet) -> None:
    fleet = start(hosts=2, save_every_s=0.4)
    socket = fleet.start("a red car")
    began = socket.wait("video.start")
    watch_until(socket, 40)
    socket.send("session.restart", seed=77)
    socket.wait("video.cut", reason="restart")
    fleet.fleet.hosts.kill(owner_of(fleet, began))
    socket.wait("session.moved")
    watch_until(socket, 20)
    answer = fleet.ask("GET", f"/v1/sessions/{began['session']}/recipe", token=began["token"])
    assert answer.json["seed"] == 77
    compare_with_one_host(fleet, began)


@pytest.mark.exhaustive
def test_a_session_survives_the_whole_fleet(start: StartFleet) -> None:
    first = start(hosts=1)
    socket = first.start("a red car")
    began = socket.wait("video.start")
    watch_until(socket, 40)
    first.fleet.stop()
    second = start(hosts=1)
    back = second.connect()
    values = {"session": began["session"], "token": began["token"], "format": "h264"}
    back.send("session.start", **values)
    again = back.wait("video.start", timeout=15)
    assert again["session"] == began["session"] and again["resumed_at_frame"] > 0
    watch_until(back, again["frame"] + 40)
    compare_with_one_host(second, began)


def test_nobody_gets_a_session_with_a_wrong_token(start: StartFleet) -> None:
    fleet = start(hosts=1)
    socket = fleet.start("a red car")
    began = socket.wait("video.start")
    for values in (
        {"session": began["session"], "token": "wrong"},
        {"session": began["session"]},
        {"session": "0123456789abcdef", "token": began["token"]},
        {"session": "../../../../etc/passwd", "token": began["token"]},
    ):
        other = fleet.connect()
        other.send("session.start", format="h264", **values)
        assert "no such session" in other.wait("error")["message"]
        assert other.close_code() == 1008
    assert fleet.fleet.hosts.told == []


def test_messages_are_limited_at_the_gateway(start: StartFleet) -> None:
    fleet = start(hosts=1)
    large = fleet.start("a red car")
    large.wait("video.start")
    large.connection.send("x" * (17 << 10))
    assert large.close_code() == 1009
    bad = fleet.start("a red car", seed=2)
    bad.wait("video.start")
    bad.connection.send("not JSON")
    assert bad.wait("error")["code"] == "bad_request"
    bad.send("session.interaction", prompt="x" * 4001)
    assert bad.wait("error")["code"] == "bad_request"
    bad.send("session.start", prompt="again")
    assert bad.wait("error")["code"] == "already_started"
    silent = fleet.connect()
    silent.send("session.pause")
    assert silent.wait("error")["code"] == "not_started"
