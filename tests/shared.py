"""Models that many tests read and that take seconds to make: exports, calibrations, bundles.

Each is made once in a run, by whichever process asks first. A whole run in several workers makes
the long ones before its tests, so that no worker waits while another traces a graph.
"""

import fcntl
import multiprocessing
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from longlive_trt.configs import ModelConfig, load_config
from longlive_trt.configs.loader import configure
from longlive_trt.precision import precision_named

DATA = Path(__file__).parent / "data"
GOLDEN = {
    "name": "golden-a",
    "transformer": {
        "dim": 256,
        "heads": 2,
        "layers": 2,
        "ffn_dim": 512,
        "text_len": 16,
        "text_dim": 64,
    },
    "latent": {"height": 8, "width": 12},
}
_MINI = {"layers": 2, "ffn_dim": 48, "freq_dim": 16, "text_len": 5, "text_dim": 12}
MINIS: dict[str, dict[str, Any]] = {
    # 2 x 3 tokens a frame, 12 channels a head.
    "relative": {
        "name": "mini-relative",
        "transformer": {"dim": 36, "heads": 3, **_MINI},
        "latent": {"height": 4, "width": 6},
        "rollout": {"rope": "relative"},
    },
    # 3 x 5 tokens a frame, 64 channels a head.
    "absolute": {
        "name": "mini-absolute",
        "transformer": {"dim": 128, "heads": 2, **_MINI},
        "latent": {"height": 6, "width": 10},
        "rollout": {"rope": "absolute"},
    },
}
MINI_SEED = 3
# Its tests read the graphs of a step, and how they are rewritten.
_STEP = {"layers": 3, "ffn_dim": 48, "freq_dim": 16, "text_len": 5, "text_dim": 12}
STEPS: dict[str, dict[str, Any]] = {
    # 3 x 5 tokens a frame, heads of 64.
    rope: {
        "name": f"small-{rope}",
        "transformer": {"dim": 128, "heads": 2, **_STEP},
        "latent": {"height": 6, "width": 10},
        "rollout": {"rope": rope},
    }
    for rope in ("relative", "absolute")
}
EIGHT_BITS: dict[str, dict[str, Any]] = {
    rope: {
        "name": f"gpu8-{rope}",
        "transformer": {
            "dim": 256,
            "heads": 2,
            "layers": 1,
            "ffn_dim": 512,
            "freq_dim": 32,
            "text_len": 8,
            "text_dim": 48,
        },
        "latent": {"height": 4, "width": 4},
        "rollout": {"rope": rope, "window_frames": 9},
    }
    for rope in ("relative", "absolute")
}
SMALL_VAE = {
    "name": "small-vae",
    "latent": {"height": 4, "width": 6},
    "vae": {"dim": 16, "multipliers": [1, 1, 1], "res_blocks": 1, "temporal_upsample": [True] * 2},
}
CALIBRATED = {
    "name": "calibrated-small",
    # Two heads of 64: TensorRT fuses such attention.
    "transformer": {
        "dim": 128,
        "heads": 2,
        "layers": 1,
        "ffn_dim": 256,
        "freq_dim": 32,
        "text_len": 8,
        "text_dim": 48,
    },
    "latent": {"height": 4, "width": 4},
    "rollout": {"window_frames": 9},
}
CALIBRATED_SEED = 5


def tiny_config() -> ModelConfig:
    """The shipped model ``tiny``, with fewer layers in its VAE and its text encoder."""
    vae = "vae={dim: 16, multipliers: [1, 1, 2], res_blocks: 1, temporal_upsample: [true, true]}"
    return load_config("tiny", overrides=[vae, "text_encoder.layers=1"])


