"""Presets as data: those that are shipped, and files of the same form."""

from dataclasses import replace
from pathlib import Path

import pytest

from longlive_trt.configs import load_config, load_preset, shipped_models, shipped_presets
from longlive_trt.errors import ConfigError, UsageError
from longlive_trt.runtime.ring import RingLayout

# Presets are made for LongLive's window; models without it have a rollout of their own.
WHOLE_LENGTH = 21
"""Latent frames of a model that attends to its whole video; with a window there is no such end."""
LIKE_LONGLIVE = [name for name in shipped_models() if load_config(name).rollout.window_frames == 12]


def test_the_shipped_presets() -> None:
    assert shipped_presets() == [
        *("balanced", "endless", "light", "low-memory", "quality", "scene-change", "speed"),
        *("turbo", "turbo-fp8", "turbo-light", "ultra", "ultra-light"),
    ]
    assert load_preset("turbo-fp8").build.precision == "fp8"
    assert load_preset("turbo-light").build.decoder == "light"
    assert load_preset("low-memory").low_memory
    assert all(load_preset(name).about for name in shipped_presets())


@pytest.mark.parametrize("preset", shipped_presets())
@pytest.mark.parametrize("model", shipped_models())
def test_they_can_be_rolled_out_by_every_shipped_model(model: str, preset: str) -> None:
    config = load_config(model, preset=preset)
    if (config.rollout.frames_per_block, preset) == (1, "endless"):
        # A sink of three frames is larger than a block.
        with pytest.raises(UsageError, match=r"rollout\.sink_frames"):
            RingLayout.of(config, 60)
    else:
        RingLayout.of(config, WHOLE_LENGTH if config.rollout.is_global else 60)
    plain = load_config(model)
    assert replace(config, rollout=plain.rollout) == plain, "it changes the rollout alone"


def test_balanced_is_the_model_as_it_was_trained() -> None:
    assert {"longlive-1.3b", "longlive-1.3b-moving-sink", "wan-14b", "tiny"} <= {*LIKE_LONGLIVE}
    for model in LIKE_LONGLIVE:
        assert load_config(model, preset="balanced") == load_config(model)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("about: mine\nrollout: {steps: [1000]}\nfps: 8\nbuild: {cache: fp8}\n")
    config = load_config("tiny", preset=str(path))
    assert (config.rollout.steps, config.fps) == ((1000,), 8)
    path.write_text("")
    assert load_config("tiny", preset=str(path)) == load_config("tiny")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rolout: {}", "unknown key rolout .did you mean rollout"),
        ("build: {precision: fp4}", "build.precision is 'fp4'; allowed: fp32, fp16, bf16"),
        ("build: {speed: 2}", "unknown key build.speed"),
        ("rollout: [1]", "rollout is"),
        ("low_memory: 3", "low_memory is 3"),
        ("- 1", "expected keys and values, found list"),
    ],
)
def test_files_that_are_no_presets(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config("tiny", preset=str(tmp_path / "p.yaml"))


def test_no_such_preset() -> None:
    with pytest.raises(ConfigError, match=r"nothing: no such preset file; .* one of: balanced"):
        load_preset("nothing")
