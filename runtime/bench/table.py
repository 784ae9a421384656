"""The results of ``longlive-trt bench`` for a person: tables, and a line for what is one number."""

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from longlive_trt.console.printing import console
from longlive_trt.contract import DECODER_GRAPHS, PROMPT, TEXT
from longlive_trt.runtime.bench.lane import Loading
from longlive_trt.runtime.bench.measurement import Measurements, Reading
from longlive_trt.runtime.bench.record import cpu_name
from longlive_trt.runtime.bench.report import Figures, Statistics, ratios

_WIDTH_IN_A_FILE = 120
_GIB = 1 << 30
_COMPARED_BUNDLES = 2
_NEW_PROMPT = "A switch to a prompt that is new"


def show(measurements: Measurements, shown: Sequence[Figures]) -> None:
    out = console(file_width=_WIDTH_IN_A_FILE)
    if measurements.interrupted:
        out.print(Text("INTERRUPTED: what follows is the part that was measured", "bold red"))
    for line in _heading(measurements, shown[0]):
        out.print(Text(line))
    for each in shown:
        out.print(_block_table(each))
        for title, switches in _switches(each).items():
            out.print(_switch_table(each, title, switches))
        for line in _single_figures(each):
            out.print(Text(line))
    if len(shown) == _COMPARED_BUNDLES:
        out.print(_ratio_table(*shown))
    for line in _resource_lines(measurements.readings):
        out.print(Text(line))


def _heading(measurements: Measurements, shown: Figures) -> Iterator[str]:
    config, where = shown.bundle.config, measurements.gpu.name if measurements.gpu else cpu_name()
    rollout, vae = config.rollout, config.vae
    size = ""
    if vae:
        size = (
            f"{config.latent.height * vae.spatial_factor}x"
            f"{config.latent.width * vae.spatial_factor}, "
        )
    yield (
        f"{config.name}: {size}{len(rollout.steps)} steps and a clean pass, window "
        f"{rollout.window_frames}, sink {rollout.sink_frames}, "
        f"{shown.video_frames_per_block} video frames a block; on {where}"
    )


def _block_table(shown: Figures) -> Table:
    manifest = shown.bundle.manifest
    title = f"{shown.bundle.folder} ({manifest.precision}, {manifest.engine.kind}): one block"
    table = _times_table(title, "video frames/s", "of peak")
    rates, shares = shown.rates, shown.peak_shares
    names = {
        "transformer": "transformer",
        "vae": "VAE",
        "block": "block to pictures" if shown.decoded else "block to latents",
    }
    parts: dict[str, Mapping[str, Sequence[float]]] = {
        "transformer": shown.passes,
        "vae": _graphs(shown, *(following for _, following in DECODER_GRAPHS.values())),
    }
    for name, series in shown.blocks.items():
        share = f"{shares[name]:.0%}" if name in shares else ""
        table.add_row(names[name], *_times(series), _number(rates[name]), share)
        _add_parts(table, parts.get(name, {}))
    intervals = shown.times.intervals_ms
    if intervals:
        table.add_row("overlapped", *_times(intervals), _number(rates["overlapped"]), "")
    return table


def _switches(shown: Figures) -> dict[str, Mapping[str, Sequence[float]]]:
    announced = "A switch to a prompt that was announced one block before"
    both = {_NEW_PROMPT: shown.switches, announced: shown.announced_switches}
    return {title: switches for title, switches in both.items() if switches["total"]}


def _switch_table(shown: Figures, title: str, switches: Mapping[str, Sequence[float]]) -> Table:
    table = _times_table(title, "of peak")
    for name, series in switches.items():
        share = shown.peak_shares.get(name) if title == _NEW_PROMPT else None
        table.add_row(name, *_times(series), f"{share:.0%}" if share else "")
        if name == "encode" and title == _NEW_PROMPT:
            _add_parts(table, _graphs(shown, TEXT, PROMPT))
    return table


