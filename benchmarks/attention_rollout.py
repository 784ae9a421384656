"""What 8-bit self-attention does to a video: rollouts of a small model with the real kernels.

    python benchmarks/attention_rollout.py [--out docs/results/attention_rollout_h200.json]

Needs a Hopper GPU. The model and the noise are those of the golden data; everything but
self-attention is computed in float32, so the error is that of attention alone.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from longlive_trt.configs.loader import configure
from longlive_trt.configs.replay import load_replay, prompts_by_block
from longlive_trt.export.models.rollout import ReferenceRollout
from longlive_trt.export.models.transformer import Transformer, full_attention
from longlive_trt.plugins.attention.arguments import KVPiece, Scales
from longlive_trt.plugins.attention.hopper import SinkWindowAttention
from longlive_trt.plugins.attention.value_layout import padded_tokens
from longlive_trt.plugins.kernels.quantize import quantize_values

DATA = Path(__file__).parent.parent / "tests" / "data" / "transformer"
CASES = ("noswitch", "switch15_global_sink", "switch6")
LARGEST = {"int8": 127.0, "float8_e4m3": 448.0}

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def half_attention() -> Attention:
    kernel = SinkWindowAttention("bfloat16", 128)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q16, k16, v16 = (x.bfloat16().contiguous() for x in (q, k, v))
        out = torch.full_like(q16, float("nan"))
        kernel(q16, [KVPiece(k16, v16)], out)
        return out.to(q.dtype)

    return attend


def eight_bit_attention(kind: str) -> Attention:
    """Scales from this call's own largest values: one a head, and one a row for int8 queries."""
    kernel = SinkWindowAttention(kind, 128)

    def per_head(x: Tensor, largest: float) -> Tensor:
        return (x.abs().amax((0, 1, 3)).float() / largest).clamp_min(1e-12)

    def rounded(x: Tensor, scale: Tensor) -> Tensor:
        scaled = x.float() / scale
        if kind == "int8":
            return scaled.round().clamp(-127, 127).to(torch.int8)
        return scaled.clamp(-448, 448).to(torch.float8_e4m3fn)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, tokens, heads, dim = v.shape
        k_scale, v_scale = per_head(k, LARGEST[kind]), per_head(v, 448.0)
        if kind == "int8":
            rows = (q.abs().amax(-1).float() / 127).clamp_min(1e-12)
            q_scale, q8 = rows.transpose(1, 2).contiguous(), rounded(q, rows[..., None])
        else:
            q_scale = per_head(q, 448.0)
            q8 = rounded(q, q_scale[:, None])
        packed = torch.zeros(
            (batch, heads, dim, padded_tokens(tokens)), dtype=torch.uint8, device="cuda"
        ).view(torch.float8_e4m3fn)
        quantize_values(v.bfloat16().contiguous(), v_scale, packed)
        piece = KVPiece(
            rounded(k, k_scale[:, None]),
            packed,
            tokens,
        )
        out = torch.full(q.shape, float("nan"), dtype=torch.bfloat16, device="cuda")
        kernel(q8, [piece], out, scales=Scales(q_scale, k_scale, v_scale))
        return out.to(q.dtype)

    return attend


@torch.no_grad()
def rollout(case: str, attention: Attention) -> Tensor:
    config = configure(
        {
            "name": "golden-a",
            "transformer": {
                "dim": 256, "heads": 2, "layers": 2, "ffn_dim": 512, "text_len": 16, "text_dim": 64,
            },
            "latent": {"height": 8, "width": 12},
        },
        origin="golden data",
    )  # fmt: skip
    model = Transformer(config.transformer)
    model.load_state_dict(load_file(DATA / "transformer.safetensors", device="cuda"))
    replay = load_replay(DATA / f"{case}.replay.safetensors", config)
    made = ReferenceRollout(model, config, replay.batch, replay.frames, attention=attention)
    noise, renoise = (torch.from_numpy(x).cuda() for x in (replay.noise, replay.renoise))
    boundaries = prompts_by_block(replay.schedule, 3)
    for block in range(replay.frames // 3):
        start, prompt = next(boundaries)
        if prompt is not None:
            made.switch_prompt(torch.from_numpy(replay.prompts[prompt]).cuda())
        made.run_block(noise[:, start : start + 3], list(renoise[block]))
    return torch.cat(made.frames, dim=1)


def errors_by_block(found: Tensor, expected: Tensor) -> list[float]:
    return [
        float((a.double() - b.double()).norm() / b.double().norm())
        for a, b in zip(found.split(3, dim=1), expected.split(3, dim=1), strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_default_device("cuda")
    kinds = {
        "float32 (torch)": full_attention,
        "bfloat16 kernel": half_attention(),
        "int8 q k, e4m3 p v kernel": eight_bit_attention("int8"),
        "e4m3 kernel": eight_bit_attention("float8_e4m3"),
    }
    results: dict[str, dict[str, list[float]]] = {}
    for case in CASES:
        expected = load_file(DATA / f"{case}.expected.safetensors", device="cuda")["latents"]
        results[case] = {
            name: errors_by_block(rollout(case, attention), expected)
            for name, attention in kinds.items()
        }
        for name, errors in results[case].items():
            print(f"{case:24} {name:28} first {errors[0]:.2e} last {errors[-1]:.2e}")
    report = {
        "command": " ".join(["python", *sys.argv]),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "what": "relative L2 error of each block's latents against the golden data",
        "results": results,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
