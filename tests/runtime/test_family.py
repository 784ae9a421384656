"""Every member of the family over six blocks with a switch: compiled graphs against torch."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import longlive_trt as ll
from longlive_trt.configs import ModelConfig, RolloutConfig, load_config
from longlive_trt.configs.family import family
from longlive_trt.configs.loader import configure
from longlive_trt.configs.replay import load_replay
from longlive_trt.engines.build import build
from longlive_trt.export.checkpoints.random import RandomWeights
from longlive_trt.export.components import Sources, expected_shapes
from longlive_trt.export.exporter import export
from longlive_trt.export.models.transformer import Transformer
from longlive_trt.loading import load
from longlive_trt.precision import PRECISIONS
from tests.reference import run_replay
from tests.shared import MINI_SEED, MINIS

MEMBERS = [name for name in family() if name != "tiny"]
# Rolled out as another member is, or as many other tests do.
LIKE_OTHERS = ("longlive-1.3b", "longlive-1.3b-moving-sink", "causal-forcing-1.3b", "wan-14b")
BLOCKS, SWITCH = 6, 3
Error = Callable[[object, object], float]


def write_replay(path: Path, config: ModelConfig) -> Path:
    random = np.random.default_rng(2)
    rollout, block = config.rollout, config.rollout.frames_per_block
    frame = config.latent_shape
    text = (1, config.transformer.text_len, config.transformer.text_dim)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    schedule = [{"frame": 0, "prompt": 0}, {"frame": SWITCH * block, "prompt": 1}]
    tensors = {
        "noise": normal(1, BLOCKS * block, *frame),
        "renoise": normal(BLOCKS, rollout.noises - 1, 1, block, *frame),
        "prompt.0": normal(*text),
        "prompt.1": normal(*text),
    }
    save_file(tensors, path, {"schedule": json.dumps(schedule)})
    return path


def settings(rollout: RolloutConfig) -> list[str]:
    """What a bundle of the same positions is told to be that member."""
    first = "null" if rollout.first_steps is None else list(rollout.first_steps)
    return [
        f"rollout.frames_per_block={rollout.frames_per_block}",
        f"rollout.window_frames={rollout.window_frames}",
        f"rollout.sink_frames={rollout.sink_frames}",
        f"rollout.global_sink={str(rollout.global_sink).lower()}",
        f"rollout.steps={list(rollout.steps)}",
        f"rollout.first_steps={first}",
    ]


def expected_latents(config: ModelConfig, replay: Path) -> np.ndarray:
    model = Transformer(config.transformer).eval().requires_grad_(False)
    shapes = expected_shapes(lambda: Transformer(config.transformer))
    weights = RandomWeights(shapes, MINI_SEED)
    model.load_state_dict({name: weights.load(name) for name in weights.names})
    return run_replay(model, config, load_replay(replay, config)).numpy()


def made_latents(pipeline: ll.Pipeline, replay: Path, overrides: list[str]) -> np.ndarray:
    with pipeline.video(replay=replay, decode=False, overrides=overrides) as video:
        return np.concatenate([block.latents for block in video], axis=1)


@pytest.fixture(scope="module")
def pipelines(
    one_thread: None, mini_bundle: Callable[[str], Path]
) -> Iterator[Callable[[str], ll.Pipeline]]:
    opened: dict[str, ll.Pipeline] = {}

    def of(rope: str) -> ll.Pipeline:
        if rope not in opened:
            opened[rope] = load(mini_bundle(rope))
        return opened[rope]

    yield of
    for pipeline in opened.values():
        pipeline.close()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.exhaustive if n in LIKE_OTHERS else ()) for n in MEMBERS],
)
def test_it_rolls_out_as_the_reference_does(
    name: str,
    pipelines: Callable[[str], ll.Pipeline],
    tmp_path: Path,
    relative_error: Error,
) -> None:
    rollout = load_config(name).rollout
    config = replace(configure(MINIS[rollout.rope], origin="a test"), rollout=rollout)
    replay = write_replay(tmp_path / "replay.safetensors", config)
    made = made_latents(pipelines(rollout.rope), replay, settings(rollout))
    assert made.shape[1] == BLOCKS * rollout.frames_per_block
    assert relative_error(made, expected_latents(config, replay)) <= 1e-5


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MEMBERS)
def test_its_own_configuration_exports(name: str, tmp_path: Path, relative_error: Error) -> None:
    """With all settings as shipped, and sizes that a test can pay."""
    member = load_config(name)
    small = configure(MINIS[member.rollout.rope], origin="a test")
    config = replace(
        member, transformer=small.transformer, latent=small.latent, vae=None, text_encoder=None
    )
    exported, bundle = tmp_path / "onnx", tmp_path / "bundle"
    export(config, Sources(random_seed=MINI_SEED), exported, PRECISIONS["fp32"])
    build(exported, bundle, "fp32")
    replay = write_replay(tmp_path / "replay.safetensors", config)
    with load(bundle) as pipeline:
        assert pipeline.config.rollout == member.rollout
        made = made_latents(pipeline, replay, [])
    assert relative_error(made, expected_latents(config, replay)) <= 1e-5
