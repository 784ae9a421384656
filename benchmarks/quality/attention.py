"""What attention in eight bits costs the demo model, through the product's own runtime on a CPU.

    python -m benchmarks.quality.attention --videos 6

Everything else is in float32, so that nothing but attention and its cache differ: the same prompts
and noise, each video with a switch in it, against float32's pictures. Adherence is that of
``benchmarks.demo.adherence``. What is measured is kept below --work, so that a run goes on.
"""

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.demo.watching import SETTLED_BLOCKS, SINGLE_BLOCKS, TURNING_BLOCKS, prompts
from benchmarks.harness import RESULTS, ROOT, command, cpu_name, parser, replace_table, write_report
from longlive_trt.basics import Array
from longlive_trt.calibration.calibrator import CalibrationRequest
from longlive_trt.calibration.folders import SourceExport, calibrate_export, write_quantized
from longlive_trt.calibration.recipes import FP8, INT8, RECIPES, Extras
from longlive_trt.demo.adherence.judge import judged
from longlive_trt.demo.assembly import assemble
from longlive_trt.demo.geometry import video_frames
from longlive_trt.engines.build import build
from longlive_trt.engines.loader import load_engine
from longlive_trt.loading import load
from longlive_trt.making.calibrating import open_tokenizer
from longlive_trt.runtime import assembly
from longlive_trt.runtime.pipeline import Pipeline

RESULT = RESULTS / "attention_quality_demo.json"
PAGE = ROOT / "docs" / "quality.md"
WORK = ROOT / "out" / "attention-quality"
BLOCKS = SINGLE_BLOCKS + TURNING_BLOCKS + SETTLED_BLOCKS
CALIBRATED_PROMPTS = 8
_FIRST_CALIBRATED = 500
"""Prompts of the calibration: none that is measured."""


@dataclass(frozen=True)
class Row:
    title: str
    precision: str = "fp32"
    extras: Extras | None = None


REFERENCE = "fp32"
ROWS = {
    REFERENCE: Row("float32"),
    "fp16": Row("all in fp16", "fp16"),
    "fp8": Row("attention and cache in FP8", extras=Extras(attention=FP8, cache=FP8)),
    "int8": Row("attention and cache in int8", extras=Extras(attention=INT8)),
}


def main() -> None:
    options = parser(__doc__, out=False)
    options.add_argument("--videos", type=int, default=6)
    options.add_argument("--work", type=Path, default=WORK)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--no-table", action="store_true", help="leave docs/quality.md as it is")
    chosen = options.parse_args()
    make_bundles(chosen.work)
    with patch.object(assembly, "load_engine", partial(load_engine, threads=chosen.threads)):
        for name in ROWS:
            with load(chosen.work / "bundles" / name, device="cpu") as pipeline:
                for number in range(chosen.videos):
                    measured(chosen.work, name, number, pipeline)
    report = {
        "command": command(),
        "machine": cpu_name(),
        "python": platform.python_version(),
        "videos": chosen.videos,
        "blocks": BLOCKS,
        "calibrated_prompts": CALIBRATED_PROMPTS,
        "rows": {name: summary(chosen.work, name, chosen.videos) for name in ROWS},
    }
    write_report(report, RESULT)
    if not chosen.no_table:
        replace_table(PAGE, "attention demo", table(report["rows"]))


def make_bundles(work: Path) -> None:
    """From the demo's own export and one calibration, whose layers are left as they are."""
    once(work / "onnx", _assembled)
    source = SourceExport.open(work / "onnx")
    for name, row in ROWS.items():
        exported = work / "onnx"
        if row.extras is not None:
            exported = work / "exports" / name
            once(exported, partial(_quantized, source, row.extras))
        build(exported, work / "bundles" / name, row.precision)


def once(folder: Path, make: Callable[[Path], object]) -> None:
    if not folder.exists():
        make(folder)


def _assembled(folder: Path) -> None:
    folder.mkdir(parents=True)
    assemble(folder)


def _quantized(source: SourceExport, extras: Extras, folder: Path) -> None:
    texts = tuple(first[0] for first, _ in prompts()[_FIRST_CALIBRATED:][:CALIBRATED_PROMPTS])
    request = CalibrationRequest(RECIPES["fp8"], texts)
    calibration = calibrate_export(source, request, folder.parent / "calibration", open_tokenizer)
    calibration = replace(calibration, layers={})
    write_quantized(source, calibration, folder, extras=extras, check=False)


def measured(work: Path, name: str, number: int, pipeline: Pipeline) -> dict[str, Any]:
    """Of one video, made if it was not measured yet."""
    path = work / "measured" / f"{name}.{number}.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    pictures = pictures_of(pipeline, number)
    kept = work / "pictures" / f"{number}.npy"
    if name == REFERENCE:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, pictures)
    line = {
        "psnr_db": [psnr(one, other) for one, other in zip(pictures, np.load(kept), strict=True)],
        "shown": shown(pictures),
        "stated": [stated for _, stated in prompts()[number]],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(line), encoding="utf-8")
    print(name, number, f"{np.mean(line['psnr_db']):.2f} dB", flush=True)
    return line


def pictures_of(pipeline: Pipeline, number: int) -> Array:
    (first, _), (second, _) = prompts()[number]
    block = pipeline.config.rollout.frames_per_block
    texts = {0: first, SINGLE_BLOCKS * block: second}
    with pipeline.video(texts, frames=BLOCKS * block, seed=number) as video:
        return np.concatenate([made.frames for made in video.ahead()])


def psnr(found: Array, expected: Array) -> float:
    """Of one picture; the same one has 100 dB."""
    error = np.square(found.astype(np.float64) - expected.astype(np.float64)).mean()
    return round(float(10 * np.log10(255**2 / max(error, 255**2 * 1e-10))), 2)


def shown(pictures: Array) -> list[Any]:
    import torch

    frames = torch.from_numpy(pictures)
    begins, settled = (video_frames(n * 3) for n in (SINGLE_BLOCKS, BLOCKS - SETTLED_BLOCKS))
    return [judged(frames[:begins]), judged(frames[settled:])]


def summary(work: Path, name: str, videos: int) -> dict[str, Any]:
    paths = [work / "measured" / f"{name}.{number}.json" for number in range(videos)]
    lines = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    pairs = [pair for line in lines for pair in zip(line["stated"], line["shown"], strict=True)]
    right = [seen.get(key) == value for stated, seen in pairs for key, value in stated.items()]
    by_video = [float(np.mean(line["psnr_db"])) for line in lines]
    ends = [float(np.mean(line["psnr_db"][: video_frames(3)])) for line in lines]
    return {
        "title": ROWS[name].title,
        "psnr_db": round(float(np.mean(by_video)), 2),
        "psnr_db_by_video": [round(value, 2) for value in by_video],
        "psnr_db_first_block": round(float(np.mean(ends)), 2),
        "adherence_percent": round(100 * sum(right) / len(right), 1),
    }


def table(rows: dict[str, Any]) -> list[str]:
    lines = ["| | PSNR to float32 | its first block | adherence |", "|---|---|---|---|"]
    for name, row in rows.items():
        figures = ("-", "-") if name == REFERENCE else (
            f"{row['psnr_db']:.1f} dB", f"{row['psnr_db_first_block']:.1f} dB"
        )  # fmt: skip
        lines.append(
            f"| {row['title']} | {figures[0]} | {figures[1]} | {row['adherence_percent']:.0f}% |"
        )
    return lines


if __name__ == "__main__":
    main()