class Shared:
    """The models of a run by their names, in a folder that its processes share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str) -> Path:
        return self.once(name, partial(RECIPES[name], self))

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        path = self.root / name
        with (self.root / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                make(path)
        return path


Recipe = Callable[[Shared, Path], object]


def export_model(config: ModelConfig, path: Path, precision: str = "fp32", **options: Any) -> None:
    """Options are the sources of weights, and ``check``. No encoder, unless it is asked for."""
    from longlive_trt.export.components import Sources
    from longlive_trt.export.exporter import export

    check, sources = options.pop("check", False), Sources(**{"encoder": False, **options})
    export(config, sources, path, precision_named(precision), check=check)


def build_model(exported: Path, path: Path, precision: str) -> None:
    from longlive_trt.engines.build import build

    build(exported, path, precision)


def _of_random_weights(values: dict[str, Any], seed: int, precision: str = "fp32") -> Recipe:
    def make(_: Shared, path: Path) -> None:
        export_model(configure(values, origin="shared"), path, precision, random_seed=seed)

    return make


def _bundle_of(export: str, precision: str = "fp32") -> Recipe:
    return lambda shared, path: build_model(shared(export), path, precision)


def _small_vae_weights(_: Shared, path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from longlive_trt.export.models.vae import VaeDecoder

    vae = configure(SMALL_VAE, origin="shared").vae
    assert vae is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        save_file(VaeDecoder(vae).state_dict(), path)


def _small_vae_export(shared: Shared, path: Path) -> None:
    config = configure(SMALL_VAE, origin="shared")
    export_model(config, path, vae=shared("small-vae.safetensors"))


def _in_fp8_by_the_command(shared: Shared, path: Path) -> None:
    from longlive_trt.calibration.prompts import shipped_prompts
    from longlive_trt.cli import main

    prompts = path.with_name("two-prompts.txt")
    prompts.write_text("\n".join(shipped_prompts()[:2]))
    options = ("--precision", "fp8", "--prompts", prompts, "--no-check", "--out", path)
    arguments = ("calibrate", "--onnx", shared("calibration-export"), *options)
    assert main([str(argument) for argument in arguments]) == 0


def _tiny_decoder_weights(_: Shared, path: Path) -> None:
    from safetensors.torch import save_file

    from tests.export.models.test_taehv import random_decoder

    save_file(random_decoder(5).state_dict(), path)


def _tiny_decoder_export(shared: Shared, path: Path) -> None:
    """As a user of the file alone makes it, for latents of no whole number of patches."""
    from longlive_trt.cli import main

    size = ("--set", "latent.height=3", "--set", "latent.width=5")
    checkpoint = shared("tiny-decoder.safetensors")
    arguments = ("export", "--config", "longlive-1.3b", *size, "--vae", checkpoint, "--out", path)
    assert main([str(argument) for argument in arguments]) == 0


def _narrow_decoder_export(_: Shared, path: Path) -> None:
    """Wan's own decoder with few channels, as LightVAE is."""
    import torch
    from safetensors.torch import save_file

    from longlive_trt.cli import main
    from longlive_trt.configs import VaeConfig
    from longlive_trt.export.models.vae import VaeDecoder

    checkpoint = path.with_name("narrow-decoder.safetensors")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        save_file(VaeDecoder(VaeConfig(dim=8)).state_dict(), checkpoint)
    sizes = ("vae.dim=8", "latent.height=4", "latent.width=6")
    options = [part for size in sizes for part in ("--set", size)]
    source = ("export", "--config", "longlive-1.3b", *options, "--vae", checkpoint)
    assert main([str(argument) for argument in (*source, "--no-check", "--out", path)]) == 0


def _calibration_of(export: str) -> Recipe:
    def make(shared: Shared, path: Path) -> None:
        from longlive_trt.calibration.calibration_file import FILE_NAME, save_calibration
        from longlive_trt.calibration.calibrator import CalibrationRequest, calibrate
        from longlive_trt.calibration.folders import SourceExport
        from longlive_trt.calibration.prompts import shipped_prompts
        from longlive_trt.calibration.recipes import RECIPES
        from longlive_trt.calibration.texts import SyntheticTexts

        source = SourceExport.open(shared(export))
        request = CalibrationRequest(RECIPES["fp8"], tuple(shipped_prompts()[:2]), blocks=2)
        config, progress = source.config, path.with_name(f"{path.name}-progress")
        texts = SyntheticTexts(config)
        calibration = calibrate(config, source.transformer(), request, texts, progress)
        path.mkdir()
        save_calibration(calibration, path / FILE_NAME)

    return make