def _graphs(shown: Figures, *names: str) -> dict[str, Sequence[float]]:
    runs = shown.times.graph_runs_ms
    return {f"{name}, one run": runs[name] for name in names if runs.get(name)}


def _add_parts(table: Table, parts: Mapping[str, Sequence[float]]) -> None:
    for name, series in parts.items():
        table.add_row(f"  {name}", *_times(series), style="dim")


def _times_table(title: str, *more: str) -> Table:
    table = Table(title=title)
    table.add_column("ms", no_wrap=True)
    for column in ("p50", "p90", "p99", "max", *more):
        table.add_column(column, justify="right")
    return table


def _ratio_table(first: Figures, second: Figures) -> Table:
    table = Table(title=f"{second.bundle.folder} against {first.bundle.folder}")
    table.add_column("median, ms (p10 to p90)", no_wrap=True)
    for column in (str(first.bundle.folder), str(second.bundle.folder), "ratio"):
        table.add_column(column, justify="right")
    for name, ratio in ratios(first, second).items():
        sides = (f"{s.p50:.2f} ({s.spread:.1%})" for s in (ratio.first, ratio.second))
        table.add_row(name, *sides, f"{ratio.of_medians:.3f}")
    return table


def _single_figures(shown: Figures) -> Iterator[str]:
    times = shown.times
    if times.first_frame_ms:
        cold, *warm = times.first_frame_ms
        later = Statistics.of(warm)
        after = f", {later.p50:.0f} ms in later sessions" if later else ""
        yield f"first pictures: {cold:.0f} ms in the first session{after}"
    yield from _announcing(shown)
    by_graph = ", ".join(_loading(graph, each) for graph, each in times.loading.items())
    yield f"engines loaded in {times.load_s:.1f} s ({by_graph})"
    peaks = shown.peak_tflops
    achieved = ", ".join(
        f"{name} {rate:.3g}" + (f" of {peaks[name]:.0f}" if name in peaks else "")
        for name, rate in shown.tflops.items()
    )
    if achieved:
        yield f"TFLOP/s: {achieved}"


def _announcing(shown: Figures) -> Iterator[str]:
    alone, beside, encoding = (
        Statistics.of(shown.announcing[name])
        for name in ("block alone", "block beside", "encoding")
    )
    if alone and beside and encoding:
        yield (
            f"a prompt encoded beside a block: {encoding.p50:.1f} ms, which make the block "
            f"{beside.p50 - alone.p50:+.1f} ms longer ({alone.p50:.1f} ms without)"
        )


def _loading(graph: str, each: Loading) -> str:
    taken = f", {each.gpu_bytes / _GIB:.2f} GiB" if each.gpu_bytes is not None else ""
    return f"{graph} {each.seconds:.1f} s{taken}"


def _resource_lines(readings: Mapping[str, Sequence[Reading]]) -> Iterator[str]:
    for phase, during in readings.items():
        begin, end = during[0].process_bytes / _GIB, during[-1].process_bytes / _GIB
        line = f"{phase}: process memory {begin:.2f} to {end:.2f} GiB"
        gpus = [reading.gpu for reading in during if reading.gpu is not None]
        clocks = [gpu.sm_clock_mhz for gpu in gpus if gpu.sm_clock_mhz is not None]
        powers = [gpu.power_w for gpu in gpus if gpu.power_w is not None]
        used = [gpu.used_bytes for gpu in gpus if gpu.used_bytes is not None]
        if used:
            line += f"; GPU memory {used[0] / _GIB:.2f} to {used[-1] / _GIB:.2f} GiB"
        if clocks:
            line += f", {min(clocks):.0f} to {max(clocks):.0f} MHz"
        if powers:
            line += f", up to {max(powers):.0f} W"
        yield line


def _times(series: Sequence[float]) -> list[str]:
    taken = Statistics.of(series)
    if taken is None:
        return ["-"] * 4
    return [_number(value) for value in (taken.p50, taken.p90, taken.p99, taken.max)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
