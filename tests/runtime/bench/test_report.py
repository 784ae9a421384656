"""The figures: statistics, rates, shares of the peak, and ratios."""

from pathlib import Path

import pytest

from longlive_trt.configs import load_config
from longlive_trt.engines.bundles.bundle import Bundle
from longlive_trt.runtime.bench.flops import BlockFlops
from longlive_trt.runtime.bench.report import Statistics, figures, ratios
from tests.runtime.bench.samples import bundle_of, measured

FULL = load_config("longlive-1.3b")
TERA = 1e12


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
        "next block": 160,
        "decode": 100,
        "rest": 65,
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
