"""Small attention problems for compute-sanitizer, without any library's kernels beside ours.

compute-sanitizer --tool memcheck  python -m benchmarks.kernels.races
compute-sanitizer --tool racecheck python -m benchmarks.kernels.races --checked
"""

import ctypes
from dataclasses import replace
from typing import Any

import torch

from benchmarks.harness import parser
from longlive_trt.plugins.attention.arguments import KVPiece, Scales
from longlive_trt.plugins.attention.hopper import SinkWindowAttention
from longlive_trt.plugins.attention.portable import PortableAttention
from longlive_trt.plugins.attention.tensorrt_plugin import (
    ARCHITECTURE,
    ENTRY,
    TACTICS,
    plugin_source,
    workspace_floats,
)
from longlive_trt.plugins.attention.variants import FLOAT8, INT8, Variant, choose_variant
from longlive_trt.plugins.cuda import driver
from longlive_trt.plugins.cuda.compilation import compile_kernel
from longlive_trt.plugins.kernels.values import quantize_values

SHAPES = ((200, (300, 0, 77)), (1100, (700, 900)))
HEADS = 2


def random(shape: tuple[int, ...], kind: str) -> torch.Tensor:
    values = torch.randn(shape, device="cuda")
    if kind == "int8":
        return (values * 30).to(torch.int8)
    return values.to(torch.float8_e4m3fn if kind == "float8_e4m3" else torch.bfloat16)


def pieces_for(lengths: tuple[int, ...], kind: str) -> list[KVPiece]:
    pieces = []
    for length in lengths:
        capacity = length + 16 - length % 16
        k, v = (random((1, capacity, HEADS, 128), kind) for _ in "kv")
        if kind != "bfloat16":
            v = random((1, HEADS, 128, capacity), "float8_e4m3")
        valid = torch.tensor([length], dtype=torch.int64, device="cuda")
        pieces.append(KVPiece(k, v, valid))
    return pieces


def run_hopper(kind: str, checked: bool, variant: Variant) -> None:
    variant = replace(variant, checked=checked)
    attention = SinkWindowAttention(kind, variant=variant)
    factor = torch.full((HEADS,), 0.03, device="cuda")
    scales = None if kind == "bfloat16" else Scales(factor, factor, factor)
    for tokens, lengths in SHAPES:
        q = random((1, tokens, HEADS, 128), kind)
        out = torch.full_like(q, float("nan"), dtype=torch.bfloat16)
        attention(q, pieces_for(lengths, kind), out, scales=scales)
        torch.cuda.synchronize()
        assert out.isfinite().all()
        print(f"{kind}, {variant}, {tokens} queries, {lengths} keys: done", flush=True)


def run_padded(checked: bool) -> None:
    """The last key counts for those behind it: in one block, and in tiles split along the keys."""
    for keys in (512, 20000):
        variant = replace(choose_variant("bfloat16", 128, keys), checked=checked)
        for attention in (SinkWindowAttention(variant=variant), PortableAttention()):
            q = random((1, 200, HEADS, 128), "bfloat16")
            out = torch.full_like(q, float("nan"))
            length = torch.tensor([keys // 4], dtype=torch.int64, device="cuda")
            k, v = (random((1, keys, HEADS, 128), "bfloat16") for _ in "kv")
            piece = KVPiece(k, v, length, rest_alike=True)
            attention(q, [piece], out)
            torch.cuda.synchronize()
            assert out.isfinite().all()
            print(f"padded, {keys // 4} of {keys} keys: done", flush=True)


def run_plugin(checked: bool) -> None:
    variant = replace(TACTICS[128][1], checked=checked)
    ptx = compile_kernel(plugin_source("bfloat16", 128, 0.1, variant), ARCHITECTURE, kind="ptx")
    shared_bytes = variant.shared_bytes("bfloat16", 128)
    kernel = driver.load_image(ptx, "ptx", ENTRY, shared_bytes, 0)
    blocks = driver.device_facts(0).multiprocessors
    workspace = torch.empty(workspace_floats(128, blocks), device="cuda")
    for tokens, lengths in SHAPES:
        cache = pieces_for(lengths[:1], "bfloat16")[0]
        q, own_k, own_v = (random((1, tokens, HEADS, 128), "bfloat16") for _ in "qkv")
        out = torch.full_like(q, float("nan"))
        tensors = (q, own_k, own_v, cache.k, cache.v, cache.length)
        arguments: list[Any] = [ctypes.c_void_p(t.data_ptr()) for t in tensors]
        arguments += [ctypes.c_int(n) for n in (1, HEADS, tokens, cache.k.shape[1])]
        arguments += [ctypes.c_void_p(t.data_ptr()) for t in (out, workspace)]
        stream = torch.cuda.current_stream().cuda_stream
        kernel.launch((blocks,), variant.threads, shared_bytes, stream, arguments)
        torch.cuda.synchronize()
        assert out.isfinite().all()
        print(f"plugin, {variant}, {tokens} queries: done", flush=True)


def run_values() -> None:
    v = random((1, 77, HEADS, 128), "bfloat16")
    packed = torch.zeros(1, HEADS, 128, 112, device="cuda").to(torch.float8_e4m3fn)
    factor = torch.full((HEADS,), 0.03, device="cuda")
    quantize_values(v, factor, packed, first_token=21)
    torch.cuda.synchronize()
    print("values: done", flush=True)


def run_portable() -> None:
    attention = PortableAttention()
    for tokens, lengths in SHAPES:
        q = random((1, tokens, HEADS, 128), "bfloat16")
        out = torch.full_like(q, float("nan"))
        attention(q, pieces_for(lengths, "bfloat16"), out)
        torch.cuda.synchronize()
        assert out.isfinite().all()
        print(f"portable, {tokens} queries, {lengths} keys: done", flush=True)


def main() -> None:
    options = parser(__doc__, out=False)
    options.add_argument("--checked", action="store_true", help="builds for a race checker")
    checked = options.parse_args().checked
    for keys in (18720, 512):
        run_hopper("bfloat16", checked, choose_variant("bfloat16", 128, keys))
    for kind in ("int8", "float8_e4m3"):
        for variant in (FLOAT8, INT8):
            run_hopper(kind, checked, variant)
    run_padded(checked)
    run_plugin(checked)
    run_portable()
    run_values()


if __name__ == "__main__":
    main()
