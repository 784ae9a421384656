"""Videos that begin with somebody's picture or clip, or with latents that were kept."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.errors import UsageError
from longlive_trt.export.exported_weights import ExportedWeights
from longlive_trt.export.models.rollout import ReferenceRollout
from longlive_trt.export.models.transformer import Transformer
from longlive_trt.exports import read_export
from longlive_trt.runtime.noise import SeededNoise
from longlive_trt.runtime.pipeline import Pipeline
from tests.fakes.clips import shades, write_clip, write_picture
from tests.videos import SIZE, Array, frames, latents, make, same

pytestmark = pytest.mark.usefixtures("in_empty_folder")

CAT = "a cat"


@pytest.fixture
def kept(pipeline: Pipeline, in_empty_folder: Path) -> Callable[[int], str]:
    """The latents of so many first blocks of the video of a cat, in a file."""

    def keep(blocks: int) -> str:
        whole, _ = make(pipeline, CAT, frames=15, seed=4)
        save_file({"latents": whole[:, : 3 * blocks].copy()}, "kept.safetensors")
        return "kept.safetensors"

    return keep


@pytest.fixture
def clip(in_empty_folder: Path) -> str:
    return str(write_clip(Path("clip.mp4"), shades(21, SIZE)))


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_a_video_goes_on_from_kept_latents_bit_by_bit(
    pipeline: Pipeline, kept: Callable[[int], str], blocks: int
) -> None:
    """A video without a switch is the same, whoever made its first blocks."""
    expected = make(pipeline, CAT, frames=15, seed=4)
    start = kept(blocks)
    with pipeline.video(CAT, frames=15 - 3 * blocks, seed=4, start=start) as video:
        made = list(video)
        assert [block.index for block in made] == list(range(blocks, 5))
        assert not any(block.is_start for block in made)
    shown = 9 + 12 * (blocks - 1)
    assert np.array_equal(latents(made), expected[0][:, 3 * blocks :])
    assert np.array_equal(frames(made), expected[1][shown:])
    assert made[0].first_frame == shown


def test_the_start_can_be_shown(pipeline: Pipeline, kept: Callable[[int], str]) -> None:
    expected = make(pipeline, CAT, frames=15, seed=4)
    options = {"frames": 9, "seed": 4, "start": kept(2), "include_start": True}
    with pipeline.video(CAT, **options) as video:
        made = list(video)
        assert [block.is_start for block in made] == [True, True, False, False, False]
    assert same((latents(made), frames(made)), expected)


def test_a_clip_is_encoded_in_whole_blocks(pipeline: Pipeline, clip: str) -> None:
    """21 pictures are 6 latent frames, two blocks."""
    options = {"frames": 6, "start": clip, "include_start": True}
    with pipeline.video(CAT, **options) as video:
        made = list(video)
    assert latents(made).shape[1] == 12
    # The stand-in's latent frame is the mean color, and half of the one before.
    colors = np.array([10 + 5 * n for n in range(21)]) / 127.5 - 1
    expected, now = [], 0.0
    for group in (colors[:1], *colors[1:].reshape(5, 4)):
        now = float(group.mean()) + 0.5 * now
        expected.append(now)
    assert np.allclose(latents(made)[0, :6, 0, 0, 0], expected, atol=1e-5)


def test_a_picture_is_held_for_one_block(pipeline: Pipeline) -> None:
    write_picture(Path("p.png"), shades(1, SIZE)[0])
    write_clip(Path("still.mp4"), shades(1, SIZE) * 9)
    one, other = (make(pipeline, CAT, frames=6, start=name) for name in ("p.png", "still.mp4"))
    assert same(one, other) and one[1].shape[0] == 24


def test_what_a_clip_leaves_over_is_left_out_at_its_beginning(pipeline: Pipeline) -> None:
    said: list[str] = []
    whole, rest = shades(30, SIZE), shades(21, SIZE, first=9)
    write_clip(Path("whole.mp4"), whole)
    write_clip(Path("rest.mp4"), rest)
    made = make(pipeline, CAT, frames=3, start="whole.mp4", notify=said.append)
    assert same(made, make(pipeline, CAT, frames=3, start="rest.mp4"))
    (notice,) = [text for text in said if text.startswith("whole.mp4")]
    assert notice.endswith("as it is; the video begins with the last 21 of 30 pictures (1.31 s)")


def test_how_pictures_are_fitted_is_told(pipeline: Pipeline) -> None:
    said: list[str] = []
    write_clip(Path("c.mp4"), shades(40, (60, 200)), fps=32)
    pipeline.video(CAT, start="c.mp4", notify=said.append).close()
    assert said == [
        "c.mp4: 200 x 60, scaled to 107 x 32 and cropped to 48 x 32 around the middle; of 32 "
        "frames/s those that are shown 16 times a second; the video begins with the last 9 of 20 "
        "pictures (0.56 s)"
    ]
    write_picture(Path("p.png"), shades(1, (64, 96))[0])
    pipeline.video(CAT, start="p.png", notify=said.append).close()
    assert said[1] == (
        "p.png: 96 x 64, scaled to 48 x 32; the video begins with it, held for 9 frames (0.56 s)"
    )


def test_a_started_video_is_saved_and_goes_on(pipeline: Pipeline, clip: str) -> None:
    prompts = {0: CAT, 9: "a dog", 18: "a fox"}
    expected = make(pipeline, prompts, frames=18, seed=3, start=clip)
    with pipeline.video({0: CAT, 9: "a dog"}, frames=6, seed=3, start=clip) as video:
        made = list(video)
        video.save_state("state")
    with pipeline.video({0: "a dog", 18: "a fox"}, resume="state", frames=12) as video:
        assert video.blocks_made == 4
        made += video
    assert same((latents(made), frames(made)), expected)


def test_a_started_video_goes_back(pipeline: Pipeline, clip: str) -> None:
    """From within the start, too."""
    with pipeline.video(CAT, start=clip, include_start=True) as video:
        next(video)
        within = video.checkpoint()
        first = [next(video) for _ in range(3)]
        there = video.checkpoint()
        later = [next(video) for _ in range(2)]
        video.rollback(there)
        assert np.array_equal(latents([next(video), next(video)]), latents(later))
        video.rollback(within)
        assert video.blocks_made == 1
        again = [next(video) for _ in range(3)]
        assert [block.index for block in again] == [1, 2, 3]
        assert same((latents(again), frames(again)), (latents(first), frames(first)))


def test_a_state_within_a_start_is_refused(pipeline: Pipeline, clip: str) -> None:
    with pipeline.video(CAT, start=clip, include_start=True) as video:
        for _ in range(2):
            with pytest.raises(UsageError, match="save it after the blocks of its start"):
                video.save_state("state")
            next(video)
        video.save_state("state")


def test_rows_share_a_clip_and_may_have_latents_of_their_own(pipeline: Pipeline, clip: str) -> None:
    both, _ = make(pipeline, CAT, frames=3, start=clip, batch=2)
    assert both.shape[0] == 2
    save_file({"latents": np.repeat(both, 2, axis=1)[:, :6]}, "two.safetensors")
    mine, _ = make(pipeline, CAT, frames=3, start="two.safetensors", batch=2)
    save_file({"latents": np.repeat(both[:1], 2, axis=1)[:, :6]}, "one.safetensors")
    shared, _ = make(pipeline, CAT, frames=3, start="one.safetensors", batch=2)
    assert np.array_equal(mine[0], shared[0]) and not np.array_equal(mine[1], shared[1])
    with pytest.raises(UsageError, match=r"latents is \[2, 6, .* and this video needs \[1, "):
        pipeline.video(CAT, frames=3, start="two.safetensors")


def test_prompts_may_change_while_it_begins(pipeline: Pipeline, clip: str) -> None:
    steady = make(pipeline, "a dog", frames=6, start=clip)
    changed = make(pipeline, {0: CAT, 3: "a dog"}, frames=6, start=clip)
    # The second prompt recomputes all there was: what comes is made under it alone.
    assert np.array_equal(steady[0], changed[0])
    other = make(pipeline, {0: CAT, 6: "a dog"}, frames=6, start=clip, switch="none")
    assert not np.array_equal(steady[0], other[0])


def reference(bundle: Path, start: Array, count: int, states: Array, seed: int) -> Array:
    """A started rollout in torch."""
    exported = bundle.with_name("mini-relative-export")
    record = read_export(exported)
    config = record.config
    model = Transformer(config.transformer).eval().requires_grad_(False)
    weights = ExportedWeights(exported, record, "transformer", dict(model.state_dict()))
    model.load_state_dict({name: weights.load(name) for name in weights.names})
    rollout = ReferenceRollout(model, config, 1, start.shape[1] + count)
    rollout.switch_prompt(torch.from_numpy(states))
    for block in torch.from_numpy(start).split(3, dim=1):
        rollout.give_block(block)
    noise = SeededNoise(seed, (1, 3, *config.latent_shape), config.rollout.noises)
    for index in range(start.shape[1] // 3, (start.shape[1] + count) // 3):
        drawn = noise.block(index)
        rollout.run_block(
            torch.from_numpy(drawn.initial), [torch.from_numpy(one) for one in drawn.renoise]
        )
    return torch.cat(rollout.frames, dim=1)[:, start.shape[1] :].numpy()


@pytest.mark.parametrize("frames_given", [pytest.param(3, marks=pytest.mark.exhaustive), 15])
def test_it_is_what_the_reference_makes_of_the_same_start(
    pipeline: Pipeline,
    mini_bundle: Callable[[str], Path],
    relative_error: Callable[[object, object], float],
    frames_given: int,
) -> None:
    shape = (1, frames_given, *pipeline.config.latent_shape)
    start = np.random.default_rng(6).standard_normal(shape).astype(np.float32)
    save_file({"latents": start}, "start.safetensors")
    made, _ = make(pipeline, CAT, frames=12, seed=9, start="start.safetensors")
    with torch.no_grad():
        states = pipeline.engines.prompt_encoder(1).states_of(CAT)
        expected = reference(mini_bundle("relative"), start, 12, states, 9)
    assert relative_error(made, expected) <= 1e-5


@pytest.fixture
def broken(kept: Callable[[int], str]) -> Iterator[Callable[[Array], str]]:
    def write(values: Array) -> str:
        save_file({"latents": values}, "broken.safetensors")
        return "broken.safetensors"

    yield write


def test_latents_that_no_video_can_begin_with(
    pipeline: Pipeline, broken: Callable[[Array], str]
) -> None:
    good = np.zeros((1, 3, *pipeline.config.latent_shape), np.float32)
    for values, problem in (
        (good[:, :2], "2 latent frames, and a video begins with whole blocks of 3"),
        (good[:, :0], "0 latent frames"),
        (good[..., :-1], r"latents is \[1, 3, 16, 4, 5\]"),
        (good[0], r"latents is \[3, 16, 4, 6\]"),
        (good.astype(np.int32), "no tensor latents of floating-point numbers"),
        (np.full_like(good, np.nan), "NaN or infinity"),
    ):
        with pytest.raises(UsageError, match=problem):
            pipeline.video(CAT, start=broken(values))
    Path("text.safetensors").write_text("nothing of the kind")
    with pytest.raises(UsageError, match=r"text.safetensors: it ends inside its header; give late"):
        pipeline.video(CAT, start="text.safetensors")


def test_a_start_of_latents_needs_no_encoder(
    mini_bundle: Callable[[str], Path], pipeline: Pipeline
) -> None:
    assert "encode_first" not in open_bundle(mini_bundle("relative")).manifest.graphs
    assert "encode_first" in pipeline.bundle.manifest.graphs


def test_a_clip_that_changes_meanwhile(pipeline: Pipeline, clip: str) -> None:
    from longlive_trt.runtime.plan import VideoOptions, plan_video

    plan = plan_video(pipeline.bundle, VideoOptions(prompt=CAT, start=Path(clip)))
    write_clip(Path(clip), shades(12, SIZE))
    with pytest.raises(UsageError, match="was changed while it was read; try again"):
        pipeline.open(plan)
