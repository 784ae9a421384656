"""The demo's prompt set of ``longlive-trt eval``: wordings that state what their scenes show.

    python -m benchmarks.quality.prompt_set            # quality/data/demo.json

Drawn once from the grammar that training draws from, by a seed of their own.
"""

import json
import random
from typing import Any

from benchmarks.harness import ROOT, parser
from longlive_trt.demo.captions import stated_caption
from longlive_trt.demo.scenes import ATTRIBUTES, SceneSource

FILE = ROOT / "quality" / "data" / "demo.json"
PROMPTS, TIMELINES, PARTS = 40, 10, 3
_SEED = 717_171


def main() -> None:
    parser(__doc__, out=False).parse_args()
    source, rng = SceneSource(_SEED), random.Random(_SEED)  # noqa: S311 - a choice of words

    def entry(row: dict[str, int]) -> dict[str, Any]:
        text, stated = stated_caption(row, rng, drop=0)
        shows = {name: ATTRIBUTES[name][value] for name, value in stated.items()}
        return {"prompt": text[0].upper() + text[1:], "shows": shows}

    prompts = [entry(row) for row in source.scenes(PROMPTS).rows()]
    scenes, parts = source.scenes(TIMELINES), []
    for _ in range(PARTS):
        parts.append([entry(row) for row in scenes.rows()])
        scenes = source.changed(scenes)
    timelines = [list(timeline) for timeline in zip(*parts, strict=True)]
    values = {"format": 1, "prompts": prompts, "timelines": timelines}
    FILE.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
