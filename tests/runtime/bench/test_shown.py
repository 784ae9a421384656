"""How figures are shown: JSON, table and plot."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.runtime.bench import plot as bench_plot
from longlive_trt.runtime.bench.lane import LaneTimes
from longlive_trt.runtime.bench.measurement import Measurements
from longlive_trt.runtime.bench.plot import latency_png
from longlive_trt.runtime.bench.record import report_values, to_json
from longlive_trt.runtime.bench.report import figures
from longlive_trt.runtime.bench.table import show
from tests.runtime.bench.samples import measured, times_of

# ---- JSON ------------------------------------------------------------------------------------


def values_of(made: Measurements, command: str = "longlive-trt bench") -> dict[str, Any]:
    values: dict[str, Any] = json.loads(to_json(report_values(made, figures(made, None), command)))
    return values


def test_the_report_holds_what_was_measured(bundle: Bundle) -> None:
    values = values_of(measured(bundle))
    assert (values["outcome"], values["comparison"]) == ("complete", None)
    assert values["machine"]["gpu"]["name"] == "NVIDIA H200"
    assert values["machine"]["cpu"] and values["machine"]["cores"] > 0
    assert values["versions"]["numpy"] and values["notices"] == ["something is missing"]
    assert (
        values["model"]["video_height"] == 128 and values["model"]["video_frames_per_block"] == 12
    )
    (one,) = values["bundles"]
    assert (one["key"], one["precision"]) == ("key", "bf16")
    block = one["steady_state_ms"]["block"]
    assert (block["p50"], block["max"], block["series"]) == (330, 340, [320, 330, 340])
    assert [*one["passes_ms"]] == [
        "t=1000",
        "t=937.5",
        "t=833.3",
        "t=625",
        "clean",
        "between passes",
    ]
    assert one["first_frame_ms"]["cold"] == 900
    assert one["first_frame_ms"]["warm"]["series"] == [500, 600]
    assert (
        one["graph_runs_ms"].keys() == {"step", "text"}
        and "series" not in one["graph_runs_ms"]["step"]
    )
    assert one["throughput"]["video_frames"] == 120 and one["throughput"]["seconds"] == 2.4
    assert one["switches_ms"]["recache"]["count"] == 2
    assert one["announced_switches_ms"]["encode"]["p50"] == 0.1
    assert one["announcing_ms"]["block beside"]["series"] == [338, 338]
    assert one["loading"]["step"] == {"seconds": 1.0, "gpu_bytes": 3 << 30}
    assert one["loading"]["text"]["gpu_bytes"] is None
    course = values["resources"]["steady state"]
    assert (
        course["process_bytes"]["first"] == 1 << 30 and course["process_bytes"]["last"] == 3 << 30
    )
    assert course["gpu"]["power_w"]["max"] == 690 and course["gpu"]["temperature_c"] is None


def test_a_report_of_next_to_nothing(bundle: Bundle) -> None:
    made = measured(bundle, lanes=[LaneTimes()], interrupted=True, gpu=None, decoded=False)
    values = values_of(made)
    assert values["outcome"] == "interrupted"
    (one,) = values["bundles"]
    assert one["throughput"] is None and one["steady_state_ms"] == {}
    assert one["first_frame_ms"] == {"cold": None, "warm": None}
    assert one["video_frames_per_s"] == {"transformer": None, "block": None, "overlapped": None}


def test_each_series_has_one_line_and_texts_stay_as_they_are(bundle: Bundle) -> None:
    made = measured(bundle)
    command = "longlive-trt bench --bundle '[1,  2]'"
    text = to_json(report_values(made, figures(made, None), command))
    assert '"series": [320.0, 330.0, 340.0]' in text
    assert json.loads(text)["command"] == command


def test_the_comparison_in_the_report(bundle: Bundle) -> None:
    values = values_of(measured(bundle, bundle))
    assert values["comparison"]["vae"] == {
        "ratio_of_medians": 2.0,
        "medians_ms": [100.0, 200.0],
        "spreads": [0.0, 0.0],
    }


# ---- table and plot --------------------------------------------------------------------------


def shown_text(made: Measurements, capsys: pytest.CaptureFixture[str]) -> str:
    show(made, figures(made, None))
    return capsys.readouterr().out


def test_the_table_says_what_is_counted(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown_text(measured(bundle), capsys)
    for words in (
        *("128x192", "4 steps and a clean pass", "window 12, sink 3", "12 video frames a block"),
        *("NVIDIA H200", "video frames/s", "t=937.5", "between passes", "overlapped", "recache"),
        "text, one run",
        "first pictures: 900 ms in the first session, 550 ms in later sessions",
        "GPU memory 8.00 to 8.00 GiB, 1980 to 1980 MHz, up to 690 W",
        "process memory 1.00 to 3.00 GiB",
        *("A switch to a prompt that is new", "prompt that was announced one block before"),
        "a prompt encoded beside a block: 12.0 ms, which make the block +8.0 ms longer",
        "engines loaded in 1.5 s (step 1.0 s, 3.00 GiB, text 0.5 s)",
    ):
        assert words in text
    row = next(line for line in text.splitlines() if " VAE " in line)
    assert "100.00" in row and "120.00" in row
    assert "INTERRUPTED" not in text


def test_the_table_of_an_interrupted_run_says_so(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    made = measured(bundle, lanes=[LaneTimes()], interrupted=True)
    text = shown_text(made, capsys)
    assert text.startswith("INTERRUPTED") and "A switch" not in text


def test_the_table_of_two_bundles(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    second = replace(bundle, folder=bundle.folder.with_name("other"))
    text = shown_text(measured(bundle, second), capsys)
    row = next(line for line in text.splitlines() if "switch: recache" in line)
    assert "100.00" in row and "200.00" in row and "2.000" in row


def test_the_plot_has_a_panel_for_each_kind_of_series(bundle: Bundle) -> None:
    image = pytest.importorskip("PIL.Image")

    def picture(made: Measurements) -> Any:
        return image.open(io.BytesIO(latency_png(figures(made, None), "a title")))

    one, two = picture(measured(bundle)), picture(measured(bundle, bundle))
    assert one.format == "PNG" and one.width == two.width == 1200
    title_only = picture(measured(bundle, lanes=[LaneTimes()])).height
    assert two.height - title_only == 2 * (one.height - title_only) > 0
    assert (
        picture(measured(bundle, lanes=[replace(times_of(), intervals_ms=[])])).height < one.height
    )


def test_higher_values_are_drawn_higher(bundle: Bundle) -> None:
    image = pytest.importorskip("PIL.Image")
    times = replace(times_of(switches=0), intervals_ms=[100.0, 400.0], blocks=[])
    made = measured(bundle, lanes=[times])
    drawn = image.open(io.BytesIO(latency_png(figures(made, None), "")))
    top = 140
    blue = [
        (x, y)
        for x in range(80, 1180)
        for y in range(top - 4, top + 264)
        if drawn.getpixel((x, y)) == (0x3B, 0x6E, 0xA8)
    ]
    left, right = min(blue)[1], max(blue)[1]
    assert abs(left - (top + 260 * 0.75)) <= 3 and abs(right - top) <= 3


@pytest.mark.parametrize(
    ("value", "above"), [(0.0, 1), (0.9, 1), (1.0, 1), (1.01, 1.2), (491.0, 600), (1000.0, 1000)]
)
def test_axes_end_at_round_numbers(value: float, above: float) -> None:
    assert bench_plot._round_above(value) == pytest.approx(above)


def test_figures_fit_any_bundle_that_is_measured(
    mini_bundle: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = open_bundle(mini_bundle("relative"))
    assert "mini-relative: 4 steps" in shown_text(measured(bundle, decoded=False), capsys)
