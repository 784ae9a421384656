"""docs/presets.md and docs/results/presets_demo.json: what each preset costs and gives.

python -m benchmarks.quality.trials --trials presets --seeds 3 --long 1      # quality: hours
python -m benchmarks.quality.speeds                      # speed, with nothing else running
python -m benchmarks.quality.presets                     # the page, of what is there
python -m benchmarks.quality.presets --gpu NAME.json ... # and of `bench --preset` on a GPU
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import longlive_trt as ll
from benchmarks.harness import RESULTS, ROOT, Row, parser, replace_table, write_report
from benchmarks.quality import catalog
from benchmarks.quality.lab import Lab, Trial, weights
from benchmarks.quality.pareto_plot import Point, drawn
from benchmarks.quality.records import Records
from benchmarks.quality.rows import (
    FEW,
    distance_cell,
    kept_rows,
    likeness_cell,
    measured_on,
    measured_rows,
    measured_with,
    share_cell,
    verdict,
)
from benchmarks.quality.speeds import BASE, speeds
from benchmarks.quality.speeds import RESULT as SPEEDS
from benchmarks.quality.strip import NamedRow, save_strip
from benchmarks.quality.trials import add_lengths, lengths
from longlive_trt.configs import load_preset
from longlive_trt.quality.cases import Case
from longlive_trt.quality.measured import Figures, Measured, Rate, write_figures

PAGE = ROOT / "docs" / "presets.md"
PICTURES = ROOT / "docs" / "presets"
RESULT = RESULTS / "presets_demo.json"
_PROMISED, _GPU_COLUMNS = "H200", "transformer, ms | VAE, ms | frames/s"
Speeds = Mapping[str, Mapping[str, float]]
"""By preset."""


def main() -> None:
    options = parser(__doc__, out=False)
    add_lengths(options, long=1, seeds=3)
    options.add_argument("--gpu", type=Path, nargs="*", default=[], help="reports of `bench --out`")
    given = options.parse_args()
    with ll.load("demo") as pipeline:
        lab = Lab(pipeline, Records(given.work))
        cases = lab.cases(lengths(given), given.seeds)
        found = measured_rows(lab, catalog.presets(), cases)
        PICTURES.mkdir(parents=True, exist_ok=True)
        if stills := list(_stills(lab, cases)):
            save_strip(PICTURES / "strip.png", stills)
    rows = kept_rows(RESULT, "presets", found)
    gpus = gpu_speeds(_before("gpus"), given.gpu)
    write_report({**measured_with(), "presets": rows, "gpus": gpus}, RESULT)
    machine, cpu = _cpu_speeds()
    write_figures("demo", shipped(rows, {machine: cpu, **gpus}))
    write_page(rows, cpu, gpus)


def _cpu_speeds() -> tuple[str, Speeds]:
    """The machine that they were measured on, and what was."""
    if not SPEEDS.is_file():
        return "", {}
    report = json.loads(SPEEDS.read_text())
    return report["machine"], report["presets"]


def shipped(rows: Mapping[str, Row], speeds_by_device: Mapping[str, Speeds]) -> Figures:
    """What `longlive-trt presets` lists."""
    return Figures(
        weights(),
        {name: _measured(row) for name, row in rows.items() if row["videos"] >= FEW},
        {
            device: {name: Rate(s["block_ms"], s["frames_per_s"]) for name, s in of.items()}
            for device, of in speeds_by_device.items()
            if of
        },
    )


def write_page(rows: Mapping[str, Row], cpu: Speeds, gpus: Mapping[str, Speeds]) -> None:
    replace_table(PAGE, "weights", [measured_on()])
    replace_table(PAGE, "quality", list(_quality_table(rows)))
    replace_table(PAGE, "speed", list(_speed_table(cpu, gpus)))
    plot = _pareto(rows, cpu)
    if plot is not None:
        (PICTURES / "pareto.svg").write_text(plot, encoding="utf-8")
    shown = "![Speed against quality](presets/pareto.svg)"
    replace_table(PAGE, "pareto", [shown if plot else "The plot waits for the speeds."])


def _before(name: str) -> dict[str, Any]:
    """What the result had."""
    values: dict[str, Any] = (
        json.loads(RESULT.read_text()).get(name, {}) if RESULT.is_file() else {}
    )
    return values


def gpu_speeds(before: Mapping[str, Speeds], paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """By GPU, then by the preset that each report's command names."""
    gpus = {device: dict(of) for device, of in before.items()}
    for path in paths:
        report = json.loads(path.read_text())
        words, gpu = report["command"].split(), report["machine"]["gpu"]
        if gpu is None or "--preset" not in words:
            raise SystemExit(f"--gpu {path}: not a report of `bench --preset NAME` on a GPU")
        name = words[words.index("--preset") + 1]
        gpus.setdefault(gpu["name"], {})[name] = speeds([report])
    return gpus


