"""A bundle with random weights from an export's graphs alone: at full size, within a minute or two.

    python -m benchmarks.full_size.bundle GRAPHS --out BUNDLE --gpu sm90 [--only text,step,prompt]

GRAPHS is an export without its ``*.weights``: ``export.json``, the ``.onnx`` files and
``tokenizer.json``, some megabytes in place of the 30 GB that a full-size export has. The graphs
become bfloat16, weights are drawn on all cores, and `build` makes the bundle as from any export.
Times do not depend on the weights, as long as nothing overflows: activations stay near one.
"""

import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.harness import parser
from longlive_trt.engines.build import build
from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.exports import RECORD_NAME, TOKENIZER_NAME, ExportRecord, graph_info, read_export
from longlive_trt.files import sha256_file
from longlive_trt.precision import precision_named, retype

PRECISION = precision_named("bf16")
ALIGNMENT_BYTES = 4096
SLICE_VALUES = 1 << 23

Key = tuple[str, int]
"""A weight's file, and where it began there in the export."""


@dataclass(frozen=True)
class Weight:
    name: str
    shape: tuple[int, ...]
    dtype: ir.DataType
    offset: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def item_bytes(self) -> int:
        return int(self.dtype.numpy().itemsize)

    @property
    def length(self) -> int:
        return self.count * self.item_bytes

    @property
    def mean_and_deviation(self) -> tuple[float, float]:
        if len(self.shape) > 1 and "modulation" not in self.name:
            fan_in = min(self.shape) if len(self.shape) == 2 else math.prod(self.shape[1:])
            return 0.0, fan_in**-0.5
        is_gain = ("norm" in self.name and self.name.endswith("weight")) or "gamma" in self.name
        return (1.0, 0.05) if is_gain else (0.0, 0.02)


class Layout:
    """Which weights a file holds, and where; graphs of one component share them."""

    def __init__(self) -> None:
        self.files: dict[str, dict[Key, Weight]] = {}

    def place(self, graph: ir.Model) -> None:
        """Change the graph's type, and let its weights point to their new places."""
        stored = {
            name: value.const_value
            for name, value in graph.graph.initializers.items()
            if isinstance(value.const_value, ir.ExternalTensor)
        }
        retype(graph, PRECISION)
        for name, tensor in stored.items():
            value = graph.graph.initializers[name]
            value.const_value = self._placed(name, tensor, value.dtype)

    def _placed(self, name: str, tensor: ir.ExternalTensor, dtype: Any) -> ir.ExternalTensor:
        location, shape = str(tensor.location), tuple(tensor.shape.numpy())
        weights = self.files.setdefault(location, {})
        key = (location, tensor.offset or 0)
        if key not in weights:
            end = max((each.offset + each.length for each in weights.values()), default=0)
            start = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            weights[key] = Weight(name, shape, dtype, start)
        weight = weights[key]
        if weight.dtype != dtype:
            raise SystemExit(f"{name}: {dtype} here and {weight.dtype} in another graph")
        return ir.ExternalTensor(
            location, weight.offset, weight.length, dtype, shape=ir.Shape(shape), name=name
        )


def slices(layout: Layout) -> Iterator[tuple[str, Weight, int, int]]:
    for location, weights in layout.files.items():
        for weight in weights.values():
            for start in range(0, weight.count, SLICE_VALUES):
                yield location, weight, start, min(SLICE_VALUES, weight.count - start)


def fill(folder: Path, layout: Layout, seed: int) -> None:
    files = {
        location: os.open(folder / location, os.O_RDWR | os.O_CREAT, 0o644)
        for location in layout.files
    }

    def draw(job: tuple[int, tuple[str, Weight, int, int]]) -> None:
        number, (location, weight, start, count) = job
        generator = np.random.Generator(np.random.SFC64([seed, number]))
        values = generator.standard_normal(count, np.float32)
        mean, deviation = weight.mean_and_deviation
        values *= np.float32(deviation)
        values += np.float32(mean)
        stored = as_stored(values, weight.dtype)
        place = weight.offset + start * weight.item_bytes
        if os.pwrite(files[location], stored.data.cast("B"), place) != stored.nbytes:
            raise SystemExit(f"{folder / location}: the disk is full")

    try:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(draw, enumerate(slices(layout))))
    finally:
        for file in files.values():
            os.close(file)


def as_stored(values: Any, dtype: ir.DataType) -> Any:
    if dtype == ir.DataType.BFLOAT16:
        # Rounds to nearest; plain integers, because threads convert ml_dtypes one at a time.
        return ((values.view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)).astype(np.uint16)
    # As bytes: types of 8 bits have no buffers of their own.
    return values.astype(dtype.numpy(), copy=False).view(np.uint8)


def write_export(graphs: Path, only: Sequence[str] | None, folder: Path, seed: int) -> ExportRecord:
    record = read_export(graphs)
    names = [name for name in record.graphs if only is None or name in only]
    layout, infos = Layout(), {}
    for name in names:
        model = ir.load(graphs / f"{name}.onnx")
        layout.place(model)
        infos[name] = graph_info(model)
        ir.save(model, folder / f"{name}.onnx")
    fill(folder, layout, seed)
    if "text" in names:
        shutil.copyfile(graphs / TOKENIZER_NAME, folder / TOKENIZER_NAME)
    paths = sorted(folder.iterdir())
    with ThreadPoolExecutor() as pool:
        hashes = dict(zip([path.name for path in paths], pool.map(sha256_file, paths), strict=True))
    random = dict.fromkeys(record.checkpoints, f"random weights, seed {seed}")
    written = replace(
        record, precision=PRECISION.name, graphs=infos, files=hashes, checkpoints=random
    )
    (folder / RECORD_NAME).write_text(written.to_json(), encoding="utf-8")
    return written


def main() -> None:
    options = parser(__doc__, out=False)
    options.add_argument("graphs", type=Path, metavar="GRAPHS")
    options.add_argument("--out", type=Path, required=True, metavar="BUNDLE")
    options.add_argument("--precision", default="bf16")
    options.add_argument("--gpu", help="such as sm90; without it, a bundle for a CPU")
    options.add_argument("--only", help="graphs, by name and comma; all without it")
    options.add_argument("--scratch", type=Path, help="where the export lies meanwhile")
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    started, only = time.monotonic(), chosen.only.split(",") if chosen.only else None
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=chosen.scratch or chosen.out.parent) as scratch:
        record = write_export(chosen.graphs, only, Path(scratch), chosen.seed)
        size = sum(path.stat().st_size for path in Path(scratch).iterdir())
        print(f"{', '.join(record.graphs)}: {size / 1e9:.1f} GB, {_since(started)}", flush=True)
        build(Path(scratch), chosen.out, chosen.precision, options=BuildOptions(gpu=chosen.gpu))
    print(f"{chosen.out}: built, {_since(started)}")


def _since(started: float) -> str:
    return f"{time.monotonic() - started:.1f} s"


if __name__ == "__main__":
    main()
