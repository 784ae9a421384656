"""What a decoder takes: whole blocks, frame by frame, and in tiles; counted, and measured on a GPU.

    python -m benchmarks.decoder_memory BUNDLE --counted
    python -m benchmarks.decoder_memory SMALL LARGE --out docs/results/tiles_h200.json

Bundles hold graphs of tiles (``vae.tiles``). Counted is what a decoder's plan reserves, and twelve
of its widest activations: the budget that a session on a GPU is refused by. Measured is by how much
the GPU's free memory falls from before engines are loaded to after so many blocks, each way in a
process of its own, and how long a block's latents take to become pictures on the host.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.harness import command, parser, percentiles, rounded, write_report
from longlive_trt.configs import VaeConfig
from longlive_trt.contract import BASE_GRAPHS, FEATURES, FRAMES, LATENTS, PIXELS, TILE_GRAPHS
from longlive_trt.engines.base import specs_of
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.renewal import renewed_in_place
from longlive_trt.runtime.assembly import WHOLE_BLOCKS, Engines
from longlive_trt.runtime.decoding.choice import BundledDecoder, decoder_named
from longlive_trt.runtime.decoding.cuda import CudaDecoder, DecodingStreams
from longlive_trt.runtime.decoding.pieces import Pieces, TiledPieces, WholePieces
from longlive_trt.runtime.decoding.tiled import Part
from longlive_trt.runtime.decoding.tiling import PartSpecs, TilePlan
from longlive_trt.runtime.memory.base import Buffer, Memory, buffers, size_bytes
from longlive_trt.runtime.memory.budget import Way, decoding_bytes
from longlive_trt.runtime.memory.cuda import CudaMemory

WAYS: tuple[Way, ...] = get_args(Way)
COMPARED_BLOCKS, WARM_UP = 2, 2
LIMIT_S = 120
"""Of one way."""
ACTIVATIONS = 12
"""That are alive together, each as large as the widest."""


# ---- counted ---------------------------------------------------------------------------------


def counted(bundle: Bundle) -> dict[str, float]:
    """GB by way of decoding."""
    decoder, config = decoder_named(bundle, None), bundle.config
    if bundle.manifest.engine.target != "cpu":
        return {way: _gb(decoding_bytes(bundle, config, decoder, 1, way)) for way in WAYS}
    plan = _plan(bundle, decoder)
    whole = _part(bundle, decoder.graphs)
    base, tile = (_part(bundle, parts[decoder.component]) for parts in (BASE_GRAPHS, TILE_GRAPHS))
    once = list(buffers(whole.histories, **plan.sizes).values())
    twice = [b for b in buffers(whole.histories, **plan.sizes) if b not in whole.in_place]
    assert not twice
    narrowest = _values(plan.of_frame(whole.following[PIXELS])) * plan.vae.dim // 3
    in_tile = _values(plan.of_tile(tile.following[PIXELS])) * plan.vae.dim // 3
    features = _values(plan.of_frame(base.following[FEATURES]))
    item_bytes = once[-1].dtype.itemsize
    return {
        "frames": _gb(size_bytes(once) + ACTIVATIONS * item_bytes * narrowest),
        "tiles": _gb(
            plan.size_bytes(base, tile, FRAMES) + ACTIVATIONS * item_bytes * (in_tile + features)
        ),
    }


def _plan(bundle: Bundle, decoder: BundledDecoder) -> TilePlan:
    assert isinstance(decoder.config, VaeConfig)
    return TilePlan(decoder.config, 1, bundle.config.latent.size)


def _part(bundle: Bundle, graphs: tuple[str, str]) -> PartSpecs:
    infos = (bundle.manifest.graphs[graph] for graph in graphs)
    first, following = (specs_of((*info.inputs, *info.outputs)) for info in infos)
    return PartSpecs(first, following, renewed_in_place(bundle, graphs[1]))


def _values(buffer: Buffer) -> int:
    return prod(buffer.shape)


def _gb(size: int) -> float:
    return round(size / 1e9, 3)


# ---- measured --------------------------------------------------------------------------------


def open_pieces(engines: Engines, way: Way) -> Any:
    """As a session decodes; frame by frame also where it would in tiles."""
    bundle = engines.bundle
    decoder, size = decoder_named(bundle, None), bundle.config.latent.size

    def part(graphs: tuple[str, str]) -> Part:
        first, following = (engines.get(graph, "decoding") for graph in graphs)
        return Part(first, following, renewed_in_place(bundle, graphs[1]))

    def pieces(memory: Memory) -> Pieces:
        if way == "tiles":
            assert isinstance(decoder.config, VaeConfig)
            base, tile = (part(parts[decoder.component]) for parts in (BASE_GRAPHS, TILE_GRAPHS))
            return TiledPieces(base, tile, decoder.config, memory, 1, latents=size)
        whole, blocks = part(decoder.graphs), None
        if way == "blocks":
            blocks = engines.get(decoder.graphs[1], "decoding", WHOLE_BLOCKS)
        return WholePieces(
            *(whole.first, whole.following, memory, 1),
            blocks=blocks,
            latents=size,
            in_place=whole.in_place,
        )

    return pieces


def measure(bundle: Bundle, way: Way, blocks: int, pictures: Path) -> dict[str, Any]:
    """In a process that has used no GPU before."""
    config, random = bundle.config, np.random.default_rng(0)
    frames, times_ms, shown = config.rollout.frames_per_block, [], []
    shape = (1, frames, *config.latent_shape)
    with Engines(bundle, "cuda") as engines:
        stream = partial(engines.stream)
        streams = DecodingStreams(*map(stream, ("transformer", "decoding", "leaving")))
        memory, gpu = CudaMemory(streams.transformer), engines.gpu
        free_bytes = gpu.memory().free_bytes
        decoder = CudaDecoder(open_pieces(engines, way), 1, frames, streams)
        graph = bundle.manifest.graphs[decoder_named(bundle, None).graphs[1]]
        dtype = specs_of(graph.inputs)[LATENTS].dtype
        place = memory.reserve({"block": Buffer(shape, dtype)}, "a block's latents")["block"]
        for block in range(WARM_UP + blocks):
            memory.write(place, random.standard_normal(shape, np.float32).astype(dtype))
            memory.settle()
            started = time.perf_counter()
            made = decoder.start(place).result()
            times_ms.append(1e3 * (time.perf_counter() - started))
            if block < COMPARED_BLOCKS:
                shown.append(made)
        taken_bytes = free_bytes - gpu.memory().free_bytes
        decoder.close()
        memory.close()
        np.save(pictures, np.concatenate(shown, axis=1))
        counted_ms = times_ms[WARM_UP:]
        return {
            "gpu": gpu.facts.name,
            "taken_gb": _gb(taken_bytes),
            "block_ms": {**percentiles(counted_ms), "series": rounded(counted_ms)},
        }


def measured(path: Path, blocks: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for way in WAYS:
            found[way] = _in_a_process(path, way, blocks, folder)
        pictures = {p.stem: np.load(p).astype(np.int16) for p in folder.glob("*.npy")}
    for way, other in (("frames", "blocks"), ("tiles", "blocks"), ("tiles", "frames")):
        if {way, other} <= pictures.keys():
            steps = np.abs(pictures[way] - pictures[other])
            differing = float(f"{(steps > 0).mean():.3g}")
            found[way][f"against {other}"] = {"largest_step": int(steps.max()), "share": differing}
    return found


def _in_a_process(path: Path, way: Way, blocks: int, folder: Path) -> dict[str, Any]:
    values, pictures = folder / f"{way}.json", folder / f"{way}.npy"
    given = [str(path), "--way", way, "--blocks", str(blocks), "--child", values, pictures]
    module = [sys.executable, "-m", "benchmarks.decoder_memory", *map(str, given)]
    try:
        subprocess.run(module, check=True, timeout=LIMIT_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return {"failed": str(error)[-300:]}
    result: dict[str, Any] = json.loads(values.read_text())
    return result


def report_of(paths: list[Path], blocks: int, *, measures: bool) -> dict[str, Any]:
    report: dict[str, Any] = {"command": command(), "bundles": []}
    for path in paths:
        bundle = open_bundle(path)
        entry: dict[str, Any] = {
            "size": list(bundle.config.video_size or ()),
            "engine": f"{bundle.manifest.engine.kind} for {bundle.manifest.engine.target}",
            "counted_gb": counted(bundle),
        }
        if measures:
            entry["measured"] = measured(path, blocks)
        report["bundles"].append(entry)
    return report


def main() -> None:
    options = parser(__doc__)
    options.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    options.add_argument("--counted", action="store_true", help="measure nothing")
    options.add_argument("--blocks", type=int, default=20)
    options.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options.add_argument("--child", type=Path, nargs=2, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child is not None:
        (path,), (values, pictures) = given.bundles, given.child
        values.write_text(json.dumps(measure(open_bundle(path), given.way, given.blocks, pictures)))
        return
    report = report_of(given.bundles, given.blocks, measures=not given.counted)
    write_report(report, given.out)
    for entry in report["bundles"]:
        print(json.dumps(entry["size"]), entry["engine"], json.dumps(entry["counted_gb"]))
        for way, values in entry.get("measured", {}).items():
            print(f"  {way}: {json.dumps({k: v for k, v in values.items() if k != 'block_ms'})}")
            print(f"    {values.get('block_ms', {}).get('p50')} ms a block")


if __name__ == "__main__":
    main()
