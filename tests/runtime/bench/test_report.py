"""The figures: counted work against torch's own count, statistics, rates, JSON, table and plot."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longlive_trt.configs import ModelConfig, load_config
from longlive_trt.engines.bundles.bundle import Bundle, EngineKind, Manifest, open_bundle
from longlive_trt.errors import UsageError
from longlive_trt.plugins.cuda.nvml import GpuReading
from longlive_trt.runtime.bench import plot as bench_plot
from longlive_trt.runtime.bench.flops import BlockFlops, pass_flops, vae_flops
from longlive_trt.runtime.bench.lane import Announced, BlockTimes, LaneTimes, Loading, Settings
from longlive_trt.runtime.bench.measurement import GpuIdentity, Measurements, Reading
from longlive_trt.runtime.bench.plot import latency_png, require_pillow
from longlive_trt.runtime.bench.record import report_values, to_json
from longlive_trt.runtime.bench.report import Statistics, figures, ratios
from longlive_trt.runtime.bench.table import show

FULL = load_config("longlive-1.3b")
TERA = 1e12


# ---- counted work ----------------------------------------------------------------------------


def test_the_full_size_is_counted_as_specified() -> None:
    counted = BlockFlops.of(FULL)
    assert counted.transformer.total / TERA == pytest.approx(141.5, abs=0.05)
    # Self-attention, and a little cross-attention, of five passes.
    assert counted.transformer.attention / TERA == pytest.approx(5 * (16.148 + 0.442), abs=0.01)
    assert counted.vae is not None and counted.vae.total / TERA == pytest.approx(40.65, abs=0.05)
    assert pass_flops(FULL, 3, 12) / TERA == pytest.approx(28.29, abs=0.01)
    # Keys of a window that still fills.
    for attended, attention in ((3, 4.037), (6, 8.074), (9, 12.111)):
        less = pass_flops(FULL, 3, 12) - pass_flops(FULL, 3, attended)
        assert less / TERA == pytest.approx(16.148 - attention, abs=0.002)
    assert pass_flops(FULL, 12, 12) / TERA == pytest.approx(113.2, abs=0.05)
    # With a kept sink, nine of the twelve frames are recomputed.
    assert counted.recache.total == pass_flops(FULL, 9, 12)
    assert vae_flops(FULL, 1) / TERA == pytest.approx(13.55, abs=0.005)


def test_settings_change_the_work() -> None:
    def of(**rollout: Any) -> BlockFlops:
        return BlockFlops.of(replace(FULL, rollout=replace(FULL.rollout, **rollout)))

    assert of(steps=(1000, 500)).transformer.times(5) == of().transformer.times(3)
    assert of(global_sink=False).recache.total == pass_flops(FULL, 12, 12)
    assert of(window_frames=9).transformer.total == 5 * pass_flops(FULL, 3, 9)
    assert BlockFlops.of(replace(FULL, vae=None)).vae is None


@pytest.mark.parametrize("name", ["longlive-1.3b", "tiny"])
def test_torch_counts_the_same(name: str) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from longlive_trt.export.models.transformer import Transformer, full_attention
    from longlive_trt.export.models.vae import VaeDecoder

    config = load_config(name)
    size = config.transformer
    assert config.vae is not None
    with torch.device("meta"), torch.no_grad():
        vae, transformer = VaeDecoder(config.vae), Transformer(size)
        shapes = vae.cache_shapes(config.latent.height, config.latent.width)
        caches = [torch.empty(1, *shape) for shape in shapes]
        latents = torch.empty(1, 3, *config.latent_shape)
        held = torch.empty(1, 9 * config.tokens_per_frame, size.heads, size.head_dim)
        context = transformer.prompt(torch.empty(1, size.text_len, size.text_dim))

        def attend(_layer: int, q: Any, k: Any, v: Any) -> Any:
            return full_attention(q, torch.cat([k, held], 1), torch.cat([v, held], 1))

        with FlopCounterMode(display=False) as following:
            vae.decode_next(latents, caches)
        with FlopCounterMode(display=False) as one_pass:
            transformer(latents, torch.empty(1, size.freq_dim), attend, context)
    assert following.get_total_flops() == vae_flops(config, 3)
    # The one row of the time embedding is left out.
    time = 2 * size.dim * (size.freq_dim + size.dim + 6 * size.dim)
    assert one_pass.get_total_flops() == pass_flops(config, 3, 12) + time


# ---- figures ---------------------------------------------------------------------------------


def times_of(scale: float = 1.0, *, switches: int = 2) -> LaneTimes:
    def block(wall: float, *, switched: bool = False) -> BlockTimes:
        passes = tuple(scale * ms for ms in (40, 40, 40, 40, 40))
        recache, encode = (scale * 100, scale * 5) if switched else (0.0, 0.0)
        transformer = sum(passes) + recache + scale * 10
        return BlockTimes(scale * wall, transformer, passes, recache, scale * 100, encode)

    def announced() -> Announced:
        switch = replace(block(425.0, switched=True), encode_ms=scale * 0.1)
        return Announced(switch, block(330.0), block(338.0), scale * 12)

    return LaneTimes(
        load_s=1.5,
        loading={"step": Loading(1.0, 3 << 30), "text": Loading(0.5, None)},
        open_ms=[3.0, 4.0],
        first_frame_ms=[scale * 900, scale * 500, scale * 600],
        blocks=[block(wall) for wall in (320.0, 330.0, 340.0)],
        switches=[block(430.0, switched=True)] * switches,
        announced=[announced()] * switches,
        intervals_ms=[scale * 240] * 10,
        graph_runs_ms={"step": [scale * 40] * 15, "text": [scale * 4] * 2},
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return bundle_of(load_config("tiny"), tmp_path / "bundle")


def bundle_of(
    config: ModelConfig,
    folder: Path,
    precision: str = "bf16",
    options: dict[str, str] | None = None,
) -> Bundle:
    kind = EngineKind("onnxruntime", "1.24.0", "sm90")
    manifest = Manifest("key", config, kind, precision, {}, {}, {}, {}, options=options or {})
    return Bundle(folder, manifest)


def measured(*bundles: Bundle, gpu: str | None = "NVIDIA H200", **changes: Any) -> Measurements:
    reading = GpuReading(1980.0, 3201.0, 650.0, None, 2.0**33)
    values: dict[str, Any] = {
        "bundles": bundles,
        "settings": Settings(),
        "decoded": True,
        "gpu": GpuIdentity(gpu, "580.1", 700.0) if gpu else None,
        "notices": ["something is missing"],
        "lanes": [times_of(1 + number) for number, _ in enumerate(bundles)],
        "readings": {
            "steady state": [
                Reading(1 << 30, reading if gpu else None),
                Reading(3 << 30, replace(reading, power_w=690.0) if gpu else None),
            ]
        },
    }
    return Measurements(**{**values, **changes})


def test_statistics() -> None:
    found = Statistics.of([float(number) for number in range(100, -1, -1)])
    assert found == Statistics(101, 0, 10, 50, 90, 99, 100)
    assert found.spread == pytest.approx(1.6)
    assert Statistics.of([]) is None
    assert Statistics.of([7.0]) == Statistics(1, *[7.0] * 6)


def test_rates_are_of_video_frames(bundle: Bundle) -> None:
    (shown,) = figures(measured(bundle), None)
    assert shown.video_frames_per_block == 12
    assert shown.rates == pytest.approx(
        {"transformer": 12 / 0.21, "vae": 120, "block": 12 / 0.33, "overlapped": 50}
    )


def test_shares_of_the_peak(bundle: Bundle) -> None:
    full = bundle_of(FULL, bundle.folder)
    (shown,) = figures(measured(full), None)
    assert shown.peak_tflops == pytest.approx({"transformer": 989, "recache": 989, "vae": 989})
    assert shown.floors_ms["vae"] == pytest.approx(40.65 / 0.989, rel=1e-3)
    assert shown.tflops["transformer"] == pytest.approx(141.48 / 0.21, rel=1e-3)
    assert shown.peak_shares["vae"] == pytest.approx(40.65 / 0.1 / 989, rel=1e-3)
    assert shown.peak_shares["recache"] == pytest.approx(84.887 / 0.1 / 989, rel=1e-3)
    assert figures(measured(full), 500.0)[0].peak_tflops["vae"] == pytest.approx(500)
    for made in (measured(full, gpu=None), measured(full, gpu="Riva 128")):
        assert figures(made, None)[0].peak_shares == {}
    assert figures(measured(full, decoded=False), None)[0].work.keys() == {
        *("transformer", "recache")
    }


@pytest.mark.parametrize(
    ("precision", "options", "products", "attention"),
    [
        ("bf16", {}, 989, 989),
        ("bf16", {"attention": "bf16"}, 989, 989),
        ("fp16", {"attention": "plugin"}, 989, 989),
        ("fp16", {"attention": "int8"}, 989, 1978),
        ("fp8", {}, 1978, 989),
        ("fp8", {"attention": "fp8"}, 1978, 1978),
        ("int8", {"attention": "bf16"}, 1978, 989),
    ],
)
@pytest.mark.parametrize("given", [None, 600.0])
def test_eight_bits_raise_the_peak_of_what_they_compute(
    tmp_path: Path,
    precision: str,
    options: dict[str, str],
    products: float,
    attention: float,
    given: float | None,
) -> None:
    bundle = bundle_of(FULL, tmp_path, precision, options)
    (shown,) = figures(measured(bundle), given)
    scale = (given or 989) / 989
    work, floors = BlockFlops.of(FULL), shown.floors_ms
    for name, part in (("transformer", work.transformer), ("recache", work.recache)):
        floor_s = (part.products / products + part.attention / attention) / TERA / scale
        assert floors[name] == pytest.approx(floor_s * 1e3)
        assert shown.peak_tflops[name] == pytest.approx(part.total / floor_s / TERA)
    # The decoder stays in sixteen bits.
    assert shown.peak_tflops["vae"] == pytest.approx(989 * scale)
    assert shown.peak_shares["transformer"] == pytest.approx(floors["transformer"] / 210)


def test_float32_has_a_peak_only_if_one_is_given(tmp_path: Path) -> None:
    made = measured(bundle_of(FULL, tmp_path, "fp32"))
    assert figures(made, None)[0].peak_tflops == {}
    assert figures(made, 60.0)[0].peak_tflops["transformer"] == pytest.approx(60)


def test_a_switch_is_split_without_remainder(bundle: Bundle) -> None:
    (shown,) = figures(measured(bundle), None)
    parts = {name: series[0] for name, series in shown.switches.items()}
    assert parts == {
        "encode": 5,
        "recache": 100,
        "next block": 200,
        "decode": 100,
        "rest": 25,
        "total": 430,
    }


def test_an_announced_prompt_is_split_likewise(bundle: Bundle) -> None:
    (shown,) = figures(measured(bundle), None)
    parts = {name: series[0] for name, series in shown.announced_switches.items()}
    assert parts.pop("total") == 425 and sum(parts.values()) == pytest.approx(425)
    assert parts["encode"] == pytest.approx(0.1)
    announcing = {name: series[0] for name, series in shown.announcing.items()}
    assert announcing["block beside"] - announcing["block alone"] == 8
    assert announcing["encoding"] == 12


def test_ratios_are_of_the_second_to_the_first(bundle: Bundle) -> None:
    made = measured(bundle, bundle)
    found = ratios(*figures(made, None))
    assert found.keys() >= {"transformer", "block", "overlapped", "switch: total", "first frame"}
    assert all(ratio.of_medians == pytest.approx(2) for ratio in found.values())
    assert found["block"].first.spread == pytest.approx(16 / 330)


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


def test_a_plot_needs_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    require_pillow()
    monkeypatch.setattr(bench_plot, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="pip install pillow"):
        require_pillow()


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
