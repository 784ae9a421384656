"""Adapters that are exchanged while a video is made."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import longlive_trt as ll
from longlive_trt.adapters import open_adapter
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.engines.matrices import is_adapted
from longlive_trt.errors import CheckpointError, UsageError
from longlive_trt.export.checkpoints.lora import merge_lora, open_lora
from longlive_trt.export.checkpoints.random import RandomWeights
from longlive_trt.export.components import expected_shapes
from longlive_trt.export.models.rollout import ReferenceRollout
from longlive_trt.export.models.transformer import Transformer
from longlive_trt.loading import load
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.noise import SeededNoise
from longlive_trt.runtime.pipeline import Pipeline
from tests.fakes.cuda import FakeCuda
from tests.fakes.engines import put_in_place
from tests.shared import MINI_SEED
from tests.videos import Array, frames, latents, make, same

CAT, RANK = "a cat", 3


@pytest.fixture(scope="module")
def pipeline(one_thread: None, lora_ready_bundle: Callable[[str], Path]) -> Iterator[Pipeline]:
    with load(lora_ready_bundle("fp32")) as pipeline:
        yield pipeline


@pytest.fixture(autouse=True)
def as_built(request: pytest.FixtureRequest, in_empty_folder: Path) -> Iterator[None]:
    yield
    if "pipeline" in request.fixturenames:
        request.getfixturevalue("pipeline").use_lora()


def modules(pipeline: Pipeline) -> list[str]:
    shapes = expected_shapes(lambda: Transformer(pipeline.config.transformer))
    names = [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")]
    return [name for name in names if is_adapted(name)]


def write_adapter(
    pipeline: Pipeline, path: str, seed: int, *, size: float = 0.3, chosen: Any = None
) -> str:
    random, tensors = np.random.default_rng(seed), {}
    shapes = pipeline.engines.matrix_shapes()
    for module in modules(pipeline) if chosen is None else chosen:
        outputs, inputs = shapes[f"{module}.weight"]
        stem = f"base_model.model.{module}"
        tensors[f"{stem}.lora_A.weight"] = random.standard_normal((RANK, inputs), np.float32)
        side = size * random.standard_normal((outputs, RANK), np.float32)
        tensors[f"{stem}.lora_B.weight"] = side / np.float32(inputs**0.5)
    save_file(tensors, path, {"alpha": "6", "rank": str(RANK)})
    return path


@pytest.fixture
def adapter(pipeline: Pipeline, in_empty_folder: Path) -> str:
    return write_adapter(pipeline, "lora.safetensors", 1)


def test_every_adapted_module_is_kept_apart(pipeline: Pipeline) -> None:
    shapes = pipeline.engines.matrix_shapes()
    assert shapes.keys() == {f"{module}.weight" for module in modules(pipeline)}
    # Ten in each layer.
    assert len(shapes) == 10 * pipeline.config.transformer.layers


def test_without_an_adapter_it_is_the_bundle_that_it_would_be(
    pipeline: Pipeline, video_bundle: Path, relative_error: Callable[[object, object], float]
) -> None:
    with load(video_bundle) as plain:
        expected = make(plain, CAT, frames=15, seed=5)
    assert relative_error(make(pipeline, CAT, frames=15, seed=5)[0], expected[0]) <= 1e-5


def merged_model(pipeline: Pipeline, adapter: str | None) -> Transformer:
    """With the adapter merged as an export merges it."""
    config = pipeline.config
    base = RandomWeights(expected_shapes(lambda: Transformer(config.transformer)), MINI_SEED)
    weights = base if adapter is None else merge_lora(base, open_lora(Path(adapter)), None)
    model = Transformer(config.transformer).eval().requires_grad_(False)
    model.load_state_dict({name: weights.load(name) for name in weights.names})
    return model


@torch.no_grad()
def reference(pipeline: Pipeline, adapters: dict[int, str | None], blocks: int, seed: int) -> Array:
    """In torch; from which block on it is made with which adapter."""
    config = pipeline.config
    states = torch.from_numpy(pipeline.engines.prompt_encoder(1).states_of(CAT))
    rollout = ReferenceRollout(merged_model(pipeline, None), config, 1, 3 * blocks)
    noise = SeededNoise(seed, (1, 3, *config.latent_shape), config.rollout.noises)
    for index in range(blocks):
        if index in adapters:
            rollout.model = merged_model(pipeline, adapters[index])
            rollout.switch_prompt(states)
        drawn = noise.block(index)
        rollout.run_block(
            torch.from_numpy(drawn.initial), [torch.from_numpy(one) for one in drawn.renoise]
        )
    return torch.cat(rollout.frames, dim=1).numpy()


def test_it_is_what_an_export_with_the_adapter_makes(
    pipeline: Pipeline, adapter: str, relative_error: Callable[[object, object], float]
) -> None:
    plain, _ = make(pipeline, CAT, frames=6, seed=2)
    pipeline.use_lora(adapter)
    made, _ = make(pipeline, CAT, frames=6, seed=2)
    assert relative_error(made, reference(pipeline, {0: adapter}, 2, 2)) <= 1e-5
    assert relative_error(made, plain) > 1e-2


def test_taking_it_away_restores_every_bit_at_the_same_addresses(
    pipeline: Pipeline, adapter: str
) -> None:
    expected = make(pipeline, CAT, frames=9, seed=1)
    before = placed(pipeline)
    pipeline.use_lora(f"{adapter}:0.5")
    changed = placed(pipeline)
    pipeline.use_lora()
    after = placed(pipeline)
    assert before.keys() == changed.keys() == after.keys()
    for name, (address, values) in before.items():
        assert changed[name][0] == after[name][0] == address
        assert not np.array_equal(changed[name][1], values)
        assert np.array_equal(after[name][1], values)
    assert same(make(pipeline, CAT, frames=9, seed=1), expected)


def placed(pipeline: Pipeline) -> dict[str, tuple[int, Array]]:
    matrices = pipeline.engines._matrices
    assert matrices is not None
    return {
        name: (tensor.ctypes.data, tensor.copy())
        for part in matrices._placed.values()
        for name, tensor in part.tensors.items()
    }


def test_two_adapters_add_up_and_a_scale_is_a_factor(pipeline: Pipeline, adapter: str) -> None:
    pipeline.use_lora(adapter, adapter)
    twice, _ = make(pipeline, CAT, frames=3, seed=1)
    pipeline.use_lora(f"{adapter}:2")
    assert np.allclose(make(pipeline, CAT, frames=3, seed=1)[0], twice, atol=1e-4)
    pipeline.use_lora(f"{adapter}:0")
    nothing, _ = make(pipeline, CAT, frames=3, seed=1)
    pipeline.use_lora()
    assert np.array_equal(make(pipeline, CAT, frames=3, seed=1)[0], nothing)


def test_a_running_video_changes_over_between_two_blocks(
    pipeline: Pipeline, adapter: str, relative_error: Callable[[object, object], float]
) -> None:
    """As at a prompt switch: its past is recomputed with the new matrices."""
    plain, _ = make(pipeline, CAT, frames=3, seed=6)
    with pipeline.video(CAT, frames=12, seed=6) as video:
        blocks = [next(video)]
        pipeline.use_lora(adapter)
        blocks += [next(video), next(video)]
        pipeline.use_lora()
        blocks += video
        assert [block.prompt for block in blocks] == [CAT] * 4
    made = latents(blocks)
    assert np.array_equal(made[:, :3], plain)
    expected = reference(pipeline, {0: None, 1: adapter, 3: None}, 4, 6)
    assert relative_error(made, expected) <= 1e-5


def test_the_past_may_stay_as_it_is(pipeline: Pipeline, adapter: str) -> None:
    results = []
    for switch in ("exact", "none"):
        pipeline.use_lora()
        with pipeline.video(CAT, frames=9, seed=6) as video:
            blocks = [next(video), next(video)]
            pipeline.use_lora(adapter, switch=switch)
            results.append(latents([*blocks, next(video)]))
    assert not np.array_equal(*results)
    with pytest.raises(UsageError, match="matrices have nothing between"):
        pipeline.use_lora(switch="blend:3")


def test_a_cue_at_the_same_block_is_not_lost(pipeline: Pipeline, adapter: str) -> None:
    with pipeline.video({0: CAT, 3: "a dog"}, frames=9, seed=6) as video:
        next(video)
        pipeline.use_lora(adapter)
        assert [block.prompt for block in video] == ["a dog"] * 2


def test_states_and_checkpoints_know_their_adapters(pipeline: Pipeline, adapter: str) -> None:
    pipeline.use_lora(adapter)
    expected = make(pipeline, CAT, frames=12, seed=3)
    with pipeline.video(CAT, frames=12, seed=3) as video:
        blocks = [next(video), next(video)]
        video.save_state("state")
        there = video.checkpoint()
        later = next(video)
        pipeline.use_lora()
        other = next(video)
        video.rollback(there)
        # The way back leads to the adapter's cache, and the next block is the bundle's own.
        without = next(video)
        assert not np.array_equal(without.latents, later.latents)
        video.rollback(there)
        pipeline.use_lora(adapter)
        assert np.array_equal(next(video).latents, later.latents)
        assert other.index == later.index + 1
    said: list[str] = []
    with pipeline.video(resume="state", frames=6, notify=said.append) as video:
        blocks += video
    assert same((latents(blocks), frames(blocks)), expected)
    assert not any("LoRA" in text for text in said)
    pipeline.use_lora()
    changed, _ = make(pipeline, resume="state", frames=3, notify=said.append)
    assert sum("saved with other LoRA adapters" in text for text in said) == 1
    assert np.array_equal(changed, without.latents)


def test_the_only_open_session_may_change_its_adapters(pipeline: Pipeline, adapter: str) -> None:
    before = placed(pipeline)
    with pipeline.video(CAT, frames=15, seed=6) as video:
        expected = [next(video)]
        pipeline.use_lora(adapter)
        expected.append(next(video))
        pipeline.use_lora()
        expected += video
    with pipeline.video(CAT, frames=15, seed=6) as video:
        made = [next(video)]
        video.session.use_lora(adapter)
        made.append(next(video))
        assert len(video.made_with) == 1
        video.use_lora()
        made += video
    assert same((latents(made), frames(made)), (latents(expected), frames(expected)))
    after = placed(pipeline)
    assert all(np.array_equal(after[name][1], values) for name, (_, values) in before.items())


def test_a_session_changes_no_other_one(pipeline: Pipeline, adapter: str) -> None:
    with pipeline.video(CAT, frames=6, seed=6) as one:
        next(one)
        before = placed(pipeline)
        with pipeline.video(CAT, frames=6, seed=7) as other:
            with pytest.raises(UsageError, match=r"1 other session of this pipeline would change"):
                one.session.use_lora(adapter)
            next(other)
            assert other.made_with == ()
        after = placed(pipeline)
        assert all(np.array_equal(after[name][1], values) for name, (_, values) in before.items())
        # The other one is closed now.
        one.session.use_lora(adapter)
        next(one)
        assert len(one.made_with) == 1
    with pytest.raises(UsageError, match="the session is closed"):
        one.session.use_lora()
    with pytest.raises(UsageError, match="the video is closed"):
        one.use_lora()


def refuses(pipeline: Pipeline, problem: str, *adapters: Any, kind: Any = CheckpointError) -> None:
    before = placed(pipeline)
    with pytest.raises(kind, match=problem):
        pipeline.use_lora(*adapters)
    after = placed(pipeline)
    assert all(np.array_equal(after[name][1], values) for name, (_, values) in before.items())


def test_what_no_adapter_of_this_model_is(pipeline: Pipeline, adapter: str) -> None:
    make(pipeline, CAT, frames=3)
    (name, *_) = modules(pipeline)
    stem = f"base_model.model.{name}"

    def write(a: Array, b: Array) -> str:
        save_file({f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}, "other.safetensors")
        return "other.safetensors"

    wide = write(np.zeros((2, 48), np.float32), np.zeros((48, 2), np.float32))
    refuses(pipeline, r"made for a weight of \[48, 48\], the model's is \[36, 36\]", wide)
    both = [f"base_model.model.{name}" for name in modules(pipeline)[:2]]
    sides = {"A": np.zeros((2, 48), np.float32), "B": np.zeros((48, 2), np.float32)}
    save_file(
        {f"{one}.lora_{side}.weight": x for one in both for side, x in sides.items()},
        "all.safetensors",
    )
    with pytest.raises(CheckpointError, match="none of its 2 modules fits") as error:
        pipeline.use_lora("all.safetensors")
    assert "\n" not in str(error.value) and "[48, 48]" in str(error.value)
    nan = write(np.zeros((2, 36), np.float32), np.full((36, 2), np.nan, np.float32))
    refuses(pipeline, "holds NaN or infinite values", adapter, nan)
    save_file({"head.head.weight": np.zeros((2, 2), np.float32)}, "no.safetensors")
    refuses(pipeline, "is no usable LoRA adapter", "no.safetensors")
    Path("text.safetensors").write_text("a letter")
    refuses(pipeline, "text.safetensors: it ends inside its header", "text.safetensors")
    refuses(pipeline, "does not exist", "none.safetensors", kind=UsageError)
    torch.save({"generator_lora": {}}, "lora.pt")
    refuses(pipeline, "adapter_file lora.pt lora.safetensors", "lora.pt", kind=UsageError)
    refuses(pipeline, "scale of a LoRA is nan", f"{adapter}:nan", kind=UsageError)


def test_a_pytorch_file_is_converted(pipeline: Pipeline, adapter: str) -> None:
    from safetensors.torch import load_file

    from longlive_trt.export.checkpoints.adapter_file import convert

    stored = load_file(adapter)
    torch.save({"generator_lora": stored, "step": 3}, "lora.pt")
    convert(Path("lora.pt"), Path("made.safetensors"))
    shapes = pipeline.engines.matrix_shapes()
    ours, theirs = (open_adapter(Path(name), shapes) for name in ("made.safetensors", adapter))
    (module, *_) = ours.pairs
    # The file of the other says an alpha of twice the rank.
    change = ours.change_of(module)
    assert change is not None
    assert np.allclose(2 * change, theirs.change_of(module))


def test_bundles_that_were_not_built_for_it(video_bundle: Path, adapter: str) -> None:
    with load(video_bundle) as plain, pytest.raises(UsageError, match="without --lora-ready"):
        plain.use_lora(adapter)


@pytest.mark.exhaustive
def test_half_precision_and_what_is_beyond_its_range(
    lora_ready_bundle: Callable[[str], Path], pipeline: Pipeline, adapter: str
) -> None:
    with load(lora_ready_bundle("fp16")) as half:
        expected = make(half, CAT, frames=6, seed=1)
        half.use_lora(adapter)
        made, _ = make(half, CAT, frames=6, seed=1)
        pipeline.use_lora(adapter)
        exact, _ = make(pipeline, CAT, frames=6, seed=1)
        assert np.linalg.norm(made - exact) / np.linalg.norm(exact) < 5e-2
        half.use_lora()
        refuses(half, "beyond the range of float16; use a smaller scale", f"{adapter}:1e6")
        assert same(make(half, CAT, frames=6, seed=1), expected)


@pytest.mark.parametrize("schedule", ["lazy", pytest.param(1, marks=pytest.mark.exhaustive)])
def test_captured_passes_on_a_gpu_read_what_was_exchanged(
    lora_ready_bundle: Callable[[str], Path],
    pipeline: Pipeline,
    adapter: str,
    fake_cuda: Callable[..., FakeCuda],
    monkeypatch: pytest.MonkeyPatch,
    schedule: Any,
) -> None:
    def run(pipe: Pipeline) -> Array:
        with pipe.video(CAT, frames=18, seed=8, decode=False) as video:
            blocks = [next(video), next(video)]
            pipe.use_lora(adapter)
            blocks += [next(video), next(video)]
            pipe.use_lora()
            return latents([*blocks, *video])

    expected = run(pipeline)
    cuda = fake_cuda(schedule=schedule)
    made = put_in_place(cuda, monkeypatch)
    with Pipeline(open_bundle(lora_ready_bundle("fp32")), "cuda") as on_gpu:
        found = run(on_gpu)
    cuda.finish_all()
    assert cuda.queues.fault is None and "step" in made
    assert np.array_equal(found, expected)


def test_engines_know_nothing_of_the_places(lora_ready_bundle: Callable[[str], Path]) -> None:
    with Engines(open_bundle(lora_ready_bundle("fp32")), "cpu") as engines:
        inputs = engines.get("step", "a test").inputs
        assert not [name for name in inputs if name.startswith("transformer.")]


def test_it_is_part_of_the_public_pipeline() -> None:
    assert callable(ll.Pipeline.use_lora)