def _measured(row: Row) -> Measured:
    shown = {part: found["percent"] for part, found in row["shown"].items() if found}
    alike = {name: values[0] for name, values in row["likeness"].items()}
    return Measured(
        shown=shown.get("adherence"),
        changed=shown.get("changed"),
        kept=shown.get("kept"),
        psnr_db=alike.get("psnr"),
        ssim=alike.get("ssim"),
        flicker=alike.get("flicker"),
        drift_sharpness=row["of_all"].get("drift_sharpness"),
        videos=row["videos"],
    )


def _quality_table(rows: Mapping[str, Row]) -> Iterator[str]:
    yield (
        "| | shown, % | changed, % | kept, % | together | PSNR, dB | SSIM | Fréchet: to balanced | "
        "to the world | flicker | drift of sharpness, % | videos |"
    )
    yield "|---" * 12 + "|"
    for name in sorted(rows, key=lambda name: (name != BASE, name)):
        row, alone = rows[name], rows[name]["likeness"].get("psnr") == [100.0, 0.0]
        cells = [share_cell(row, p, alone=alone) for p in ("adherence", "changed", "kept")]
        cells += ["-", "-", "-"] if alone else [verdict(row), likeness_cell(row, "psnr", 1)]
        cells += [] if alone else [likeness_cell(row, "ssim", 3)]
        cells += ["-" if alone else distance_cell(row, "frechet")]
        cells += [distance_cell(row, "frechet_world"), likeness_cell(row, "flicker", 2)]
        cells += [_of_all(row, "drift_sharpness"), str(row["videos"])]
        yield f"| {name} | {' | '.join(cells)} |"


def _of_all(row: Row, name: str) -> str:
    return f"{row['of_all'][name]:.1f}" if name in row["of_all"] else "-"


def _speed_table(cpu: Speeds, gpus: Mapping[str, Speeds]) -> Iterator[str]:
    """A group of columns for each GPU; those that are promised stand there before they come."""
    gpus = gpus or {_PROMISED: {}}
    columns = [f"{device.removeprefix('NVIDIA ')}: {_GPU_COLUMNS}" for device in gpus]
    yield (
        "| | steps (first block) | window | decoder | CPU: transformer, ms | VAE, ms | block, ms "
        f"(p99) | frames/s | against balanced | GiB | {' | '.join(columns)} |"
    )
    yield "|---" * (10 + 3 * len(gpus)) + "|"
    listed = (name for of in (cpu, *gpus.values()) for name in of)
    for name in dict.fromkeys((BASE, *(t.name for t in catalog.presets()), *listed)):
        own = _cpu_cells(cpu.get(name), cpu.get(BASE))
        others = [cell for of in gpus.values() for cell in _gpu_cells(of.get(name))]
        yield f"| {name} | {' | '.join([*_settings(name), *own, *others])} |"


def _cpu_cells(cpu: Mapping[str, float] | None, base: Mapping[str, float] | None) -> list[str]:
    if not cpu:
        return ["not measured", *["-"] * 5]
    against = "-"
    if base:
        ratios = (base[part] / cpu[part] for part in ("transformer_ms", "block_ms"))
        against = " / ".join(f"{ratio:.2f}x" for ratio in ratios)
    return [
        f"{cpu['transformer_ms']:.0f}",
        f"{cpu['vae_ms']:.0f}",
        f"{cpu['block_ms']:.0f} ({cpu['block_p99_ms']:.0f})",
        f"{cpu['frames_per_s']:.1f}",
        against,
        f"{cpu['memory_gib']:.2f}",
    ]


def _gpu_cells(own: Mapping[str, float] | None) -> list[str]:
    if not own:
        return ["not measured", "-", "-"]
    times = [f"{own[part]:.0f}" for part in ("transformer_ms", "vae_ms")]
    return [*times, f"{own['frames_per_s']:.1f}"]


def _settings(name: str) -> tuple[str, str, str]:
    preset = load_preset(name)
    rollout = preset.rollout
    steps, first = rollout.get("steps"), rollout.get("first_steps")
    opening = f" ({len(first)})" if first else ""
    count = f"{len(steps)}{opening}" if steps else "4"
    return count, str(rollout.get("window_frames", 12)), preset.build.decoder or "full"


def _pareto(rows: Mapping[str, Row], cpu: Speeds) -> str | None:
    """Frames a second, and attributes shown, with two standard errors of the difference."""
    points = {
        name: Point(cpu[name]["frames_per_s"], found["percent"], 2 * found["standard_error"])
        for name, row in rows.items()
        if name in cpu and (found := row["shown"].get("together"))
    }
    return drawn(points) if len(points) > 1 else None


def _stills(lab: Lab, cases: Sequence[Case]) -> Iterator[NamedRow]:
    """The same prompt and noise under every preset, a row each."""
    for name in (BASE, *(t.name for t in catalog.presets() if t.name != BASE)):
        lines = lab.lines(Trial(name, preset=name), cases[:1])
        stills = lines[0]["own"]["stills"] if lines else []
        if stills:
            yield name, [Image.open(io.BytesIO(base64.b64decode(still))) for still in stills]


if __name__ == "__main__":
    main()
