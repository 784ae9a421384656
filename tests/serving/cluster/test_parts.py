"""The gateway's small parts: the line, the journal, the channel, and what HTTP answers."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from longlive_trt.errors import UsageError
from longlive_trt.serving.cluster.channel import WINDOW_BYTES, Channel
from longlive_trt.serving.cluster.host import Host
from longlive_trt.serving.cluster.journal import Journal
from longlive_trt.serving.cluster.line import Line
from longlive_trt.serving.cluster.settings import FleetSettings
from longlive_trt.serving.problems import ProblemError
from longlive_trt.serving.protocol import KEY, LAST_OF_BLOCK, Picture
from longlive_trt.serving.settings import Settings
from tests.fakes.live import FakeModel
from tests.serving.cluster.conftest import StartFleet

TOKEN = "secret"  # noqa: S105


def text(kind: str, **values: Any) -> str:
    return json.dumps({"type": kind, **values})


def test_a_line_is_in_order_and_moving_sessions_come_first() -> None:
    line = Line(2)
    first, second = line.join(), line.join()
    with pytest.raises(ProblemError, match="so is its queue"):
        line.join()
    assert line.join(first.ticket) is first
    assert (line.position(first), line.position(second)) == (1, 2)
    assert line.may_go(first, 0) and not line.may_go(second, 1) and line.may_go(second, 2)
    line.moving += 1
    assert not line.may_go(first, 2) and line.waiting == 3
    line.moving -= 1
    line.leave(first)
    assert line.may_go(second, 0)


def test_a_ticket_that_nobody_asks_for_again_expires() -> None:
    line = Line(2)
    place = line.join(is_held=False)
    place.asked_s -= 31
    assert line.position(place) == 0 and line.join(place.ticket) is not place


def test_a_journal_goes_on_after_whole_blocks_only() -> None:
    journal = Journal("h264")
    journal.read(text("video.start", epoch=3, frame=12))
    for frame, flags in ((12, KEY), (13, LAST_OF_BLOCK), (14, KEY)):
        journal.read(Picture(1, flags, 3, frame, 0, b"").pack())
    assert (journal.frame, journal.epoch) == (14, 3)
    journal.read(text("video.cut", epoch=4, frame=13, reason="prompt"))
    assert (journal.frame, journal.epoch, journal.restarts) == (13, 4, 0)
    journal.read(text("video.cut", epoch=5, frame=0, reason="restart"))
    assert (journal.frame, journal.restarts) == (0, 1)


def test_a_journal_keeps_what_may_not_have_arrived() -> None:
    journal = Journal("m4s")
    for prompt in ("a", "b", "c", "d"):
        journal.sent(prompt)
    journal.read(text("session.interaction.queued", cue=7))
    journal.read(text("timeline", cues=[{"id": 7, "block": 4, "prompt": "a"}]))
    journal.read(text("error", code="conflict", message="", event_id=None))
    journal.read(text("session.interaction.queued", cue=8))
    # a is part of the video, b was refused, c's cue was never seen on the timeline, d not at all.
    assert journal.take_unconfirmed() == ["c", "d"] and journal.take_unconfirmed() == []
    assert journal.cues == ((7, 4, "a"),)


def test_a_channel_waits_for_viewers_that_take_nothing() -> None:
    async def run() -> None:
        channel = Channel()
        await channel.send_bytes(bytes(WINDOW_BYTES))
        stuck = asyncio.create_task(channel.send_text("after"))
        await asyncio.sleep(0.01)
        assert not stuck.done()
        channel.hear([WINDOW_BYTES, "said"])
        await asyncio.wait_for(stuck, 1)
        assert (await channel.receive())["text"] == "said"
        await channel.close(1000)
        batches = [items async for items in channel.batches()]
        assert [len(items) for items in batches] == [3] and batches[0][1:] == ["after", 1000]

    asyncio.run(run())


def test_http_reaches_the_owner(start: StartFleet) -> None:
    fleet = start(hosts=2, slots=1, token=TOKEN)
    assert fleet.ask("GET", "/health").json["status"] == "ok"
    ready = fleet.ask("GET", "/ready").json
    assert (ready["status"], ready["slots"], ready["running"]) == ("ready", 2, 0)
    model = fleet.ask("GET", "/v1/models").json["data"][0]
    assert model["slots"] == 2 and model["needs_token"]
    assert fleet.ask("POST", "/v1/sessions", {}).code == "unauthorized"
    made = [
        fleet.ask("POST", "/v1/sessions", {"prompt": "a red car", "seed": 5}, "secret")
        for _ in range(2)
    ]
    assert [answer.status for answer in made] == [201, 201]
    assert fleet.fleet.running() == {"host-1": 1, "host-2": 1}
    full = fleet.ask("POST", "/v1/sessions", {}, "secret")
    assert (full.status, full.json["error"]["position"]) == (503, 1)
    one, path = made[0].json, f"/v1/sessions/{made[0].json['id']}"
    assert fleet.ask("GET", path, token=one["token"]).json["seed"] == "5"
    for token in (None, "wrong", made[1].json["token"]):
        assert fleet.ask("GET", path, token=token).code == "not_found"
    taken = fleet.ask("POST", f"{path}/interactions", {"prompt": "a boat"}, one["token"])
    assert taken.status == 202
    assert fleet.ask("POST", f"{path}/interactions", {}, one["token"]).code == "bad_request"
    assert fleet.ask("DELETE", path, token=one["token"]).json["status"] == "ended"
    ticket = full.json["error"]["ticket"]
    assert fleet.ask("POST", "/v1/sessions", {"ticket": ticket}, "secret").status == 201


def test_what_a_fleet_says_of_itself(start: StartFleet) -> None:
    fleet = start(hosts=2, slots=1, token=TOKEN)
    for path in ("/metrics", "/v1/admin/hosts"):
        assert fleet.ask("GET", path).code == "unauthorized"
    facts = fleet.ask("GET", "/v1/admin/hosts", token=TOKEN).json
    assert [host["name"] for host in facts["hosts"]] == ["host-1", "host-2"]
    text = fleet.ask("GET", "/metrics", token=TOKEN).body.decode()
    assert 'longlive_host_slots{host="host-2"} 1.0' in text
    assert "longlive_gateway_sockets 0.0" in text
    drained = fleet.ask("POST", "/v1/admin/hosts/nobody/drain", token=TOKEN)
    assert drained.code == "not_found"
    assert fleet.ask("GET", "/v1/videos", token=TOKEN).json["data"] == []
    assert b"<live-player" in fleet.ask("GET", "/").body
    assert fleet.ask("GET", "/v1/sessions/..%2F..%2Fetc", token=TOKEN).status == 404


def test_a_state_of_another_bundle_is_one_line(start: StartFleet) -> None:
    fleet = start(hosts=1)
    socket = fleet.start()
    began = socket.wait("video.start")
    path = f"/v1/sessions/{began['session']}/state"
    socket.picture()
    saved = fleet.ask("POST", path, token=began["token"]).json["state_id"]
    beside = fleet.fleet.store / "states" / f"{saved}.json"
    beside.write_text(beside.read_text().replace("f" * 64, "e" * 64))
    other = fleet.connect()
    other.send("session.start", resume=saved, format="h264")
    words = other.wait("error")["message"]
    assert "another model" in words and "e" * 16 in words and "f" * 16 in words
    # What it was fetched for came to nothing, and does not stay on the machine.
    assert list((fleet.fleet.store.parent / "host-1" / "states").iterdir()) == []
    missing = fleet.connect()
    missing.send("session.start", resume="0" * 32, format="h264")
    assert "no such saved state" in missing.wait("error")["message"]


def test_hosts_must_have_the_fleets_bundle(tmp_path: Path) -> None:
    async def run() -> None:
        fleet = FleetSettings(store=str(tmp_path), bundle_key="e" * 64)
        await Host("here", Settings(sessions=1), fleet, FakeModel).start()

    with pytest.raises(UsageError, match=r"here: its bundle has the key f{16}, the fleet's.*e{16}"):
        asyncio.run(run())


def test_a_host_refuses_a_store_that_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def run() -> None:
        fleet = FleetSettings(store=str(tmp_path / "file"))
        await Host("here", Settings(sessions=1), fleet, FakeModel).start()

    with pytest.raises(UsageError, match="file"):
        asyncio.run(run())
