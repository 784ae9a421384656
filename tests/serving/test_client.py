"""The Python client against a whole server."""

import io
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

from longlive_trt.client import LiveClient, LiveError
from tests.fakes.live import color_of
from tests.serving.conftest import Running, StartServer

ROOT = Path(__file__).resolve().parents[2]


def test_a_video_is_watched_steered_and_kept(live: Running) -> None:
    client = LiveClient(f"http://localhost:{live.port}")
    assert client.models()[0]["id"] == "fake"
    with client.open("a red car", seed=4) as video:
        colors = {}
        for picture in video:
            colors[picture.frame] = picture.pixels()[8:].mean((0, 1))
            if picture.frame == 12 and picture.epoch == 0:
                video.prompt("a blue boat")
            if picture.epoch == 1 and picture.frame >= 40:
                break
        assert video.facts["seed"] == "4"
        assert [cue["prompt"] for cue in video.cues] == ["a red car", "a blue boat"]
        assert colors[0] == pytest.approx(color_of("red"), abs=12)
        assert colors[40] == pytest.approx(color_of("blue"), abs=12)
        with av.open(io.BytesIO(video.recording(seconds=1))) as container:
            assert sum(1 for _ in container.decode(video=0)) >= 12
        assert video.recipe()["seed"] == 4
        state = video.save_state()
        video.stop()
        for _ in video:
            pass
        assert video.done is not None and video.done["reason"] == "stopped"
    with client.open(resume=state) as video:
        assert next(iter(video)).frame > 0


def test_pictures_come_at_the_videos_rate_from_the_first_on(live: Running) -> None:
    with LiveClient(f"http://localhost:{live.port}").open("a red car") as video:
        begun = time.monotonic()
        for picture in video:
            assert time.monotonic() - begun >= picture.seconds - 0.2
            if picture.seconds >= 1.5:
                break


def test_what_came_before_the_end_is_shown_to_the_end(live: Running) -> None:
    with LiveClient(f"http://localhost:{live.port}").open("a red car") as video:
        picture = next(iter(video))
        video.stop()
        video.wait("done")
        video._reader.join()
        # The reader's thread may not have come to it yet.
        video._is_over, video._reported_s = False, 0.0
        video._waiting.clear()
        video._waiting.append(picture)
        pictures = iter(video)
        assert next(pictures) is picture
        video._is_over = True
        assert next(pictures, None) is None


def test_jpeg(live: Running) -> None:
    with LiveClient(f"http://localhost:{live.port}/").open("a red car", format="jpeg") as video:
        pixels = next(iter(video)).pixels()
        assert pixels[8:].mean((0, 1)) == pytest.approx(color_of("red"), abs=12)


def test_what_is_wrong_is_raised_in_words(start_server: StartServer) -> None:
    live = start_server(token="secret")  # noqa: S106
    address = f"http://localhost:{live.port}"
    with (
        pytest.raises(LiveError, match="access token") as error,
        LiveClient(address).open("x") as video,
    ):
        next(iter(video))
    assert error.value.code == "unauthorized"
    with pytest.raises(LiveError, match="access token"):
        LiveClient(address).ask("POST", "/v1/sessions", {"prompt": "x"})
    with LiveClient(address, "secret").open("a red car") as video:
        assert next(iter(video)).frame == 0


@pytest.mark.exhaustive
def test_the_example_keeps_what_it_watched(live: Running, tmp_path: Path) -> None:
    out = tmp_path / "live.mp4"
    script = [ROOT / "examples" / "live_client.py", "--server", f"http://localhost:{live.port}"]
    process = subprocess.run(
        [sys.executable, *script, "--out", out],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "answers" in process.stdout
    with av.open(out) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 150
