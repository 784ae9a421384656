"""Profiles: every pass that the runtime can ask for fits one, and the steady state is static."""

from collections.abc import Iterator

import pytest

from longlive_trt.configs import ModelConfig
from longlive_trt.configs.loader import configure
from longlive_trt.engines.trt.profiles import Profile, Range, profiles
from longlive_trt.errors import UsageError
from longlive_trt.exports import GraphInfo, TensorInfo
from longlive_trt.runtime.ring import Ring, RingLayout

ROLLOUTS: dict[str, dict[str, object]] = {
    "default": {},
    "moving sink": {"global_sink": False},
    "relative": {"rope": "relative"},
    "no sink": {"sink_frames": 0},
    "one-frame blocks": {"frames_per_block": 1, "sink_frames": 1, "window_frames": 6},
    "window of one block and the sink": {"window_frames": 6},
    "window that blocks do not fill": {"window_frames": 13, "sink_frames": 2},
    "large blocks": {"frames_per_block": 5, "window_frames": 21},
    "global": {"window_frames": -1},
}


def model(**rollout: object) -> ModelConfig:
    return configure({"name": "m", "rollout": rollout}, origin="test")


def step_info(config: ModelConfig) -> GraphInfo:
    transformer = config.transformer
    head = (transformer.heads, transformer.head_dim)
    cached = f"{config.tokens_per_frame}*cache_frames"
    return GraphInfo(
        (
            TensorInfo("latents", "float16", ("batch", "frames", *config.latent_shape)),
            TensorInfo("frame_index", "int64", ("frames",)),
            TensorInfo("sigma", "float", (1,)),
            TensorInfo("k_cache.0", "float16", ("batch", cached, *head)),
        ),
        (),
    )


def step_profiles(config: ModelConfig, batch: int = 1) -> list[Profile]:
    return profiles("step", step_info(config), config, batch)


def passes(config: ModelConfig, blocks: int) -> Iterator[tuple[int, int]]:
    """Frames and cache slots of every pass of a rollout that switches prompts at every block."""
    total = blocks * config.rollout.frames_per_block
    ring = Ring(RingLayout.of(config, total))
    for _ in range(blocks):
        yield len(ring.block_plan().frames), ring.layout.slots
        ring = ring.after_block()
        yield len(ring.recache_plan().frames), ring.layout.slots
        ring = ring.after_recache()


def takes(profile: Profile, frames: int, slots: int) -> bool:
    def within(size: int, limits: Range) -> bool:
        return limits.low <= size <= limits.high

    return within(frames, profile.sizes["frames"]) and within(slots, profile.sizes["cache_frames"])


@pytest.mark.parametrize("rollout", ROLLOUTS.values(), ids=ROLLOUTS)
@pytest.mark.parametrize("blocks", [1, 3, 12])
def test_every_pass_of_a_rollout_has_a_profile(rollout: dict[str, object], blocks: int) -> None:
    config = model(**rollout)
    if config.rollout.is_global and blocks * config.rollout.frames_per_block > 21:
        pytest.skip("beyond what global attention sees")
    made = step_profiles(config)
    for frames, slots in passes(config, blocks):
        assert any(takes(profile, frames, slots) for profile in made), (frames, slots)


def test_the_steady_state_is_static() -> None:
    config = model()
    denoise, recache, early = step_profiles(config)
    latents, index, sigma, cache = (denoise.shapes(tensor) for tensor in step_info(config).inputs)
    assert latents == ((1, 3, 16, 60, 104),) * 3
    assert index == ((3,),) * 3
    assert sigma == ((1,),) * 3
    assert cache == ((1, 9 * 1560, 12, 128),) * 3
    assert recache.sizes["frames"] == Range.fixed(9)
    assert (early.sizes["frames"].low, early.sizes["frames"].high) == (3, 12)
    assert [profile.name for profile in (denoise, recache, early)] == [
        "denoise",
        "recache",
        "recache_early",
    ]


def test_a_moving_sink_is_recomputed_with_the_window() -> None:
    recache = step_profiles(model(global_sink=False))[1]
    assert recache.sizes["frames"] == Range.fixed(12)


def test_batch_is_in_every_shape() -> None:
    config = model()
    for profile in step_profiles(config, batch=3):
        assert profile.shapes(step_info(config).inputs[0])[0][0] == 3


def test_the_vae_takes_one_latent_frame_at_a_time() -> None:
    config = model()
    shape = ("batch", "latent_frames", *config.latent_shape)
    info = GraphInfo((TensorInfo("latents", "float16", shape),), ())
    (profile,) = profiles("vae_next", info, config, 2)
    assert profile.shapes(info.inputs[0]) == ((2, 1, 16, 60, 104),) * 3


def test_a_tiny_decoder_s_graphs_of_any_size_get_the_configuration_s() -> None:
    shape = ("batch", "latent_frames", 16, "latent_height", "latent_width")
    info = GraphInfo((TensorInfo("latents", "float16", shape),), ())
    (profile,) = profiles("light_vae_next", info, model(), 2)
    assert profile.shapes(info.inputs[0]) == ((2, 1, 16, 60, 104),) * 3
    other = GraphInfo((TensorInfo("latents", "float16", (*shape[:2], 8, *shape[3:])),), ())
    with pytest.raises(UsageError, match=r"another configuration; export again"):
        profiles("light_vae_next", other, model(), 2)


def test_a_clip_is_encoded_once_for_all_videos() -> None:
    info = GraphInfo((TensorInfo("pixels", "uint8", ("batch", 4, 480, 832, 3)),), ())
    (profile,) = profiles("encode_next", info, model(), 2)
    assert profile.shapes(info.inputs[0]) == ((1, 4, 480, 832, 3),) * 3


def test_graphs_of_another_configuration_are_refused() -> None:
    larger = configure({"name": "m", "latent": {"height": 90, "width": 160}}, origin="test")
    with pytest.raises(UsageError, match=r"another configuration; export again"):
        profiles("step", step_info(model()), larger, 1)
