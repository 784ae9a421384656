"""cuBLASLt's proposals for a pass's products, beside its first, which is the one that is taken.

    python -m benchmarks.kernels.products --out docs/results/products_h200.json

Of each product (FP8 with the results that the step graph asks for, of a pass's 4,680 rows and a
re-cache's 14,040) every proposal is captured over rotating buffers, so that nothing stays in the
cache, and all are replayed in turns. One that gives other bits when it is run again, or differs
from the first by more than sums in another order do, is left out. The fastest is measured against
the first once more, and so is our own kernel of the product with GELU.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.harness import parser, write_report
from benchmarks.kernels.timing import capture, in_turns_ms, machine, median, relative_error
from longlive_trt.plugins.cuda.cublaslt import (
    WORKSPACE_BYTES,
    Algorithm,
    Matmul,
    Product,
    library_version,
    proposals,
)
from longlive_trt.plugins.cuda.driver import device_facts
from longlive_trt.plugins.kernels import gelu_product

DIM, FFN = 1536, 8960
ROWS = {"a pass": 4680, "a re-cache": 14040}
COMPUTE, FLOAT8 = "bfloat16", "float8_e4m3"
BUFFERS, MOST = 8, 32
SAME_SUMS = 2e-3
"""Of two results of 16 bits; those in FP8 may differ by more, in few places."""
SAME_NARROW_SUMS = 1e-2


@dataclass(frozen=True)
class Job:
    inner: int
    columns: int
    per_pass: int
    activation: str = "none"
    narrow: bool = False

    def product(self, rows: int) -> Product:
        """As the node of a step graph asks for it (``plugins/kernels/gemm.py``)."""
        return Product(
            *(rows, self.inner, self.columns, FLOAT8, FLOAT8 if self.narrow else COMPUTE),
            bias=True,
            activation=self.activation,
            transposed=True,
            bias_dtype=COMPUTE,
        )


LAYERS = 30
JOBS = {
    "q k v": Job(DIM, 3 * DIM, LAYERS),
    "output, or cross q": Job(DIM, DIM, 3 * LAYERS),
    "feed-forward in": Job(DIM, FFN, LAYERS, "gelu", narrow=True),
    "feed-forward out": Job(FFN, DIM, LAYERS),
}


class Problem:
    """One product over rotating tensors, by any algorithm."""

    def __init__(self, product: Product) -> None:
        self.product = product
        rows, inner, columns = product.rows, product.inner, product.columns
        narrow, side = torch.float8_e4m3fn, getattr(torch, product.side_dtype)
        self._x, self._weights = (
            [torch.randn(n, inner, device="cuda").to(narrow) for _ in range(BUFFERS)]
            for n in (rows, columns)
        )
        self._bias = torch.randn(columns, device="cuda").to(side)
        out = narrow if product.out_dtype == FLOAT8 else side
        self._outs = [torch.empty(rows, columns, device="cuda", dtype=out) for _ in range(BUFFERS)]
        self._factor = torch.full((1,), 64.0, device="cuda")
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")

    def launch(self, matmul: Matmul, buffer: int, stream: int) -> None:
        tensors = (self._x[buffer], self._weights[buffer], self._outs[buffer])
        matmul(
            *(tensor.data_ptr() for tensor in tensors),
            workspace=self._workspace.data_ptr(),
            bias=self._bias.data_ptr(),
            scale=self.product.inner**-0.5,
            out_factor=self._factor.data_ptr() if self.product.out_dtype == FLOAT8 else 0,
            stream=stream,
        )

    def launch_ours(self, buffer: int, stream: int) -> None:
        tensors = {
            "x": self._x[buffer],
            "weight": self._weights[buffer],
            "bias": self._bias,
            "factor": self._factor,
            "output": self._outs[buffer],
        }
        addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        scale = self.product.inner**-0.5
        gelu_product.launch(self.product, addresses, scale, device=0, stream=stream)

    def graph_of_ours(self) -> torch.cuda.CUDAGraph:
        return capture([partial(self.launch_ours, buffer) for buffer in range(BUFFERS)])

    def graph(self, algorithm: Algorithm) -> torch.cuda.CUDAGraph:
        matmul = Matmul(self.product, algorithm=algorithm)
        return capture([partial(self.launch, matmul, buffer) for buffer in range(BUFFERS)])

    def result(self, graph: torch.cuda.CUDAGraph) -> torch.Tensor:
        """The bytes of the first buffer, in memory that held something else."""
        for out in self._outs:
            out.view(torch.uint8).fill_(0x55)
        graph.replay()
        torch.cuda.synchronize()
        return self._outs[0].clone()


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def sound(problem: Problem, graphs: Sequence[torch.cuda.CUDAGraph]) -> list[int]:
    """Those that give the same bits ten times over, and the first one's sums."""
    narrow = problem.product.out_dtype == FLOAT8
    expected, found = problem.result(graphs[0]).float(), []
    for index, graph in enumerate(graphs):
        result = problem.result(graph)
        repeats = all(same_bits(problem.result(graph), result) for _ in range(9))
        error = relative_error(result.float(), expected)
        if repeats and error <= (SAME_NARROW_SUMS if narrow else SAME_SUMS):
            found.append(index)
    return found


