"""What the demo's light decoder costs, against the full one, through the product's own runtime.

    python -m benchmarks.demo.decoders --out docs/results/demo_decoders.json

Both decode the same latents: of videos with a switch, whose pictures are judged as those of
``benchmarks.demo.adherence`` are, and of rendered clips that were not trained on.
"""

import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.demo.report import reconstructed, shown_after_switch
from benchmarks.demo.watching import decibels, decoded, held_out_clip, seen, turning
from benchmarks.harness import ROOT, command, cpu_name, parser, write_report
from longlive_trt import loading
from longlive_trt.runtime.decoding.choice import DECODERS
from longlive_trt.runtime.pipeline import Pipeline

Line = dict[str, Any]
ByDecoder = dict[str, Line]
Measure = Callable[[Pipeline, int], ByDecoder]
WORK = ROOT / "out" / "decoders"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--prompts", type=int, default=60)
    options.add_argument("--clips", type=int, default=48)
    options.add_argument("--bundle", default=loading.DEMO)
    options.add_argument("--work", type=Path, default=WORK, help="lines of a run, to go on from")
    chosen = options.parse_args()
    with loading.load(chosen.bundle, device="cpu") as pipeline:
        key = pipeline.bundle.manifest.key
        lines = Lines(chosen.work / f"{key[:16]}.jsonl")
        clips = [lines.line(f"clip {n}", of_clip, pipeline, n) for n in range(chosen.clips)]
        videos = [lines.line(f"video {n}", of_video, pipeline, n) for n in range(chosen.prompts)]
    write_report(
        {
            "command": command(),
            "machine": cpu_name(),
            "python": platform.python_version(),
            "bundle": key,
            "decoders": {name: _summary(name, videos, clips) for name in DECODERS},
        },
        chosen.out,
    )


class Lines:
    """What was measured, each line kept as it comes, so that a run goes on where it was."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        texts = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._known: dict[str, Any] = dict(map(json.loads, texts))

    def line(self, name: str, measure: Measure, pipeline: Pipeline, number: int) -> ByDecoder:
        if name not in self._known:
            self._known[name] = measure(pipeline, number)
            text = json.dumps([name, self._known[name]])
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{text}\n")
            print(text, file=sys.stderr, flush=True)
        found: ByDecoder = self._known[name]
        return found


def of_video(pipeline: Pipeline, number: int) -> ByDecoder:
    """One line for each decoder."""
    texts, asked = turning(pipeline, number)
    with pipeline.video(dict(texts), decode=False, notify=lambda _text: None, **asked) as video:
        latents = np.concatenate([block.latents for block in video], axis=1)
    pictures = {name: decoded(pipeline, name, latents) for name in DECODERS}
    lines: dict[str, Line] = {
        name: seen(pipeline, number, shown[0]) for name, shown in pictures.items()
    }
    lines["light"]["psnr_from_full_db"] = decibels(pictures["light"], pictures["full"])
    return lines


def of_clip(pipeline: Pipeline, number: int) -> ByDecoder:
    clips, latents = held_out_clip(pipeline, number)
    return {
        name: {"psnr_db": decibels(decoded(pipeline, name, latents), clips)} for name in DECODERS
    }


def _summary(name: str, videos: list[ByDecoder], clips: list[ByDecoder]) -> dict[str, Any]:
    lines = [video[name] for video in videos]
    summary: dict[str, Any] = {"videos": shown_after_switch(lines)}
    apart = [line["psnr_from_full_db"] for line in lines if "psnr_from_full_db" in line]
    if apart:
        summary["videos"]["psnr_from_full_db"] = round(float(np.mean(apart)), 2)
        summary["videos"]["lowest_from_full_db"] = min(apart)
    summary["clips"] = reconstructed([clip[name] for clip in clips])
    return summary


if __name__ == "__main__":
    main()
