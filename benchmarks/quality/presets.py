"""What each preset costs and gives on the demo model: docs/presets.md of it, with one command.

    python -m benchmarks.quality.presets                       # everything, for hours on two cores
    python -m benchmarks.quality.presets --prompts 2 --timelines 1 --seeds 1 --no-speed
    python -m benchmarks.quality.presets --table               # the page, of what is there
    python -m benchmarks.quality.presets --gpu FULL.json ...   # and of `bench --preset` on a GPU

Quality is measured with every seed on all prompts, each video against the model as it is. Speed is
measured with nothing else running: presets take turns, --rounds times. What is measured is kept
below --work, so that an interrupted run goes on.
"""

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, pstdev
from typing import Any

from PIL import Image, ImageDraw, ImageFont

import longlive_trt as ll
from benchmarks.harness import RESULTS, ROOT, command, cpu_name, parser, replace_table, write_report
from benchmarks.quality.trials import Lab, Trial
from longlive_trt.configs import load_preset
from longlive_trt.files import publish_file
from longlive_trt.quality.cases import Lengths
from longlive_trt.quality.measured import Measured, write_measured
from longlive_trt.quality.report.charts import scatter_chart
from longlive_trt.runtime.pipeline import Pipeline
from longlive_trt.runtime.presets import served_presets

PAGE = ROOT / "docs" / "presets.md"
PICTURES = ROOT / "docs" / "presets"
RESULT = RESULTS / "presets_demo.json"
WORK = ROOT / "out" / "presets"
BASE = "balanced"
_PLAIN_STYLE = (
    "<style>text{font:11px sans-serif;fill:#667080}.name{fill:#1c1f24}.grid{stroke:#e3e4e0}"
    ".line{fill:none;stroke:#b9bfc7;stroke-dasharray:4 4}.c0{fill:#2f6fdb}.c5{fill:#8b93a0}</style>"
)
_SPEED = ("--blocks", "12", "--switches", "0", "--seconds", "10", "--warmup", "5")


def main() -> None:
    options = parser(__doc__, out=False)
    options.add_argument("--prompts", type=int)
    options.add_argument("--timelines", type=int)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--long", type=int, default=1, help="videos of two minutes, for drift")
    options.add_argument("--rounds", type=int, default=3, help="of the speeds")
    options.add_argument("--no-speed", action="store_true", help="leave speeds as they are")
    options.add_argument("--gpu", type=Path, nargs="*", default=[], help="reports of `bench --out`")
    options.add_argument("--work", type=Path, default=WORK)
    options.add_argument("--table", action="store_true", help="measure nothing")
    chosen = options.parse_args()
    lengths = Lengths(prompts=chosen.prompts, timelines=chosen.timelines, long=chosen.long)
    with ll.load("demo") as pipeline:
        names = served_presets(pipeline.bundle)
        labs = [_lab(pipeline, chosen.work, lengths, seed) for seed in range(chosen.seeds)]
        if not chosen.table:
            for lab in labs:
                lab.run([Trial(name, preset=name) for name in names])
        _write(pipeline, labs, names, chosen)


def _write(pipeline: Pipeline, labs: Sequence[Lab], names: Sequence[str], chosen: Any) -> None:
    if not (chosen.table or chosen.no_speed):
        measure_speeds(names, chosen.rounds, chosen.work)
    rows = {name: _row(name, labs, chosen.work) for name in names}
    gpu = dict(_gpu_rows(chosen.gpu))
    key = pipeline.bundle.manifest.key
    facts = {"command": command(), "machine": cpu_name(), "bundle": key}
    write_report({**facts, "presets": rows, "gpu": gpu}, RESULT)
    write_measured("demo", key, {name: _measured(row) for name, row in rows.items()})
    replace_table(PAGE, "quality", list(_quality_table(rows)))
    replace_table(PAGE, "speed", list(_speed_table(rows, gpu)))
    PICTURES.mkdir(parents=True, exist_ok=True)
    _save_strip(PICTURES / "strip.png", labs[0], names)
    drawn = _pareto(rows)
    if drawn is not None:
        (PICTURES / "pareto.svg").write_text(drawn, encoding="utf-8")
    shown = "![Speed against quality](presets/pareto.svg)"
    replace_table(PAGE, "pareto", [shown if drawn else "The plot waits for the speeds."])


