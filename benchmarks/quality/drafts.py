"""How often a block's first steps are as good as all four: a draft, and its verification.

    python -m benchmarks.quality.drafts                 # 8 prompts; docs/optimization-log.md of it
    python -m benchmarks.quality.drafts --prompts 2

The draft is what the first step takes the block for, which is the block of one step; the verifier
is the block of four. A draft is accepted where its pictures are near enough. What a verifier would
have to say without making the block is how far the second step moves the pictures; both are noted.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np
import torch

from benchmarks.harness import RESULTS, ROOT, cpu_name, parser, replace_table, write_report
from benchmarks.quality.lab import weights
from benchmarks.quality.rolling import Way, decoder_stream, open_video, transformer
from benchmarks.sharing import single_threaded
from longlive_trt.loading import load
from longlive_trt.quality.cases import Case, Lengths, cases
from longlive_trt.quality.metrics.similarity import Pixels, psnr_db, squared_error
from longlive_trt.quality.prompts import read_prompts, shipped_file
from longlive_trt.runtime.pipeline import Pipeline

RESULT = RESULTS / "drafts.json"
PAGE = ROOT / "docs" / "optimization-log.md"
THRESHOLDS_DB = (27.0, 30.0, 33.0, 36.0)
_SECONDS = 4.5


def main() -> None:
    options = parser(__doc__, out=False)
    options.add_argument("--prompts", type=int, default=8)
    given = options.parse_args()
    blocks: list[dict[str, list[float]]] = []
    with single_threaded(), load("demo") as pipeline:
        asked = read_prompts(shipped_file(pipeline.config))
        lengths = Lengths(prompts=given.prompts, timelines=0, long=0, seconds=_SECONDS)
        for case in cases(asked, pipeline.config, lengths):
            blocks += [compared(made) for made in drafted(pipeline, case)]
    report = {
        "command": f"python -m benchmarks.quality.drafts --prompts {given.prompts}",
        "machine": cpu_name(),
        "weights": weights(),
        **summary(blocks),
    }
    write_report(report, RESULT)
    replace_table(PAGE, "drafts", list(table(report)))


@torch.inference_mode()
def drafted(pipeline: Pipeline, case: Case) -> Iterator[list[Pixels]]:
    """Of each block, the pictures that every step stands for, decoded behind the same past."""
    video = open_video(pipeline, case, Way())
    stream = decoder_stream(pipeline, "light")
    for _ in range(case.blocks):
        noise = video.begin_block()
        steps = list(video.rollout.passes(noise[0], noise[1:]))
        video.rollout.commit(steps[-1])
        pictures = []
        for number, latents in enumerate(steps):
            before = stream.snapshot() if number + 1 < len(steps) and stream.latent_frames else None
            pictures.append(stream.decode(latents.numpy())[0])
            if number + 1 < len(steps):
                if before is None:
                    stream.begin()
                else:
                    stream.reinstate(before)
        yield pictures


def compared(steps: list[Pixels]) -> dict[str, list[float]]:
    """In dB: every step but the last against the last, and against the step after it."""
    last = steps[-1]
    return {
        "to_last": [_psnr(step, last) for step in steps[:-1]],
        "to_next": [_psnr(a, b) for a, b in pairwise(steps)],
    }


def _psnr(a: Pixels, b: Pixels) -> float:
    return psnr_db(fmean(squared_error(a, b)))


def summary(blocks: list[dict[str, list[float]]]) -> dict[str, Any]:
    to_last = np.array([block["to_last"] for block in blocks])
    to_next = np.array([block["to_next"] for block in blocks])
    steps = range(to_last.shape[1])
    return {
        "blocks": len(blocks),
        "parameters": sum(p.numel() for p in transformer().parameters()),
        "steps": [
            {
                "psnr_db": [round(float(np.percentile(to_last[:, n], q)), 2) for q in (10, 50, 90)],
                "accepted": {
                    f"{db:g}": round(float((to_last[:, n] >= db).mean()), 4) for db in THRESHOLDS_DB
                },
                "told_by_next": round(float(np.corrcoef(to_last[:, n], to_next[:, n])[0, 1]), 3),
            }
            for n in steps
        ],
    }


def table(report: Mapping[str, Any]) -> Iterator[str]:
    heads = " | ".join(f"at {db:g} dB" for db in THRESHOLDS_DB)
    yield f"| after | PSNR, dB: 10% / median / 90% | accepted {heads} | told by the next step |"
    yield "|---" * (3 + len(THRESHOLDS_DB)) + "|"
    for number, step in enumerate(report["steps"], 1):
        shares = " | ".join(f"{100 * share:.0f}%" for share in step["accepted"].values())
        spread = " / ".join(f"{value:.1f}" for value in step["psnr_db"])
        name = "1 step" if number == 1 else f"{number} steps"
        is_last = number == len(report["steps"])
        told = "-" if is_last else f"{step['told_by_next']:.2f}"
        yield f"| {name} | {spread} | {shares} | {told} |"


if __name__ == "__main__":
    main()
