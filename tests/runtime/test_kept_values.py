"""Values that lie transposed in the cache: the same cache as where they lie by token."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from longlive_trt import contract
from longlive_trt.basics import Array
from longlive_trt.configs.loader import configure
from longlive_trt.engines.base import TensorSpec
from longlive_trt.plugins.attention.value_layout import VALUE_GROUP, transposed_values
from longlive_trt.plugins.cuda.streams import Gpu
from longlive_trt.runtime.memory.base import HostMemory, Memory
from longlive_trt.runtime.memory.cuda import CudaMemory
from longlive_trt.runtime.ring import Ring, RingLayout
from longlive_trt.runtime.transformer import Level, TransformerPasses
from tests.fakes.cuda import FakeCuda
from tests.fakes.engines import FakeCudaEngine, put_in_place
from tests.shared import MINIS

CONFIG = configure(MINIS["absolute"], origin="test")
SIZES, TOKENS = CONFIG.transformer, CONFIG.tokens_per_frame
FLOAT, FLOAT8 = np.dtype(np.float32), np.dtype(ml_dtypes.float8_e4m3fn)
LAYOUT = RingLayout.of(CONFIG, 30)
LAYERS = 5
"""So many that copies are captured."""
SMALL = Level(CONFIG.rollout.steps, RingLayout(3, 3, 9, False, False, False))


class Step:
    """A graph whose keys and values tell which frame and token they are of."""

    name = "step"

    def __init__(self, *, transposed: bool) -> None:
        self.transposed = transposed
        self.bound: list[Mapping[str, Any]] = []
        latents = ("batch", "frames", *CONFIG.latent_shape)
        plain = {
            **dict.fromkeys(("latents", "noise"), (latents, FLOAT)),
            **dict.fromkeys(contract.LEVEL_INPUTS, ((1,), FLOAT)),
            "frame_index": (("frames",), np.dtype(np.int64)),
        }
        text = ("batch", SIZES.text_len, SIZES.heads, SIZES.head_dim)
        self.inputs = {
            **{name: TensorSpec(name, dtype, shape) for name, (shape, dtype) in plain.items()},
            **self._kept("k_cache", "v_cache", "cache_frames"),
            **{name: TensorSpec(name, FLOAT, text) for name in ("context_k.0", "context_v.0")},
        }
        self.outputs = {
            "latents_next": TensorSpec("latents_next", FLOAT, latents),
            **self._kept("k_new", "v_new", "frames"),
        }

    def _kept(self, keys: str, values: str, frames: str) -> dict[str, TensorSpec]:
        shape = ("batch", f"{TOKENS}*{frames}", SIZES.heads, SIZES.head_dim)
        lying = contract.transposed(shape, VALUE_GROUP) if self.transposed else shape
        specs = [TensorSpec(f"{keys}.{layer}", FLOAT, shape) for layer in range(LAYERS)]
        specs += [TensorSpec(f"{values}.{layer}", FLOAT8, lying) for layer in range(LAYERS)]
        return {spec.name: spec for spec in specs}

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Any:
        self.bound.append(inputs)
        step = self

        class Binding:
            def run(self) -> None:
                for name, array in outputs.items():
                    stem, _, layer = name.rpartition(".")
                    made = step.made(inputs["frame_index"], int(layer or 0))
                    if stem == contract.V_NEW:
                        array[...] = transposed_values(made) if step.transposed else made
                    elif stem == contract.K_NEW:
                        array[...] = made.astype(np.float32)

        return Binding()

    def made(self, frames: Array, layer: int) -> Array:
        count = len(frames) * TOKENS
        codes = np.arange(count * SIZES.heads * SIZES.head_dim).reshape(
            1, count, SIZES.heads, SIZES.head_dim
        )
        codes = (codes * (7 + layer) + np.repeat(frames, TOKENS)[None, :, None, None] * 31) % 127
        return codes.astype(np.uint8).view(FLOAT8)

    def close(self) -> None: ...


MakeMemory = Callable[[], tuple[Memory, Callable[[Step], Any]]]


@pytest.fixture(params=["host", "gpu"])
def place(
    request: pytest.FixtureRequest,
    fake_cuda: Callable[..., FakeCuda],
    monkeypatch: pytest.MonkeyPatch,
) -> MakeMemory:
    if request.param == "host":
        return lambda: (HostMemory(), lambda step: step)
    cuda = fake_cuda()
    put_in_place(cuda, monkeypatch)

    def make() -> tuple[Memory, Callable[[Step], Any]]:
        stream = Gpu().stream()
        return CudaMemory(stream), lambda step: FakeCudaEngine(
            cuda, Path("step.onnx"), stream, inner=step
        )

    return make


def remembered(passes: TransformerPasses, blocks: int) -> dict[str, Array]:
    """The cache after so many blocks, of which the fourth takes a prompt."""
    ring, latents = Ring(LAYOUT), np.zeros((1, 3, *CONFIG.latent_shape), np.float32)
    for block in range(blocks):
        plan = ring.block_plan()
        passes.give(plan, latents)
        passes.remember(plan)
        ring = ring.after_block()
        if block == 3:
            again = ring.recache_plan()
            given = np.zeros((1, len(again.frames), *CONFIG.latent_shape), np.float32)
            passes.recache(again, given)
            ring = ring.after_recache()
    return passes.saved()


@pytest.mark.parametrize("blocks", [1, 3, 5, 7])
def test_the_cache_is_the_same_by_token(place: MakeMemory, blocks: int) -> None:
    caches = []
    for transposed in (False, True):
        memory, engine = place()
        passes = TransformerPasses(
            engine(Step(transposed=transposed)), CONFIG, LAYOUT, 1, memory=memory
        )
        caches.append(remembered(passes, blocks))
        memory.close()
    by_token, lying = caches
    assert by_token.keys() == lying.keys()
    for name, cache in by_token.items():
        assert cache.any()
        assert lying[name].shape == cache.shape
        assert np.ascontiguousarray(lying[name]).tobytes() == cache.tobytes(), name


def test_what_was_saved_is_restored(place: MakeMemory) -> None:
    memory, engine = place()
    passes, others = (
        TransformerPasses(engine(Step(transposed=True)), CONFIG, LAYOUT, 1, memory=memory)
        for _ in range(2)
    )
    saved = remembered(passes, 5)
    others.restore(saved)
    for name, cache in others.saved().items():
        assert np.array_equal(cache, saved[name])
    memory.close()


def test_a_smaller_window_reads_values_where_they_lie() -> None:
    step = Step(transposed=True)
    passes = TransformerPasses(step, CONFIG, LAYOUT, 1, levels=(SMALL,))
    slots = {bound["k_cache.0"].shape[1] // TOKENS for bound in step.bound}
    assert slots == {LAYOUT.slots, SMALL.layout.slots}
    assert all(bound["v_cache.0"] is passes.cache["v_cache.0"] for bound in step.bound)
