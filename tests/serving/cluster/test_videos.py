"""Whole videos of a fleet: placed like sessions, and the same file whatever becomes of hosts."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from benchmarks.fleet.painter import Painter
from longlive_trt.errors import BundleError
from longlive_trt.serving.cluster.store.registry import News
from longlive_trt.serving.cluster.videos import making, parts
from longlive_trt.serving.media.h264 import Sample
from tests.serving.cluster.conftest import Reached, StartFleet

slower = partial(Painter, block_s=0.3)
"""So that a host that counts as killed, and runs on here, does not finish."""
TOKEN = "secret"  # noqa: S105
WISH = {
    "prompt": "a red car",
    "seconds": 8,
    "seed": 5,
    "timeline": [{"frame": 60, "prompt": "a blue boat"}],
}
slow = partial(Painter, block_s=0.08)
"""What it paints follows from the seed and from everything before it."""


def order(fleet: Reached, **values: Any) -> str:
    answer = fleet.ask("POST", "/v1/videos", {**WISH, **values})
    assert answer.status == 200, answer.body
    return str(answer.json["id"])


def until(fleet: Reached, video: str, holds: Callable[[Any], bool], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not holds(now := fleet.ask("GET", f"/v1/videos/{video}").json):
        assert time.monotonic() < end, now
        time.sleep(0.05)
    return now


def is_over(now: Any) -> bool:
    return now["status"] in ("completed", "failed")


def is_under_way(now: Any) -> bool:
    return bool(now["progress"] > 25)


def file_of(fleet: Reached, video: str) -> bytes:
    answer = fleet.ask("GET", f"/v1/videos/{video}/content")
    assert answer.status == 200 and answer.headers["content-type"] == "video/mp4"
    return answer.body


def news(fleet: Reached, video: str) -> News:
    found = fleet.fleet.registry.news(video, 1)
    assert found is not None
    return found


def owner(fleet: Reached, video: str) -> str:
    return fleet.fleet.owner(video)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of one host that nothing happens to."""
    from tests.fakes.fleet import start_fleet

    fleet = Reached(start_fleet(tmp_path_factory.mktemp("one"), hosts=1, model=Painter))
    try:
        video = order(fleet)
        assert until(fleet, video, is_over)["note"] is None
        return file_of(fleet, video)
    finally:
        fleet.fleet.stop()


def test_a_video_is_placed_like_a_session(start: StartFleet, undisturbed: bytes) -> None:
    fleet = start(hosts=2, slots=1, model=slow)
    first, second, third = (order(fleet, seed=seed) for seed in (5, 6, 7))
    assert sorted(fleet.fleet.running().values()) == [1, 1]
    assert {owner(fleet, first), owner(fleet, second)} == {"host-1", "host-2"}
    assert fleet.ask("GET", f"/v1/videos/{third}").json["status"] == "queued"
    assert fleet.ask("GET", "/v1/admin/hosts").json["waiting"] == 1
    assert fleet.ask("GET", f"/v1/videos/{first}/content").code == "conflict"
    for video in (first, second, third):
        now = until(fleet, video, is_over)
        assert (now["status"], now["progress"], now["seconds"]) == ("completed", 100, "8")
        assert now["size"] == "64x48" and now["completed_at"] >= now["created_at"]
    assert file_of(fleet, first) == undisturbed != file_of(fleet, second)
    listed = fleet.ask("GET", "/v1/videos").json["data"]
    assert {one["id"] for one in listed} == {first, second, third}
    assert fleet.fleet.running() == {"host-1": 0, "host-2": 0}
    folder = fleet.fleet.store / "videos" / first
    assert sorted(path.name for path in folder.iterdir()) == ["content.mp4", "order.json"]


def test_a_drained_host_gives_its_videos_away(start: StartFleet, undisturbed: bytes) -> None:
    fleet = start(hosts=2, model=slow)
    video = order(fleet)
    until(fleet, video, is_under_way)
    before = owner(fleet, video)
    assert fleet.ask("POST", f"/v1/admin/hosts/{before}/drain").status == 200
    now = until(fleet, video, is_over)
    assert now["status"] == "completed" and owner(fleet, video) != before
    assert "another went on from" in now["note"]
    assert file_of(fleet, video) == undisturbed
    assert list((fleet.fleet.store / "states").iterdir()) == []


