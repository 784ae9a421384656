"""What each precision costs the demo model, whose weights are trained.

    python -m benchmarks.demo.precisions               # an hour or two on two cores; can be resumed
    python -m benchmarks.demo.precisions --rows fp16,fp8 --device cuda
    python -m benchmarks.demo.precisions --table       # docs/quality.md of what was measured

The shipped weights are exported, calibrated with prompts that are not among those of the
comparison, built, and judged by ``longlive-trt eval`` against the model in fp32. On a GPU fp16,
bf16 and FP8 run with our kernels. Graphs of all other rows are as they were exported, and what is
in eight bits is rounded, and multiplied in float32: heads of the demo have 64 values, attention's
8-bit kernels take 128. Reports and calibrations of --keep (or --work) are used where they are
there, so that another machine needs no ModelOpt.
"""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import longlive_trt as ll
from benchmarks.harness import (
    RESULTS,
    ROOT,
    Row,
    command,
    kept_rows,
    parser,
    replace_table,
    write_report,
)
from benchmarks.quality.lab import weights
from benchmarks.quality.strip import NamedRow, save_strip
from longlive_trt import loading
from longlive_trt.demo.assembly import GRAPHS
from longlive_trt.demo.geometry import MODEL_FILE, WEIGHTS
from longlive_trt.engines.loader import DEVICES, DeviceChoice
from longlive_trt.plugins.cuda.driver import device_facts

RESULT = RESULTS / "demo_precisions.json"
PAGE, STRIP = ROOT / "docs" / "quality.md", ROOT / "docs" / "demo" / "precisions.png"
WORK = ROOT / "out" / "precisions"
CALIBRATED_WITH = Path(__file__).with_name("calibrated_with.txt")
SHOWN = {
    "0s": "A red car drives through the desert at sunset",
    "3s": "A red car drives through the city at night, in the rain",
}
MOMENTS = (8, 24, 40, 64, 80, 96)
"""Pictures of the strip; the prompt changes at the 49th."""


@dataclass(frozen=True)
class Variant:
    title: str
    precision: str
    quantized: tuple[str, ...] = ()
    """Options of ``calibrate`` besides."""
    has_kernels: bool = False
    """Of ours, on a GPU."""


ALL_OF_FP8 = ("--attention", "int8", "--vae-precision", "int8")
VARIANTS = {
    "fp16": Variant("fp16", "fp16", has_kernels=True),
    "bf16": Variant("bf16", "bf16", has_kernels=True),
    "fp8": Variant("FP8", "fp8", has_kernels=True),
    "fp8-attention": Variant("FP8; attention in int8, cached values in FP8", "fp8", ALL_OF_FP8[:2]),
    "fp8-whole": Variant(
        "FP8; attention and decoder in int8, cached values in FP8", "fp8", ALL_OF_FP8
    ),
    "int8": Variant("INT8-SmoothQuant", "int8", ("--smoothquant",)),
}
_CALIBRATED = {"fp8": ALL_OF_FP8, "int8": ("--smoothquant",)}
_FOR_CPUS = tuple(name for name, variant in VARIANTS.items() if variant.precision != "bf16")


def main() -> None:
    options = parser(__doc__, out=False)
    options.add_argument("--rows", help="names with commas between")
    options.add_argument("--device", choices=DEVICES, default="cpu")
    options.add_argument("--prompts", type=int, default=10)
    options.add_argument("--timelines", type=int, default=4)
    options.add_argument("--long-seconds", type=float, default=60)
    options.add_argument("--work", type=Path, default=WORK)
    options.add_argument("--keep", type=Path, help="for reports and calibrations, which are small")
    options.add_argument("--table", action="store_true", help="write what was measured")
    chosen = options.parse_args()
    possible = VARIANTS if chosen.device == "cuda" or chosen.table else _FOR_CPUS
    names = chosen.rows.split(",") if chosen.rows else list(possible)
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise SystemExit(
            f"--rows {','.join(unknown)}: no such row; there are {', '.join(VARIANTS)}"
        )
    bench = Bench(chosen.work, chosen.device, chosen.keep)
    if not chosen.table:
        lengths = {name: vars(chosen)[name] for name in ("prompts", "timelines", "long_seconds")}
        for name in names:
            bench.judge(name, **lengths)
    found = {name: row for name in VARIANTS if (row := bench.row(name)) is not None}
    print("\n".join(table(found)))
    if chosen.table:
        kept = kept_rows(
            RESULT, "rows", found, measured_with(), lambda row: sum(row["videos"].values())
        )
        rows = {name: kept[name] for name in VARIANTS if name in kept}
        write_report({"command": command(), **measured_with(), "rows": rows}, RESULT)
        replace_table(PAGE, "demo precisions", list(table(rows)))
        save_strip(STRIP, list(bench.stills(names)))


def measured_with() -> dict[str, Any]:
    return {"weights": weights(["full"])}


