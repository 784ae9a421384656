"""The reference rollout against recordings of the public model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from longlive_trt.configs import ModelConfig
from longlive_trt.configs.replay import load_replay
from longlive_trt.configs.schedule import Schedule
from longlive_trt.errors import UsageError
from longlive_trt.export.checkpoints.opening import open_transformer
from longlive_trt.export.models.rollout import ReferenceRollout
from longlive_trt.export.models.transformer import Transformer
from tests.reference import run_replay

DATA = Path(__file__).parents[2] / "data" / "transformer"
TOLERANCE = 1e-6

Error = Callable[[object, object], float]


def load_model(config: ModelConfig, lora: Path | None = None) -> Transformer:
    model = Transformer(config.transformer).eval()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    weights = open_transformer(DATA / "transformer.safetensors", shapes, lora=lora)
    model.load_state_dict({name: weights.load(name) for name in weights.names})
    return model


@pytest.fixture(scope="module")
def model(golden_config: ModelConfig) -> Transformer:
    return load_model(golden_config)


def replayed(
    model: Transformer, config: ModelConfig, case: str
) -> tuple[Tensor, dict[str, Tensor]]:
    observed: dict[str, Tensor] = {}
    replay = load_replay(DATA / f"{case}.replay.safetensors", config)
    latents = run_replay(model, config, replay, lambda n, v: observed.update({n: v.clone()}))
    return latents, observed


def recorded_latents(case: str) -> Tensor:
    return load_file(DATA / f"{case}.expected.safetensors")["latents"]


@pytest.mark.parametrize("case", ["noswitch", "switch15_global_sink", "switch6"])
def test_recorded_rollouts(
    model: Transformer, golden_config: ModelConfig, relative_error: Error, case: str
) -> None:
    latents, _ = replayed(model, golden_config, case)
    assert relative_error(latents, recorded_latents(case)) <= TOLERANCE


def test_recorded_rollout_with_an_adapter(
    model: Transformer, golden_config: ModelConfig, relative_error: Error
) -> None:
    adapted = load_model(golden_config, DATA / "lora.safetensors")
    expected = recorded_latents("lora")
    assert relative_error(replayed(adapted, golden_config, "lora")[0], expected) <= TOLERANCE
    assert relative_error(replayed(model, golden_config, "lora")[0], expected) > 1e-3


NAMES = {"recache_flow": "flow.recache15"}


@pytest.mark.parametrize(
    ("case", "prefix", "count"),
    [("noswitch", "noswitch.", 12), ("switch15_global_sink", "switch15.gs1.", 2)],
)
def test_recorded_intermediates(
    model: Transformer,
    golden_config: ModelConfig,
    relative_error: Error,
    case: str,
    prefix: str,
    count: int,
) -> None:
    _, observed = replayed(model, golden_config, case)
    compared = 0
    for key, expected in load_file(DATA / "intermediates.safetensors").items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name.startswith(("final_cache", "timesteps")):
            continue
        assert relative_error(observed[NAMES.get(name, name)], expected) <= TOLERANCE, key
        compared += 1
    assert compared == count


def test_the_recorded_cache(
    model: Transformer, golden_config: ModelConfig, relative_error: Error
) -> None:
    replay = load_replay(DATA / "noswitch.replay.safetensors", golden_config)
    rollout = ReferenceRollout(model, golden_config, 1, replay.frames)
    noise, renoise = torch.from_numpy(replay.noise), torch.from_numpy(replay.renoise)
    with torch.no_grad():
        rollout.switch_prompt(torch.from_numpy(replay.prompts[0]))
        for block in range(10):
            rollout.run_block(noise[:, 3 * block : 3 * block + 3], list(renoise[block]))
    expected = load_file(DATA / "intermediates.safetensors")["noswitch.final_cache.layer1.k"]
    assert relative_error(rollout.cache.keys[1], expected) <= TOLERANCE


def test_recorded_timesteps(golden_config: ModelConfig) -> None:
    recorded = load_file(DATA / "intermediates.safetensors")
    schedule = Schedule.of(golden_config.rollout)
    timesteps = [*(level.timestep for level in schedule.passes), schedule.clean.timestep]
    assert timesteps == recorded["noswitch.timesteps"].tolist()
    assert timesteps[:-1] == recorded["warped_timesteps"].tolist()


@pytest.mark.parametrize(
    "change",
    [{"window_frames": 9}, {"sink_frames": 2}, {"rope": "relative"}, {"timestep_shift": 8.0}],
    ids=str,
)
def test_the_recordings_are_sharp(
    model: Transformer, golden_config: ModelConfig, relative_error: Error, change: dict[str, object]
) -> None:
    from dataclasses import replace

    config = replace(golden_config, rollout=replace(golden_config.rollout, **change))
    latents, _ = replayed(model, config, "noswitch")
    assert relative_error(latents, recorded_latents("noswitch")) > 1e-3


def test_the_first_blocks_are_alike_in_both_variants(
    model: Transformer, golden_config: ModelConfig, relative_error: Error
) -> None:
    from dataclasses import replace

    config = replace(golden_config, rollout=replace(golden_config.rollout, rope="relative"))
    latents, _ = replayed(model, config, "noswitch")
    expected = recorded_latents("noswitch")
    assert relative_error(latents[:, :12], expected[:, :12]) <= TOLERANCE
    assert relative_error(latents[:, 12:15], expected[:, 12:15]) > 1e-4


def test_both_sinks_are_alike_in_an_early_switch(
    model: Transformer, golden_config: ModelConfig
) -> None:
    from dataclasses import replace

    moving = replace(golden_config, rollout=replace(golden_config.rollout, global_sink=False))
    latents, _ = replayed(model, moving, "switch6")
    assert torch.equal(latents, replayed(model, golden_config, "switch6")[0])


def test_positions_end_with_the_table(model: Transformer, golden_config: ModelConfig) -> None:
    rollout = ReferenceRollout(model, golden_config, 1, 3)
    with pytest.raises(UsageError, match="last position"), torch.no_grad():
        rollout.switch_prompt(torch.zeros(1, 16, 64))
        rollout.cache.frames_ever, rollout.cache.frames_held = 1023, 12
        rollout.forward(torch.zeros(1, 3, *golden_config.latent_shape), 1023, 1000.0)