def test_a_killed_host_costs_what_came_after_the_newest_state(
    start: StartFleet, undisturbed: bytes
) -> None:
    fleet = start(hosts=2, model=slower, save_every_s=0.3)
    video = order(fleet)
    before = owner(fleet, video)
    until(fleet, video, lambda _: news(fleet, video).states != ())
    fleet.fleet.hosts.kill(before)
    now = until(fleet, video, is_over)
    assert now["status"] == "completed" and owner(fleet, video) != before
    assert "another went on from" in now["note"]
    assert file_of(fleet, video) == undisturbed


@pytest.mark.exhaustive
def test_without_its_pictures_a_video_is_made_again(start: StartFleet, undisturbed: bytes) -> None:
    fleet = start(hosts=2, model=slower, save_every_s=0.3)
    video = order(fleet)
    before = owner(fleet, video)
    until(fleet, video, lambda _: news(fleet, video).states != ())
    fleet.fleet.hosts.kill(before)
    # A zombie of this process may write another; none is the first.
    for part in (fleet.fleet.store / "videos" / video).glob("00000000-*.part"):
        part.write_bytes(b"damaged")
    now = until(fleet, video, is_over)
    assert now["status"] == "completed"
    assert now["note"].endswith("made it again from the beginning.")
    assert file_of(fleet, video) == undisturbed


@pytest.mark.exhaustive
def test_another_gateway_goes_on_with_an_order(
    start: StartFleet, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "_ROUND_S", 0.2)
    first = start(hosts=1, model=slow)
    video = order(first)
    until(first, video, is_under_way)
    first.fleet.stop()
    damaged = first.fleet.store / "videos" / f"video_{'-' * 16}" / "order.json"
    damaged.parent.mkdir()
    damaged.write_text("{")
    second = start(hosts=1, model=slow)
    assert until(second, video, is_over)["status"] == "completed"
    assert file_of(second, video) == undisturbed


def test_videos_that_fail_say_why(start: StartFleet) -> None:
    fleet = start(hosts=1)
    next(iter(fleet.fleet.models.values())).failing_at = 1
    now = until(fleet, order(fleet), is_over)
    assert now["status"] == "failed" and "the engine broke" in now["error"]["message"]
    for wish, words in (
        ({"seconds": 0}, "bad_request"),
        ({"seconds": "601"}, "bad_request"),
        ({"size": "1x1"}, "bad_request"),
        ({"switch": "somehow"}, "bad_request"),
    ):
        assert fleet.ask("POST", "/v1/videos", {**WISH, **wish}).code == words
    assert len(fleet.ask("GET", "/v1/videos").json["data"]) == 1


def test_who_may_ask_and_what_is_gone(start: StartFleet) -> None:
    fleet = start(hosts=1, token=TOKEN, model=slow)
    assert fleet.ask("POST", "/v1/videos", WISH).code == "unauthorized"
    video = fleet.ask("POST", "/v1/videos", WISH, TOKEN).json["id"]
    assert fleet.ask("GET", f"/v1/sessions/{video}", token=TOKEN).code == "not_found"
    assert fleet.ask("DELETE", f"/v1/videos/{video}", token=TOKEN).json["deleted"]
    assert fleet.ask("GET", f"/v1/videos/{video}", token=TOKEN).code == "not_found"
    for other in ("video_" + "x" * 16, "video_short", "..%2F..%2Fetc"):
        assert fleet.ask("GET", f"/v1/videos/{other}", token=TOKEN).status == 404
    end = time.monotonic() + 5
    while fleet.fleet.running()["host-1"]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_part_of_a_recording(tmp_path: Path) -> None:
    samples = [Sample(b"key", True), Sample(b"", False), Sample(b"more", False)]
    path = tmp_path / "part"
    parts.write_part(path, samples)
    assert parts.read_part(path) == samples
    whole = path.read_bytes()
    for data in (b"", whole[:-1], whole + b"x", b"XXXX" + whole[4:], whole[:9]):
        path.write_bytes(data)
        with pytest.raises(BundleError, match=r"part.*begin the video anew"):
            parts.read_part(path)