def measure_ours(product: Product, repeats: int) -> dict[str, Any]:
    problem, names = Problem(product), ("first", "ours")
    graphs = [problem.graph(proposals(product, 0, 1)[0]), problem.graph_of_ours()]
    usable, times = sound(problem, graphs), in_turns(dict(enumerate(graphs)), 3 * repeats)
    for index, name in enumerate(names):
        print(f"{name:>32s} {times[index]:7.1f} us{'' if index in usable else ', UNSOUND'}")
    return {
        "us": {name: times[index] for index, name in enumerate(names)},
        "unsound": [name for index, name in enumerate(names) if index not in usable],
    }


def in_turns(graphs: dict[int, torch.cuda.CUDAGraph], repeats: int) -> dict[int, float]:
    """Microseconds of one product."""
    replays = {str(index): [graph.replay] for index, graph in graphs.items()}
    times = in_turns_ms(replays, repeats)
    return {int(index): median(each) / BUFFERS * 1e3 for index, each in times.items()}


def measure(product: Product, repeats: int) -> dict[str, Any]:
    problem, proposed = Problem(product), proposals(product, 0, MOST)
    graphs = [problem.graph(algorithm) for algorithm in proposed]
    usable = sound(problem, graphs)
    times = in_turns({index: graphs[index] for index in {0, *usable}}, repeats)
    best = min(usable, key=lambda index: times[index])
    again = in_turns({0: graphs[0], best: graphs[best]}, 3 * repeats)
    return {
        "us": [times.get(index) for index in range(len(graphs))],
        "unsound": sorted(set(range(len(graphs))) - set(usable)),
        "best": best,
        "of_first": again[best] / again[0],
        "tflops": product.flops / again[best] / 1e6,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=60)
    chosen = options.parse_args()
    reports: dict[str, Any] = {}
    for where, rows in ROWS.items():
        for name, job in JOBS.items():
            product = job.product(rows)
            report = measure(product, chosen.repeats)
            reports[f"{name}, {where}"] = {"product": asdict(product), **report}
            saved_ms = (1 - report["of_first"]) * report["us"][0] * job.per_pass / 1e3
            print(
                f"{name + ', ' + where:32s} {report['us'][0]:7.1f} us at first, best of "
                f"{len(report['us'])} is {report['best']}: {report['of_first']:.3f} of that, "
                f"{saved_ms:.2f} ms of a pass"
            )
            if gelu_product.takes(product, device_facts(0).architecture):
                reports[f"{name}, {where}"]["ours"] = measure_ours(product, chosen.repeats)
            torch.cuda.empty_cache()
    write_report({**machine(), "cublaslt": library_version(), "products": reports}, chosen.out)


if __name__ == "__main__":
    main()
