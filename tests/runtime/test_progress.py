import io
import json

import pytest
from rich.console import Console

from longlive_trt.runtime.progress import (
    JsonProgress,
    Meter,
    PlainProgress,
    Progress,
    QuietProgress,
    RichProgress,
    Started,
    make_progress,
)
from tests.fakes.terminal import Clock, Terminal


@pytest.fixture
def clock():
    return Clock()


def run(progress: Progress, clock: Clock, blocks: int | None = 3, block_s: float = 0.5) -> None:
    meter = Meter(blocks, clock=clock)
    progress.started(Started(blocks, 33 if blocks else None, 16.0, "video.mp4"))
    progress.notice("an [odd] note")
    for video_frames in (9, 12, 12):
        clock.now += block_s
        progress.block(meter.block(video_frames))
    progress.finished(meter.finished("video.mp4"))


class TestMeter:
    def test_blocks_frames_rate_and_time_left(self, clock):
        meter = Meter(10, clock=clock)
        clock.now += 1.0
        first = meter.block(9)
        clock.now += 0.5
        second = meter.block(12)
        assert (first.index, second.index) == (0, 1)
        assert (first.video_frames, second.video_frames) == (9, 21)
        assert first.frames_per_second == pytest.approx(9)
        assert second.frames_per_second == pytest.approx(21 / 1.5)
        assert second.eta_s == pytest.approx(8 * 0.75)
        assert second.elapsed_s == pytest.approx(1.5)
        assert second.resident_bytes > 2**20

    def test_the_rate_forgets_a_slow_start(self, clock):
        meter = Meter(100, clock=clock)
        clock.now += 60.0
        meter.block(9)
        for _ in range(10):
            clock.now += 0.25
            last = meter.block(12)
        assert last.frames_per_second == pytest.approx(48)
        assert last.eta_s == pytest.approx(89 * 0.25)

    def test_the_final_rate_counts_everything(self, clock):
        meter = Meter(2, clock=clock)
        clock.now += 60.0
        meter.block(9)
        clock.now += 2.0
        end = meter.finished("video.mp4", interrupted=True)
        assert (end.blocks, end.video_frames) == (1, 9)
        assert end.frames_per_second == pytest.approx(9 / 62)
        assert end.interrupted

    def test_an_endless_video_has_no_time_left(self, clock):
        block = Meter(None, clock=clock).block(9)
        assert (block.blocks, block.eta_s) == (None, None)

    def test_a_clock_that_stands_still(self, clock):
        meter = Meter(2, clock=clock)
        assert meter.block(9).frames_per_second is None
        assert meter.finished(None).frames_per_second is None

    def test_a_resumed_run_counts_its_own_blocks(self, clock):
        meter = Meter(10, first_block=4, clock=clock)
        clock.now += 1.0
        block = meter.block(12)
        assert (block.index, block.eta_s) == (4, pytest.approx(5.0))
        assert meter.finished(None).blocks == 1


class TestJson:
    def test_one_event_a_line(self, clock):
        stream = io.StringIO()
        run(JsonProgress(stream), clock)
        events = [json.loads(line) for line in stream.getvalue().splitlines()]
        names = [event["event"] for event in events]
        assert names == ["started", "notice", "block", "block", "block", "finished"]
        assert events[0] == {
            "event": "started", "blocks": 3, "video_frames": 33, "fps": 16.0, "output": "video.mp4",
        }  # fmt: skip
        assert events[1]["text"] == "an [odd] note"
        last = events[4]
        assert (last["index"], last["blocks"], last["video_frames"]) == (2, 3, 33)
        assert (last["frames_per_second"], last["eta_s"]) == (22.0, 0.0)
        assert last["resident_bytes"] > 0
        assert (events[5]["video_frames"], events[5]["interrupted"]) == (33, False)

    def test_unknown_totals_are_null_and_texts_stay_on_one_ascii_line(self, clock):
        stream = io.StringIO()
        progress = JsonProgress(stream)
        run(progress, clock, blocks=None, block_s=0)
        progress.notice("köd\nnext \udcff")
        lines = stream.getvalue().splitlines()
        assert json.loads(lines[2])["blocks"] is None
        assert json.loads(lines[2])["frames_per_second"] is None
        assert json.loads(lines[-1])["text"] == "köd\nnext \udcff"
        assert stream.getvalue().isascii()

    def test_every_line_is_flushed(self, clock):
        class Stream(io.StringIO):
            flushes = 0

            def flush(self) -> None:
                self.flushes += 1

        stream = Stream()
        run(JsonProgress(stream), clock)
        assert stream.flushes == 6


