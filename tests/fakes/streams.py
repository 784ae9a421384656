"""A written decoder on a CPU: its kernels are computed with numpy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from longlive_trt.configs import ModelConfig
from tests.fakes.sessions import kernel_session


class DecoderStream:
    """Both graphs on a CPU, and the caches between calls."""

    def __init__(self, folder: Path) -> None:
        paths = (folder / f"vae_{name}.onnx" for name in ("first", "next"))
        self.first, self.following = map(kernel_session, paths)
        self.caches: dict[str, Any] = {}

    def decode(self, latents: Any) -> tuple[Any, Any]:
        graph = self.following if self.caches else self.first
        names = [output.name for output in graph.get_outputs()]
        # ONNX Runtime's Python has FP8 as values of its own only.
        feed = {"latents": ort.OrtValue.ortvalue_from_numpy(latents), **self.caches}
        results = dict(zip(names, graph.run_with_ort_values(None, feed), strict=True))
        self.caches = {
            name.replace("cache_next", "cache"): value
            for name, value in results.items()
            if name.startswith("cache_next")
        }
        return results["frames"].numpy(), results["pixels"].numpy()

    def decode_all(self, latents: Any, counts: list[int]) -> Iterator[tuple[Any, Any]]:
        for part in np.split(latents, np.cumsum(counts)[:-1], axis=1):
            yield self.decode(part)


def make_latents(config: ModelConfig, frames: int, batch: int = 1) -> Any:
    random = np.random.default_rng(0)
    return random.standard_normal((batch, frames, *config.latent_shape)).astype(np.float16)


def relative(actual: Any, expected: Any) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
