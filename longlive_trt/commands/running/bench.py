"""``longlive-trt bench``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from longlive_trt.cli import INTERRUPTED
from longlive_trt.commands._bundle import HELP as BUNDLE_HELP
from longlive_trt.commands._bundle import find_bundle
from longlive_trt.commands._device import decode_device_option, decoder_option, device_option
from longlive_trt.commands._numbers import real, whole
from longlive_trt.commands._reporting import command_line
from longlive_trt.commands._voice import (
    PATIENCE_S,
    Voice,
    examples,
    overwrite_option,
    speaking,
)
from longlive_trt.configs import load_preset
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.loader import DeviceChoice
from longlive_trt.errors import UsageError
from longlive_trt.files import publish_file, real_path
from longlive_trt.reading.ranges import Range
from longlive_trt.runtime.bench.kept import AS_EXPORTED, device_of, keep_speed, speed_of
from longlive_trt.runtime.bench.lane import (
    BLOCKS,
    SECONDS,
    SWITCHES,
    WARM_UP,
    BenchSettings,
)
from longlive_trt.runtime.bench.measurement import Measurements, measure
from longlive_trt.runtime.bench.plot import latency_png
from longlive_trt.runtime.bench.record import report_values, to_json
from longlive_trt.runtime.bench.report import Figures, figures
from longlive_trt.runtime.bench.table import show
from longlive_trt.runtime.decoding.choice import DecoderName
from longlive_trt.runtime.output import check_file_output
from longlive_trt.runtime.presets import run_as

QUICK = BenchSettings(blocks=8, switches=2, seconds=4.0, warmup=5, sessions=2)
_PATH = click.Path(path_type=Path)
_FULL = BenchSettings()
_EXAMPLES = examples(
    "longlive-trt bench --bundle demo --quick",
    "longlive-trt bench --bundle bundle/ --out report.json --plot latency.png",
)
TERAFLOPS = Range(0, 1_000_000, above=True)


@click.command(epilog=_EXAMPLES)
@click.option("--bundle", required=True, type=_PATH, help=BUNDLE_HELP)
@click.option(
    "--compare", type=_PATH, metavar="BUNDLE", help="A second bundle of the same model, in turns."
)
@click.option("--preset", help="Measure as this preset runs; `longlive-trt presets` then shows it.")
@click.option(
    "--blocks",
    type=whole(BLOCKS),
    help=f"Blocks of the steady state.  [default: {_FULL.blocks}]",
)
@click.option(
    "--switches",
    type=whole(SWITCHES),
    help="Prompt switches; on a GPU, as many again with the prompt announced.  "
    f"[default: {_FULL.switches}]",
)
@click.option(
    "--seconds",
    type=real(SECONDS),
    help=f"Length of the throughput measurement.  [default: {_FULL.seconds:g}]",
)
@click.option(
    "--warmup",
    type=whole(WARM_UP),
    help="Blocks before any is counted; at least until the window is full.  "
    f"[default: {_FULL.warmup}]",
)
@click.option("--quick", is_flag=True, help="Few blocks, to see that it works.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--no-decode", is_flag=True, help="Measure the transformer alone.")
@decoder_option
@click.option("--low-memory", is_flag=True, help="As `generate --low-memory`.")
@device_option
@decode_device_option
@click.option(
    "--peak-tflops",
    type=real(TERAFLOPS),
    help="What to compare with, in 16 bits; 8 bits are taken to be twice as fast.  "
    "[default: the data sheet's rates of a known GPU]",
)
@click.option("--out", type=_PATH, metavar="FILE.json", help="Where to keep the report.")
@click.option("--plot", type=_PATH, metavar="FILE.png", help="Draw every block's times.")
@overwrite_option
@speaking
def command(
    bundle: Path,
    compare: Path | None,
    preset: str | None,
    blocks: int | None,
    switches: int | None,
    seconds: float | None,
    warmup: int | None,
    quick: bool,
    seed: int,
    no_decode: bool,
    decoder: DecoderName | None,
    low_memory: bool,
    device: DeviceChoice,
    decode_device: str | None,
    peak_tflops: float | None,
    out: Path | None,
    plot: Path | None,
    overwrite: bool,
    voice: Voice,
) -> int:
    """Measure how fast a bundle runs.

    Blocks one after the other, prompt switches, and everything overlapped for a while. Frames are
    video frames. Ctrl-C ends it after a block and keeps what was measured.
    """
    _check_outputs(out, plot, overwrite=overwrite)
    wanted = {"blocks": blocks, "switches": switches, "seconds": seconds, "warmup": warmup}
    lengths: dict[str, Any] = {name: n for name, n in wanted.items() if n is not None}
    base = QUICK if quick else _FULL
    settings = replace(
        base,
        seed=seed,
        decode=not no_decode,
        decoder=decoder,
        device=device,
        decode_device=decode_device,
        low_memory=low_memory,
        **lengths,
    )
    if decoder is not None and no_decode:
        raise UsageError("--decoder and --no-decode: leave one of them out")
    wanted_bundles = [bundle] if compare is None else [bundle, compare]
    folders = [find_bundle(one, voice) for one in wanted_bundles]
    with voice.reporting(patience_s=PATIENCE_S) as report:
        bundles = [open_bundle(folder, report.bytes) for folder in folders]
    if preset is not None:
        bundles = [run_as(one, preset) for one in bundles]
        wanted_preset = load_preset(preset)
        settings = replace(
            settings,
            low_memory=low_memory or wanted_preset.low_memory,
            decoder=decoder or wanted_preset.build.decoder,
        )
    with voice.reporting() as report:
        measurements = measure(bundles, settings, report.stages, voice.note)
    shown = figures(measurements, peak_tflops)
    typed = command_line()
    text = to_json(report_values(measurements, shown, typed))
    _keep(measurements, shown, preset, voice)
    if voice.as_json:
        click.echo(text, nl=False)
    elif not voice.is_quiet:
        show(measurements, shown)
    if out is not None:
        _publish(out, text.encode())
    if plot is not None:
        _publish(plot, latency_png(shown, typed))
    return INTERRUPTED if measurements.interrupted else 0


def _check_outputs(out: Path | None, plot: Path | None, *, overwrite: bool) -> None:
    """Before the run: it takes minutes, and its results should have a place."""
    if plot is not None and plot.suffix.lower() != ".png":
        raise UsageError(f"--plot {plot}: the picture is a PNG file; end its name with .png")
    if out is not None and plot is not None and real_path(out) == real_path(plot):
        raise UsageError(f"{out}: two outputs of this name; give each a name of its own")
    for path in (out, plot):
        if path is None:
            continue
        check_file_output(path, overwrite)


def _keep(
    measurements: Measurements, shown: Sequence[Figures], preset: str | None, voice: Voice
) -> None:
    """Speeds of whole measurements, for `presets`."""
    if measurements.interrupted:
        return
    try:
        for each in shown:
            if (speed := speed_of(measurements, each)) is not None:
                key, device = each.bundle.manifest.key, device_of(measurements)
                keep_speed(key, preset or AS_EXPORTED, device, speed)
    except (OSError, UsageError) as error:
        voice.note(f"the speed is not kept for `longlive-trt presets` ({error})")


def _publish(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with publish_file(path) as partial:
        partial.write_bytes(content)