class Bench:
    """Exports, calibrations, bundles and reports of one folder, each made once."""

    def __init__(self, work: Path, device: DeviceChoice, keep: Path | None = None) -> None:
        """``keep``: another folder for what does not need to be made again elsewhere."""
        self._work, self._device, self._kept = work, device, keep or work
        for folder in (self._work, self._kept):
            folder.mkdir(parents=True, exist_ok=True)

    def judge(self, name: str, **lengths: object) -> None:
        report = self._report(name)
        if not report.is_file():
            made = {**lengths, "long": 1, "device": self._device, "out": report.parent}
            _run("eval", self.bundle(name), against=loading.DEMO, **made)

    def row(self, name: str) -> Row | None:
        if not self._report(name).is_file():
            return None
        report = json.loads(self._report(name).read_text(encoding="utf-8"))
        metrics = {metric["name"]: metric for metric in report["metrics"]}
        return {
            "title": VARIANTS[name].title,
            "engine": report["bundle"]["engine"],
            "device": _option(report["command"], "--device"),
            "videos": report["videos"],
            "metrics": {key: _figures(metrics[key]) for key in COLUMNS if key in metrics},
        }

    def bundle(self, name: str) -> Path:
        variant, folder = VARIANTS[name], self._work / f"bundle-{name}"
        is_calibrated = variant.precision in _CALIBRATED
        made: dict[str, object] = {
            "onnx": self._quantized(name) if is_calibrated else self._export()
        }
        if variant.has_kernels and self._device == "cuda":
            made["gpu"] = device_facts().architecture
        # What is there already, and sound, is left as it is.
        _run("build", **made, precision=variant.precision, out=folder)
        return folder

    def stills(self, names: Sequence[str]) -> Iterator[NamedRow]:
        """The same prompts and noise under each precision."""
        yield "fp32", _pictures(loading.DEMO)
        for name in names:
            if name in _FOR_CPUS and self._report(name).is_file():
                yield name, _pictures(str(self.bundle(name)))

    def _export(self) -> Path:
        folder = self._work / "onnx"
        if not folder.exists():
            parts = ("transformer", "vae", "text_encoder")
            files = {part: WEIGHTS / f"{part}.safetensors" for part in parts}
            _run("export", config=MODEL_FILE, **files, tokenizer=GRAPHS, out=folder)
        return folder

    def _quantized(self, name: str) -> Path:
        folder, variant = self._work / f"onnx-{name}", VARIANTS[name]
        if not folder.exists():
            self._calibrate(folder, variant, calibration=self._scales(variant.precision))
        return folder

    def _scales(self, precision: str) -> Path:
        """Of one set of rollouts, whatever is quantized with them."""
        path = self._kept / f"{precision}.calibration.safetensors"
        if not path.exists():
            folder = self._work / f"onnx-{precision}-calibrated"
            variant = Variant("", precision, _CALIBRATED[precision])
            self._calibrate(folder, variant, prompts=CALIBRATED_WITH, blocks=6)
            shutil.copyfile(folder / "calibration.safetensors", path)
        return path

    def _calibrate(self, folder: Path, variant: Variant, **options: object) -> None:
        words = ("calibrate", *variant.quantized, "--no-check")
        _run(*words, onnx=self._export(), precision=variant.precision, **options, out=folder)

    def _report(self, name: str) -> Path:
        return self._kept / f"report-{name}" / "report.json"


def _run(*words: object, **options: object) -> None:
    named = ((f"--{name.replace('_', '-')}", value) for name, value in options.items())
    given = [str(word) for word in (*words, *(part for pair in named for part in pair))]
    print("longlive-trt", *given, flush=True)
    quiet = [sys.executable, "-m", "longlive_trt", *given, "--quiet"]
    if subprocess.run(quiet, cwd=ROOT).returncode:
        raise SystemExit("that failed; what was made is kept, and the same command goes on")


def _option(line: str, name: str) -> str:
    """What a command was given: reports may come from another machine."""
    words = shlex.split(line)
    return words[words.index(name) + 1]


def _pictures(bundle: str) -> list[Image.Image]:
    with ll.load(bundle) as pipeline, pipeline.video(SHOWN, seconds=6.5, seed=1) as video:
        frames = np.concatenate([block.frames for block in video])
    return [Image.fromarray(frames[moment]) for moment in MOMENTS]


def _figures(metric: Mapping[str, Any]) -> dict[str, Any]:
    return {side: metric[side] for side in ("own", "other")}


COLUMNS = {
    "psnr": ("PSNR, dB", 1),
    "ssim": ("SSIM", 3),
    "adherence": ("shown, %", 1),
    "changed": ("changed, %", 1),
    "kept": ("kept, %", 1),
    "flicker": ("flicker", 2),
    "drift_sharpness": ("drift of sharpness, %", 1),
}


def table(rows: Mapping[str, Row]) -> Iterator[str]:
    """The reference's own figures are in the first line."""
    yield "| | " + " | ".join(title for title, _ in COLUMNS.values()) + " | videos |"
    yield "|---" * (len(COLUMNS) + 2) + "|"
    if rows:
        whole = max(rows.values(), key=lambda row: sum(row["videos"].values()))
        yield _line("fp32", whole, "other")
    for row in rows.values():
        yield _line(row["title"], row, "own")


def _line(title: str, row: Row, side: str) -> str:
    cells = [_cell(row["metrics"].get(name), side, digits) for name, (_, digits) in COLUMNS.items()]
    return f"| {title} | " + " | ".join(cells) + f" | {sum(row['videos'].values())} |"


def _cell(metric: Mapping[str, Any] | None, side: str, digits: int) -> str:
    figure = metric and metric[side]
    return f"{figure['mean']:.{digits}f}" if figure else "-"


if __name__ == "__main__":
    main()
