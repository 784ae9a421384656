"""How much of each head's attention is on the sink, on the past and on the block itself.

    python -m benchmarks.quality.heads       # docs/results/attention_mass.json; a minute or two

Which heads see little beyond the block (``ways.NearSighted``) and what the largest keys and values
are (``ways.RoundedCache``) comes from here: from prompts of their own, which no trial uses.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.harness import RESULTS, cpu_name, parser, write_report
from benchmarks.quality.lab import weights
from benchmarks.quality.rolling import Seen, Way, latents, turned
from benchmarks.sharing import single_threaded
from longlive_trt.demo.geometry import model_config
from longlive_trt.loading import load
from longlive_trt.quality.cases import Case

RESULT = RESULTS / "attention_mass.json"
_SEED = 9_000_000
_BLOCKS = 5


@dataclass(frozen=True, eq=False)
class Watching(Way):
    """Sums over passes whose window is full."""

    mass: dict[int, Tensor] = field(default_factory=dict)
    """By layer: [heads, 3] for sink, past and own."""
    passes: dict[int, int] = field(default_factory=dict)
    largest: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def attend(self, seen: Seen) -> Tensor:
        window = model_config().rollout.window_frames * model_config().tokens_per_frame
        if not seen.is_recache and seen.keys.shape[1] == window:
            self._add(seen)
        return super().attend(seen)

    def kept(self, layer: int, part: str, x: Tensor) -> Tensor:
        # The length of each pair that positions turn bounds both of its elements.
        length = x.unflatten(-1, (-1, 2)).norm(dim=-1) if part == "k" else x.abs()
        peak = length.amax((0, 1, 3))
        self.largest[layer, part] = torch.maximum(self.largest.get((layer, part), peak), peak)
        return x

    def _add(self, seen: Seen) -> None:
        q, keys = turned(seen.q, seen.q_places)[0], turned(seen.keys, seen.places)[0]
        scores = torch.einsum("qhd,khd->hqk", q, keys) / q.shape[-1] ** 0.5
        by_key = scores.softmax(-1).mean(1)
        ends = (seen.sink, by_key.shape[1] - seen.own)
        parts = torch.stack([part.sum(1) for part in by_key.tensor_split(ends, dim=1)], dim=1)
        self.mass[seen.layer] = self.mass.get(seen.layer, torch.zeros_like(parts)) + parts
        self.passes[seen.layer] = self.passes.get(seen.layer, 0) + 1


def main() -> None:
    parser(__doc__, out=False).parse_args()
    watching, config = Watching(), model_config()
    with single_threaded(), load("demo") as pipeline:
        for number, prompt in enumerate(config.prompts.suggestions):
            case = Case("prompt", number, {0: prompt}, _BLOCKS, _SEED + number, ())
            latents(pipeline, case, watching)
    layers = range(config.transformer.layers)
    shares = [(watching.mass[n] / watching.passes[n]).tolist() for n in layers]
    facts = {"command": "python -m benchmarks.quality.heads", "machine": cpu_name()}
    write_report(
        {
            **facts,
            "weights": weights(),
            **{
                part: [[round(head[place], 4) for head in layer] for layer in shares]
                for place, part in enumerate(("sink", "past", "own"))
            },
            "largest": [
                {part: [round(x, 4) for x in watching.largest[n, part].tolist()] for part in "kv"}
                for n in layers
            ],
        },
        RESULT,
    )


if __name__ == "__main__":
    main()