def _relative_in_integers(shared: Shared, path: Path) -> None:
    """With self-attention in int8, of keys that are turned in every pass; compared with torch."""
    from longlive_trt.calibration.calibration_file import load_calibration
    from longlive_trt.calibration.folders import SourceExport, write_quantized
    from longlive_trt.calibration.recipes import INT8, Extras

    calibration = load_calibration(shared("gpu8-relative-calibration"))
    source, extras = SourceExport.open(shared("gpu8-relative")), Extras(attention=INT8)
    result = write_quantized(source, calibration, path, extras=extras)
    assert all(check.error is not None and check.error < 5e-3 for check in result.checks)


def _golden_export(_: Shared, path: Path) -> None:
    """Prompts come encoded, as no text encoder belongs to this transformer."""
    config = configure(GOLDEN, origin="shared")
    checkpoint = DATA / "transformer" / "transformer.safetensors"
    export_model(config, path, check=True, transformer=checkpoint)


def _golden_vae_export(_: Shared, path: Path) -> None:
    """Not compared with torch: the tests compare with recorded frames."""
    from safetensors.numpy import load_file

    recorded = load_file(DATA / "vae" / "decode.safetensors")
    vae = {"dim": 16, **{key: recorded[key].tolist() for key in ("mean", "std")}}
    values = {"name": "golden-vae", "latent": {"height": 4, "width": 6}, "vae": vae}
    config = configure(values, origin="shared")
    export_model(config, path, vae=DATA / "vae" / "vae.safetensors")


RECIPES: dict[str, Recipe] = {
    "tiny-export": lambda _, path: export_model(tiny_config(), path, random_seed=1),
    "tiny-bundle": _bundle_of("tiny-export"),
    "tiny-decoder.safetensors": _tiny_decoder_weights,
    "tiny-decoder-export": _tiny_decoder_export,
    "narrow-decoder-export": _narrow_decoder_export,
    "tiny-decoder-fp32": _bundle_of("tiny-decoder-export"),
    "small-vae.safetensors": _small_vae_weights,
    "small-vae-export": _small_vae_export,
    "small-vae-fp32": _bundle_of("small-vae-export"),
    "golden-export": _golden_export,
    **{
        f"golden-{precision}": _bundle_of("golden-export", precision)
        for precision in ("fp32", "fp16")
    },
    "golden-vae-export": _golden_vae_export,
    "golden-vae-fp32": _bundle_of("golden-vae-export"),
    **{f"{values['name']}-export": _of_random_weights(values, 5) for values in STEPS.values()},
    **{values["name"]: _of_random_weights(values, 4) for values in EIGHT_BITS.values()},
    **{
        f"{values['name']}-calibration": _calibration_of(values["name"])
        for values in EIGHT_BITS.values()
    },
    "gpu8-relative-integers": _relative_in_integers,
    "gpu8-relative-integers-fp32": _bundle_of("gpu8-relative-integers"),
    "calibration-export": _of_random_weights(CALIBRATED, CALIBRATED_SEED, "fp16"),
    "command-fp8": _in_fp8_by_the_command,
    **{
        f"mini-{rope}-export": _of_random_weights(values, MINI_SEED)
        for rope, values in MINIS.items()
    },
    **{f"mini-{rope}": _bundle_of(f"mini-{rope}-export") for rope in MINIS},
}
# The longest first.
PREPARED = (
    *("tiny-bundle", "command-fp8", "gpu8-absolute-calibration", "small-vae-fp32"),
    *("small-relative-export", "small-absolute-export", "mini-relative", "mini-absolute"),
    *("tiny-decoder-fp32", "golden-fp32"),
)


def prepare(root: Path, processes: int, names: Sequence[str] = PREPARED) -> None:
    """What fails here is made again, and reported, by the test that asks for it."""
    root.mkdir(exist_ok=True)
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawned, initializer=_as_a_worker) as pool:
        for attempt in [pool.submit(Shared(root), name) for name in names]:
            attempt.exception()


def _as_a_worker() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    warnings.simplefilter("error")