def _lab(pipeline: Pipeline, work: Path, lengths: Lengths, seed: int) -> Lab:
    return Lab(pipeline, work / f"seed-{seed}", replace(lengths, seed=1000 * seed))


def measure_speeds(names: Sequence[str], rounds: int, work: Path) -> None:
    """One process after the other: nothing of one preset is in the memory of another."""
    work.mkdir(parents=True, exist_ok=True)
    for number in range(rounds):
        for name in names:
            out = work / f"speed-{name}-{number}.json"
            if not out.exists():
                arguments = ["bench", "--bundle", "demo", "--preset", name, *_SPEED]
                program = [sys.executable, "-m", "longlive_trt", *arguments, "--out", str(out)]
                subprocess.run(program, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def _row(name: str, labs: Sequence[Lab], work: Path) -> dict[str, Any]:
    """Means over seeds, with the standard deviation between them."""
    by_seed = [lab.metrics(Trial(name, preset=name)) for lab in labs]
    metrics = {metric for found in by_seed for metric in found}
    figures = {}
    for metric in sorted(metrics):
        values = [found[metric].own for found in by_seed if metric in found]
        means = [figure.mean for figure in values if figure is not None]
        figures[metric] = [round(mean(means), 4), round(pstdev(means), 4), len(means)]
    videos = sum(len(lab.lines(Trial(name, preset=name))) for lab in labs)
    return {"videos": videos, "quality": figures, "cpu": _cpu_speed(name, work)}


def _cpu_speed(name: str, work: Path) -> dict[str, float] | None:
    reports = [json.loads(p.read_text()) for p in sorted(work.glob(f"speed-{name}-*.json"))]
    if not reports:
        return None
    return _speeds(reports)


def _speeds(reports: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Medians over the reports."""
    bundles = [report["bundles"][0] for report in reports]
    rates = [b["video_frames_per_s"].get("overlapped") or 0 for b in bundles]
    memory = [
        max(phase["process_bytes"]["max"] for phase in report["resources"].values())
        for report in reports
    ]
    states = {
        part: [b["steady_state_ms"][part] for b in bundles]
        for part in ("transformer", "vae", "block")
    }
    return {
        **{f"{part}_ms": round(median(s["p50"] for s in all_), 1) for part, all_ in states.items()},
        "block_p99_ms": round(max(s["p99"] for s in states["block"]), 1),
        "frames_per_s": round(median(rates), 2),
        "spread": round(pstdev([s["p50"] for s in states["block"]]), 1),
        "memory_gib": round(max(memory) / 2**30, 2),
    }


def _gpu_rows(paths: Sequence[Path]) -> Iterator[tuple[str, dict[str, float]]]:
    """By the preset that each report's command names."""
    for path in paths:
        report = json.loads(path.read_text())
        words = report["command"].split()
        yield words[words.index("--preset") + 1], _speeds([report])


def _measured(row: Mapping[str, Any]) -> Measured:
    figures = {name: values[0] for name, values in row["quality"].items()}
    return Measured(
        shown=figures.get("adherence"),
        changed=figures.get("changed"),
        kept=figures.get("kept"),
        psnr_db=figures.get("psnr"),
        ssim=figures.get("ssim"),
        flicker=figures.get("flicker"),
        drift_sharpness=figures.get("drift_sharpness"),
        videos=row["videos"],
    )


def _quality_table(rows: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "| | shown, % | changed, % | kept, % | PSNR, dB | SSIM | Fréchet | flicker | drift of "
        "sharpness, % | videos |"
    )
    yield "|---" * 10 + "|"
    for name, row in rows.items():
        own = row["quality"]
        cells = [_cell(own, m) for m in ("adherence", "changed", "kept", "psnr")]
        cells += [_cell(own, m, 3) for m in ("ssim",)] + [_cell(own, "frechet")]
        cells += [_cell(own, "flicker", 2), _cell(own, "drift_sharpness")]
        yield f"| {name} | {' | '.join(cells)} | {row['videos']} |"


def _cell(figures: Mapping[str, Any], name: str, digits: int = 1) -> str:
    if name not in figures:
        return "-"
    value, spread, count = figures[name]
    return f"{value:.{digits}f}" + (f" ± {spread:.{digits}f}" if count > 1 else "")


def _speed_table(rows: Mapping[str, Any], gpu: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "| | steps (first block) | window | CPU: transformer, ms | VAE, ms | block, ms (p99) | "
        "frames/s | against balanced | GiB | H200: transformer, ms | VAE, ms | frames/s |"
    )
    yield "|---" * 12 + "|"
    base = (rows.get(BASE) or {}).get("cpu")
    for name in dict.fromkeys((*rows, *gpu)):
        cpu = (rows.get(name) or {}).get("cpu")
        cells = [*_settings(name), *_cpu_cells(cpu, base), *_gpu_cells(gpu.get(name))]
        yield f"| {name} | {' | '.join(cells)} |"


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


def _settings(name: str) -> tuple[str, str]:
    rollout = load_preset(name).rollout
    steps, first = rollout.get("steps"), rollout.get("first_steps")
    opening = f" ({len(first)})" if first else ""
    return (f"{len(steps)}{opening}" if steps else "4", str(rollout.get("window_frames", 12)))


def _pareto(rows: Mapping[str, Any]) -> str | None:
    """Frames a second, and attributes shown; those that nothing beats in both are joined."""
    points = {
        name: (row["cpu"]["frames_per_s"], row["quality"]["adherence"][0])
        for name, row in rows.items()
        if row["cpu"] and "adherence" in row["quality"]
    }
    if len(points) < 2:
        return None
    front = [name for name, point in points.items() if not _is_beaten(point, points.values())]
    axes = ("frames/s on two cores", "shown, %")
    figure = scatter_chart("speed against quality", points, *axes, front)
    svg = figure[figure.index("<svg") : figure.index("</svg>")] + "</svg>"
    named = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return named.replace(">", ">" + _PLAIN_STYLE, 1) + "\n"


def _is_beaten(point: tuple[float, float], others: Iterable[tuple[float, float]]) -> bool:
    return any(a >= point[0] and b >= point[1] and (a, b) != point for a, b in others)


def _save_strip(path: Path, lab: Lab, names: Sequence[str]) -> None:
    """The same prompt and noise under every preset, a row each."""
    rows = []
    for name in names:
        lines = lab.lines(Trial(name, preset=name))
        stills = lines[0]["own"]["stills"] if lines else []
        rows.append((name, [Image.open(io.BytesIO(base64.b64decode(s))) for s in stills]))
    rows = [(name, pictures) for name, pictures in rows if pictures]
    if not rows:
        return
    width, height = rows[0][1][0].size
    label, gap, font = 130, 4, ImageFont.load_default(17)
    columns = len(rows[0][1])
    page = Image.new(
        "RGB", (label + columns * (width + gap), len(rows) * (height + gap)), (14, 17, 22)
    )
    draw = ImageDraw.Draw(page)
    for number, (name, pictures) in enumerate(rows):
        top = number * (height + gap)
        draw.text((12, top + height // 2 - 10), name, fill=(236, 238, 241), font=font)
        for column, picture in enumerate(pictures):
            page.paste(picture, (label + column * (width + gap), top))
    with publish_file(path) as partial:
        page.save(partial, "PNG", optimize=True)


if __name__ == "__main__":
    main()
