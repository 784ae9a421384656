"""What 8-bit self-attention does to a video: rollouts of a small model with the real kernels.

    python -m benchmarks.kernels.attention_rollout [--out docs/results/attention_rollout_h200.json]

Needs a Hopper GPU. The model and the noise are those of the golden data; everything but
self-attention is computed in float32, so the error is that of attention alone.
"""

from collections.abc import Callable

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.harness import ROOT, parser, write_report
from benchmarks.kernels.timing import machine, relative_error
from longlive_trt.configs.loader import configure
from longlive_trt.configs.replay import load_replay, prompts_by_block
from longlive_trt.export.models.rollout import ReferenceRollout
from longlive_trt.export.models.transformer import Transformer, full_attention
from longlive_trt.plugins.attention.arguments import KVPiece, Scales
from longlive_trt.plugins.attention.hopper import SinkWindowAttention
from longlive_trt.plugins.attention.value_layout import padded_tokens
from longlive_trt.plugins.kernels.values import quantize_values

DATA = ROOT / "tests" / "data" / "transformer"
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
    reference = ReferenceRollout(model, config, replay.batch, replay.frames, attention=attention)
    noise, renoise = (torch.from_numpy(x).cuda() for x in (replay.noise, replay.renoise))
    boundaries = prompts_by_block(replay.schedule, 3)
    for block in range(replay.frames // 3):
        start, prompt = next(boundaries)
        if prompt is not None:
            reference.switch_prompt(torch.from_numpy(replay.prompts[prompt]).cuda())
        reference.run_block(noise[:, start : start + 3], list(renoise[block]))
    return torch.cat(reference.frames, dim=1)


def errors_by_block(latents: Tensor, expected: Tensor) -> list[float]:
    pairs = zip(latents.split(3, dim=1), expected.split(3, dim=1), strict=True)
    return [relative_error(*pair) for pair in pairs]


def main() -> None:
    options = parser(__doc__).parse_args()
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
    what = "relative L2 error of each block's latents against the golden data"
    write_report({**machine(), "what": what, "results": results}, options.out)


if __name__ == "__main__":
    main()
