"""Every kernel of one transformer pass at its real size, and what a pass of them comes to.

    python -m benchmarks.kernels.transformer --out docs/results/transformer_kernels_h200.json

4,680 tokens against 14,040 cached ones, dim 1536, 30 layers. Each kernel is captured eight times
over rotating buffers, so that nothing stays in the cache, and replayed. Products are timed
for weights stored [in, out] and [out, in], and beside torch; all other kernels beside the rate of a
copy of gigabytes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from benchmarks.harness import parser, write_report
from benchmarks.kernels.timing import capture, copy_rate, machine, median_ms
from longlive_trt.plugins.cuda.cublaslt import WORKSPACE_BYTES, Matmul, Product
from longlive_trt.plugins.cuda.placement import Placement
from longlive_trt.plugins.cuda.streams import Gpu, Stream
from longlive_trt.plugins.cuda.tensors import DeviceTensor, as_device_tensor
from longlive_trt.plugins.kernels.registry import KERNELS

HEADS, HEAD_DIM, FFN = 12, 128, 8960
DIM = HEADS * HEAD_DIM
TOKENS, CACHED, TEXT, LAYERS = 4680, 14040, 512, 30
OWN_TEXT = 121
"""Tokens of a prompt, and one that stands for its padding."""
PATCH = 64
BUFFERS = 8
FLOAT8 = torch.float8_e4m3fn

Run = Callable[[int, int], Any]
"""(buffer, stream)"""


@dataclass
class KernelJob:
    kernel: str
    parameters: dict[str, Any]
    inputs: list[Any]
    """Lists hold one tensor for each buffer; a tensor is shared."""
    per_pass: int
    flops: int = 0
    types: Mapping[int, torch.dtype] = field(default_factory=dict)
    """Of outputs that are not in the compute type."""

    def tensors(self, buffer: int) -> list[DeviceTensor]:
        chosen = (x[buffer] if isinstance(x, list) else x for x in self.inputs)
        return [as_device_tensor(x, "input") for x in chosen]

    def prepare(self, dtype: torch.dtype) -> tuple[Run, int]:
        """What runs it, and how many bytes it reads and writes."""
        kernel, gpu = KERNELS[self.kernel](**self.parameters), Gpu()
        places: dict[int, Placement] = {}
        inputs = [self.tensors(buffer) for buffer in range(BUFFERS)]
        shapes = kernel.output_shapes([x.shape for x in inputs[0]])
        types = [self.types.get(i, dtype) for i in range(len(shapes))]
        pairs = list(zip(shapes, types, strict=True))
        memory = [[torch.empty(s, dtype=t, device="cuda") for s, t in pairs] for _ in inputs]
        outputs = [[as_device_tensor(x, "output") for x in group] for group in memory]

        def run(buffer: int, stream: int) -> None:
            if stream not in places:
                places[stream] = Placement(Stream(gpu, stream))
            kernel.launch(inputs[buffer], outputs[buffer], places[stream])
            assert memory  # the addresses above are its own

        return run, sum(map(size_bytes, [*inputs[0], *outputs[0]]))


def size_bytes(tensor: DeviceTensor) -> int:
    return torch.Size(tensor.shape).numel() * tensor.item_bytes


def kernel_jobs(dtype: torch.dtype) -> dict[str, KernelJob]:
    def normal(*shape: int) -> list[torch.Tensor]:
        return [torch.randn(*shape, device="cuda").to(dtype) for _ in range(BUFFERS)]

    def shared(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda").to(dtype)

    def turn(tokens: int) -> list[torch.Tensor]:
        angles = 6.28 * torch.rand(tokens, HEAD_DIM // 2, device="cuda")
        return [angles.cos(), angles.sin()]

    x, y, table = normal(1, TOKENS, DIM), normal(1, TOKENS, DIM), shared(6, DIM)
    weight, bias = shared(DIM), shared(DIM)
    qkv = normal(1, TOKENS, 3 * DIM)
    q, k, v = (normal(1, TOKENS, HEADS, HEAD_DIM) for _ in range(3))
    k_cache, v_cache = (normal(1, CACHED, HEADS, HEAD_DIM) for _ in range(2))
    context = [shared(1, TEXT, HEADS, HEAD_DIM) for _ in range(2)]
    valid = torch.tensor([CACHED], device="cuda")
    told_apart = torch.tensor([[OWN_TEXT]], device="cuda")
    narrow = {
        name: [x.to(FLOAT8) for x in tensors]
        for name, tensors in (
            *zip("qkv", (q, k, v), strict=True),
            ("k_cache", k_cache),
            ("v_cache", v_cache),
        )
    }
    values = {
        tokens: [torch.ones(1, HEADS, HEAD_DIM, -(-tokens // 16) * 16, device="cuda").to(FLOAT8)]
        * BUFFERS
        for tokens in (TOKENS, CACHED)
    }
    units = torch.full((HEADS,), 0.02, device="cuda")
    int8_types = dict(enumerate((torch.int8, torch.int8, FLOAT8, torch.float32)))
    int8_qkv = [qkv, weight, bias, *turn(TOKENS), units, units]
    modulated, heads = {"scale_row": 1, "shift_row": 0}, {"heads": HEADS}
    attention_flops = 4 * TOKENS * DIM
    return {
        "norm": KernelJob("layer_norm", modulated, [x, table], 1),
        "gated residual, affine norm": KernelJob(
            "residual_norm",
            {"norm": "affine", "gate_row": 2},
            [x, y, table, weight, bias],
            LAYERS,
        ),
        "residual, modulated norm": KernelJob("residual_norm", modulated, [x, y, table], LAYERS),
        "gated residual, modulated norm": KernelJob(
            "residual_norm", {**modulated, "gate_row": 5}, [x, y, table], LAYERS
        ),
        "q k v norm and rotation": KernelJob(
            "qkv_norm_rope", heads, [qkv, weight, bias, *turn(TOKENS)], LAYERS
        ),
        "the same with plain keys": KernelJob(
            "qkv_norm_rope", {**heads, "plain_key": True}, [qkv, weight, bias, *turn(TOKENS)], 0
        ),
        "rotation of cached keys": KernelJob("rotate", {}, [k_cache, *turn(CACHED)], 0),
        "q norm": KernelJob("rms_norm", heads, [x, weight], LAYERS),
        "attention": KernelJob(
            "attention",
            {},
            [q, k, v, k_cache, v_cache, valid],
            LAYERS,
            attention_flops * (TOKENS + CACHED),
        ),
        "cross-attention": KernelJob(
            "cross_attention", {}, [q, *context], 0, attention_flops * TEXT
        ),
        "cross-attention without padding": KernelJob(
            "cross_attention", {}, [q, *context, told_apart], LAYERS, attention_flops * OWN_TEXT
        ),
        "8 bits: gated residual, modulated norm": KernelJob(
            "residual_norm",
            {**modulated, "gate_row": 5, "output_scale": 0.02},
            [x, y, table],
            0,
            types={1: FLOAT8},
        ),
        "8 bits: q k v norm and rotation": KernelJob(
            "qkv_norm_rope",
            heads,
            [qkv, weight, bias, *turn(TOKENS), units, units, units],
            0,
            types=dict.fromkeys(range(3), FLOAT8),
        ),
        "8 bits: the same, values transposed": KernelJob(
            "qkv_norm_rope",
            {**heads, "transposed": True},
            [qkv, weight, bias, *turn(TOKENS), units, units, units],
            0,
            types=dict.fromkeys(range(3), FLOAT8),
        ),
        "int8: q k v norm and rotation": KernelJob(
            "qkv_norm_rope", {**heads, "hadamard": True}, int8_qkv, 0, types=int8_types
        ),
        "int8: the same, values transposed": KernelJob(
            "qkv_norm_rope",
            {**heads, "hadamard": True, "transposed": True},
            int8_qkv,
            0,
            types=int8_types,
        ),
        "16 bits to 8: cross-attention": KernelJob(
            "cross_attention",
            {"output_scale": 0.02},
            [q, *context],
            0,
            attention_flops * TEXT,
            types={0: FLOAT8},
        ),
        "8 bits: own values": KernelJob(
            "transposed_values", {}, [narrow["v"]], 0, types={0: FLOAT8}
        ),
        "8 bits: cached values": KernelJob(
            "transposed_values", {}, [narrow["v_cache"]], 0, types={0: FLOAT8}
        ),
        "16 bits to 8: attention": KernelJob(
            "attention",
            {"output_scale": 0.02},
            [q, k, v, k_cache, v_cache, valid],
            0,
            attention_flops * (TOKENS + CACHED),
            types={0: FLOAT8},
        ),
        "8 bits: attention": KernelJob(
            "narrow_attention",
            {"output_scale": 0.02},
            [
                *(narrow["q"], narrow["k"], values[TOKENS]),
                *(narrow["k_cache"], values[CACHED], valid, units, units, units),
            ],
            0,
            attention_flops * (TOKENS + CACHED),
            types={0: FLOAT8},
        ),
    }


@dataclass(frozen=True)
class ProductJob:
    rows: int
    inner: int
    columns: int
    per_pass: int
    activation: str = "none"


PRODUCTS = {
    "q k v": ProductJob(TOKENS, DIM, 3 * DIM, LAYERS),
    "output, or cross q": ProductJob(TOKENS, DIM, DIM, 3 * LAYERS),
    "feed-forward in": ProductJob(TOKENS, DIM, FFN, LAYERS, "gelu"),
    "feed-forward out": ProductJob(TOKENS, FFN, DIM, LAYERS),
    "patches": ProductJob(TOKENS, PATCH, DIM, 1),
    "head": ProductJob(TOKENS, DIM, PATCH, 1),
    "time projection": ProductJob(1, DIM, 6 * DIM, 1),
}


class TimedProduct:
    """One product in all its forms, over the same tensors."""

    def __init__(self, job: ProductJob, dtype: torch.dtype) -> None:
        self.job, self.dtype = job, dtype
        self.name = str(dtype).removeprefix("torch.")
        self.x = [torch.randn(job.rows, job.inner, device="cuda").to(dtype) for _ in range(BUFFERS)]
        self.weight = [
            (torch.randn(job.inner, job.columns, device="cuda") * job.inner**-0.5).to(dtype)
            for _ in range(BUFFERS)
        ]
        self.bias = torch.randn(job.columns, device="cuda").to(dtype)
        self.out = [torch.empty(job.rows, job.columns, device="cuda", dtype=dtype) for _ in self.x]
        self.one = torch.ones(1, device="cuda")
        self.workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")

    def product(self, **changes: Any) -> Product:
        job = self.job
        product = Product(
            job.rows, job.inner, job.columns, self.name, self.name, True, job.activation
        )
        return replace(product, **changes)

    def forms(self) -> Iterator[tuple[str, Run]]:
        flipped = [w.T.contiguous() for w in self.weight]
        yield "in_out", self._runner(self.product(), self.x, self.weight)
        yield "out_in", self._runner(self.product(transposed=True), self.x, flipped)
        plain = self.product(bias=False, activation="none")
        yield "in_out_no_epilogue", self._runner(plain, self.x, self.weight)
        yield "torch_in_out", self._torch
        if self.job.rows % 8 == 0:
            eight_bit = [[t.to(FLOAT8) for t in group] for group in (self.x, flipped)]
            eight = {"dtype": "float8_e4m3", "transposed": True}
            yield "fp8", self._runner(self.product(**eight), *eight_bit)
            to_eight = {**eight, "out_dtype": "float8_e4m3", "bias_dtype": self.name}
            yield "fp8_to_fp8", self._runner(self.product(**to_eight), *eight_bit)

    def _runner(self, product: Product, x: list[torch.Tensor], weight: list[torch.Tensor]) -> Run:
        matmul, workspace = Matmul(product), self.workspace.data_ptr()
        bias = self.bias.data_ptr() if product.bias else 0
        factor = self.one.data_ptr() if product.out_dtype == "float8_e4m3" else 0

        def run(buffer: int, stream: int) -> None:
            pointers = (t[buffer].data_ptr() for t in (x, weight, self.out))
            matmul(*pointers, workspace=workspace, bias=bias, out_factor=factor, stream=stream)

        return run

    def _torch(self, buffer: int, stream: int) -> None:
        del stream  # torch's current one
        torch.addmm(self.bias, self.x[buffer], self.weight[buffer], out=self.out[buffer])
        if self.job.activation == "gelu":
            torch.nn.functional.gelu(self.out[buffer], approximate="tanh")


def buffers_ms(run: Run, repeats: int) -> float:
    """Of one call, over all buffers in turn."""
    graph = capture([partial(run, buffer) for buffer in range(BUFFERS)])
    return median_ms(graph.replay, repeats) / BUFFERS


def time_products(dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    results = {}
    for name, job in PRODUCTS.items():
        timed_product = TimedProduct(job, dtype)
        forms = {}
        for form, run in timed_product.forms():
            forms[form] = buffers_ms(run, repeats) * 1e3
        flops = timed_product.product().flops
        results[name] = {
            "shape": [job.rows, job.inner, job.columns],
            "activation": job.activation,
            "per_pass": job.per_pass,
            "us": forms,
            "tflops": {form: flops / us / 1e6 for form, us in forms.items()},
        }
        summary = ", ".join(f"{form} {us:.1f}" for form, us in forms.items())
        print(f"{name:32s} us: {summary}")
        torch.cuda.empty_cache()
    return results


def time_kernels(dtype: torch.dtype, repeats: int, peak: float) -> dict[str, Any]:
    results = {}
    for name, job in kernel_jobs(dtype).items():
        run, moved = job.prepare(dtype)
        time_ms = buffers_ms(run, repeats)
        results[name] = {
            "per_pass": job.per_pass,
            "us": time_ms * 1e3,
            "bytes": moved,
            "gb_per_s": moved / time_ms / 1e6,
            "of_copy": moved / time_ms / peak,
            "tflops": job.flops / time_ms / 1e9,
        }
        rate = (
            f"{job.flops / time_ms / 1e9:.0f} TFLOP/s"
            if job.flops
            else f"{moved / time_ms / 1e6:.0f} GB/s, {100 * moved / time_ms / peak:.0f}% of a copy"
        )
        print(f"{name:32s} {time_ms * 1e3:8.2f} us, {rate}")
    return results


def per_pass_ms(products: dict[str, Any], kernels: dict[str, Any]) -> dict[str, float]:
    def total(names: list[str]) -> float:
        total_us: float = sum(kernels[name]["us"] * kernels[name]["per_pass"] for name in names)
        return total_us / 1e3

    attention = ["attention", "cross-attention"]
    forms = ("in_out", "out_in")
    return {
        **{
            f"products {form}": sum(p["us"][form] * p["per_pass"] for p in products.values()) / 1e3
            for form in forms
        },
        "attention": total(attention),
        "others": total([name for name in kernels if name not in attention]),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=30)
    options.add_argument("--dtype", choices=["float16", "bfloat16"], default="bfloat16")
    chosen = options.parse_args()
    dtype, peak = getattr(torch, chosen.dtype), copy_rate()
    products = time_products(dtype, chosen.repeats)
    kernels = time_kernels(dtype, chosen.repeats, peak)
    sums = per_pass_ms(products, kernels)
    print("; ".join(f"{name} {ms:.2f} ms" for name, ms in sums.items()))
    report = {
        **machine(),
        "copy_gb_per_s": peak / 1e6,
        "products": products,
        "kernels": kernels,
        "per_pass_ms": sums,
    }
    write_report(report, chosen.out)


if __name__ == "__main__":
    main()