class TestPlain:
    def test_lines_for_a_log(self, clock):
        stream = io.StringIO()
        run(PlainProgress(stream, interval_s=0), clock)
        lines = stream.getvalue().splitlines()
        assert lines[0] == "making 3 blocks, 33 video frames at 16 frames/s to video.mp4"
        assert lines[1] == "note: an [odd] note"
        assert lines[2].startswith("block 1/3, 9 video frames, 18.0 frames/s, 0:01 left, ")
        assert lines[-1] == "made 3 blocks, 33 video frames in 0:02 (22.0 frames/s): video.mp4"

    def test_between_the_first_and_the_last_only_one_now_and_then(self, clock):
        stream = io.StringIO()
        progress, meter = PlainProgress(stream, interval_s=5), Meter(100, clock=clock)
        for _ in range(100):
            clock.now += 0.1
            progress.block(meter.block(12))
        spoken = [line.split(",")[0] for line in stream.getvalue().splitlines()]
        assert spoken[0] == "block 1/100"
        assert spoken[-1] == "block 100/100"
        assert len(spoken) == 3

    def test_an_endless_video(self, clock):
        stream = io.StringIO()
        run(PlainProgress(stream), clock, blocks=None)
        assert "making an endless video at 16 frames/s" in stream.getvalue()
        assert "left" not in stream.getvalue()


class TestRich:
    @pytest.mark.parametrize("blocks", [3, None])
    def test_a_terminal_sees_blocks_and_rate_and_the_texts_as_they_are(self, clock, blocks):
        stream = Terminal()
        console = Console(file=stream, force_terminal=True, width=120)
        with RichProgress(console) as progress:
            run(progress, clock, blocks)
        shown = stream.getvalue()
        assert "an [odd] note" in shown
        assert "33 video frames, 22.0 frames/s" in shown
        assert "made 3 blocks" in shown

    def test_leaving_early_gives_the_cursor_back(self):
        stream = Terminal()
        with RichProgress(Console(file=stream, force_terminal=True, width=120)) as progress:
            progress.started(Started(3, 33, 16.0))
        hidden, shown = "\x1b[?25l", "\x1b[?25h"
        assert stream.getvalue().rindex(shown) > stream.getvalue().rindex(hidden)


class TestChoice:
    @pytest.mark.parametrize(
        ("mode", "stream", "kind"),
        [
            ("auto", Terminal(), RichProgress),
            ("auto", io.StringIO(), PlainProgress),
            ("rich", io.StringIO(), RichProgress),
            ("quiet", Terminal(), QuietProgress),
            ("json", Terminal(), JsonProgress),
        ],
    )
    def test_the_mode_and_the_stream_decide(self, mode, stream, kind):
        assert type(make_progress(mode, stdout=io.StringIO(), stderr=stream)) is kind

    @pytest.mark.parametrize("mode", ["auto", "rich", "quiet", "json"])
    def test_only_json_speaks_on_stdout(self, clock, mode):
        stdout, stderr = io.StringIO(), io.StringIO()
        with make_progress(mode, stdout=stdout, stderr=stderr) as progress:
            run(progress, clock)
        assert bool(stdout.getvalue()) == (mode == "json")
        assert bool(stderr.getvalue()) == (mode in ("auto", "rich"))
