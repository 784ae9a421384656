"""One block after the other through a bundle's decoder, as a session decodes them.

    python -m benchmarks.decoder --gpu sm90 --out docs/results/taehv_h200.json
    python -m benchmarks.decoder --bundle BUNDLE --decoder light

Without a bundle, one of the tiny decoder alone is made on the way: 480x832, random weights. Times
are of a block's latents on the device to its pictures on the host.
"""

import tempfile
import time
from pathlib import Path

from benchmarks.harness import command, parser, percentiles, rounded, seeded_noise, write_report
from longlive_trt.engines.build import build
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.engines.compiler import BuildOptions
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.decoding.choice import decoder_named
from longlive_trt.runtime.memory.base import Buffer, HostMemory
from longlive_trt.runtime.memory.cuda import CudaMemory

WARM_UP = 5


def tiny_bundle(folder: Path, gpu: str | None, overrides: list[str]) -> Bundle:
    from longlive_trt.configs import load_config
    from longlive_trt.export.checkpoints.opening import random_weights
    from longlive_trt.export.components import Component, expected_shapes, vae_specs
    from longlive_trt.export.exporter import export_components
    from longlive_trt.export.models.decoders import decoder_of
    from longlive_trt.precision import precision_named

    config = load_config("longlive-1.3b", overrides=["vae.kind=taehv", *overrides])
    vae = config.vae
    assert vae is not None
    weights = random_weights(expected_shapes(lambda: decoder_of(vae)), 0)
    part = Component("vae", weights, vae_specs(config))
    export_components(config, [part], folder / "onnx", precision_named("fp32"), check=False)
    precision = "fp32" if gpu is None else "bf16"
    build(folder / "onnx", folder / "bundle", precision, options=BuildOptions(gpu=gpu))
    return open_bundle(folder / "bundle")


def measure(bundle: Bundle, name: str | None, blocks: int) -> dict[str, object]:
    config, decoder = bundle.config, decoder_named(bundle, name)
    noise, times_ms = seeded_noise(config), []
    with Engines(bundle) as engines:
        memory = CudaMemory(engines.stream("transformer")) if engines.on_gpu else HostMemory()
        decoding = engines.decoder(1, decoder.name)
        latents = noise.block(0).initial
        graph = bundle.manifest.graphs[decoder.graphs[1]]
        dtype = engines.get(decoder.graphs[1], "decoding").inputs[graph.inputs[0].name].dtype
        place = memory.reserve({"block": Buffer(latents.shape, dtype)}, "a block's latents")
        for index in range(WARM_UP + blocks):
            memory.write(place["block"], noise.block(index).initial.astype(dtype))
            memory.settle()
            started = time.perf_counter()
            decoding.start(place["block"]).result()
            times_ms.append(1e3 * (time.perf_counter() - started))
        decoding.close()
        memory.close()
        gpu = engines.gpu.facts.name if engines.on_gpu else None
    counted = times_ms[WARM_UP:]
    return {
        "command": command(),
        "gpu": gpu,
        "decoder": decoder.config.kind,
        "video_frames": config.rollout.frames_per_block * config.temporal_factor,
        "size": list(config.video_size or ()),
        "block_ms": {**percentiles(counted), "series": rounded(counted)},
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--bundle", type=Path)
    options.add_argument("--decoder", choices=("full", "light"))
    options.add_argument("--gpu", metavar="smNN", help="what to make a bundle for")
    options.add_argument("--blocks", type=int, default=100)
    options.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE"
    )
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = (
            open_bundle(given.bundle)
            if given.bundle
            else tiny_bundle(Path(scratch), given.gpu, given.overrides)
        )
        report = measure(bundle, given.decoder, given.blocks)
    write_report(report, given.out)
    times = report["block_ms"]
    assert isinstance(times, dict)
    print(f"{report['decoder']}: a block of {report['video_frames']} frames in {times['p50']} ms")


if __name__ == "__main__":
    main()
