"""How long work is shown, on a terminal and in a log."""

import io
import threading

import pytest

from longlive_trt.basics import Tally
from longlive_trt.console import reporting
from longlive_trt.console.reporting import Pace, reporters
from tests.fakes.terminal import Clock, Terminal

MB = 10**6


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_bytes_have_a_rate_and_a_rest(clock: Clock) -> None:
    pace = Pace(clock)
    assert pace.describe("bytes", 0, 5000 * MB) == "0.0 kB of 5.00 GB"
    clock.now += 10
    assert pace.describe("bytes", 1000 * MB, 5000 * MB) == (
        "1.00 GB of 5.00 GB, 100.0 MB/s, 0:40 left"
    )


def test_what_was_there_before_is_in_no_rate(clock: Clock) -> None:
    """A pull that goes on has most of it."""
    pace = Pace(clock)
    pace.describe("bytes", 4000 * MB, 5000 * MB)
    clock.now += 5
    assert pace.describe("bytes", 4500 * MB, 5000 * MB).endswith("100.0 MB/s, 0:05 left")


def test_stages_have_a_rest_only(clock: Clock) -> None:
    pace = Pace(clock)
    assert pace.describe("stages", 0, 64) == "0 of 64"
    clock.now += 60
    assert pace.describe("stages", 1, 64) == "1 of 64, 1:03:00 left"


def test_other_work_has_a_rate_of_its_own(clock: Clock) -> None:
    pace = Pace(clock)
    pace.describe("bytes", 0, 10 * MB)
    clock.now += 1000
    pace.describe("bytes", 0, 20 * MB)
    clock.now += 2
    assert pace.describe("bytes", 10 * MB, 20 * MB).endswith("5.0 MB/s, 0:02 left")


def test_a_log_has_a_line_a_stage_and_one_now_and_then(clock: Clock) -> None:
    stream = io.StringIO()
    report = reporters(stream, clock=clock).bytes
    for what, done, seconds in (("a", 0, 1), ("a", 1, 1), ("b", 2, 8), ("b", 4, 2), ("b", 6, 1)):
        report(what, done * MB, 10 * MB)
        clock.now += seconds
    assert stream.getvalue().splitlines() == [
        "a",
        "b",
        "b: 6.0 MB of 10.0 MB, 0.5 MB/s, 0:08 left",
    ]


def test_a_log_hears_nothing_of_what_is_soon_done(clock: Clock) -> None:
    stream = io.StringIO()
    report = reporters(stream, patience_s=2, clock=clock).bytes
    report("checking b", 0, 10)
    clock.now += 1.9
    report("checking b", 9, 10)
    assert stream.getvalue() == ""
    clock.now += 0.2
    report("checking b", 10, 10)
    assert stream.getvalue() == "checking b\n"


def test_a_terminal_has_a_bar_that_goes() -> None:
    stream = Terminal()
    shown = reporters(stream)
    shown.bytes("pulling step.weights [/b]", 2 * MB, 8 * MB)
    shown.close()
    said = stream.getvalue()
    assert "pulling step.weights [/b]" in said and "2.0 MB of 8.0 MB" in said
    shown.stages("loading step", 1, 5)
    shown.close()
    assert "loading step" in stream.getvalue()


def test_threads_count_together() -> None:
    told: list[int] = []
    tally = Tally(lambda _what, done, _total: told.append(done), 4000)
    tally.begin("checking")
    threads = [
        threading.Thread(target=lambda: [tally.add(1) for _ in range(1000)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == list(range(4001))
    tally.add(1)
    assert told[-1] == 4000, "what is done again is no more than the whole"


def test_silence() -> None:
    reporting.SILENT.bytes("x", 0, 1)
    reporting.SILENT.close()
