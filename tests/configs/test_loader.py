"""Configurations from files, names and ``--set``; every mistake names its place."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlive_trt.configs import (
    ModelConfig,
    TaehvConfig,
    VaeConfig,
    load_config,
    parse_overrides,
    shipped_models,
)
from longlive_trt.configs.dump import config_sha256, config_values
from longlive_trt.configs.loader import configure
from longlive_trt.errors import ConfigError


@pytest.mark.parametrize("name", shipped_models())
def test_shipped_models_load_and_survive_a_round_trip(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert configure(config_values(config), origin="test") == config


def test_the_defaults_are_longlive() -> None:
    shipped = load_config("longlive-1.3b")
    assert (shipped.transformer, shipped.latent, shipped.rollout) == (
        ModelConfig().transformer,
        ModelConfig().latent,
        ModelConfig().rollout,
    )
    assert (shipped.transformer.dim, shipped.transformer.layers, shipped.fps) == (1536, 30, 16)
    assert (shipped.rollout.window_frames, shipped.rollout.sink_frames) == (12, 3)
    assert shipped.rollout.steps == (1000, 750, 500, 250)
    assert shipped.rollout.global_sink is True
    assert (shipped.latent_shape, shipped.tokens_per_frame) == ((16, 60, 104), 1560)
    assert shipped.vae is not None and shipped.text_encoder is not None
    assert (shipped.vae.spatial_factor, shipped.vae.temporal_factor) == (8, 4)


def test_file_then_preset_then_overrides(tmp_path: Path) -> None:
    model, preset = tmp_path / "m.yaml", tmp_path / "p.yaml"
    model.write_text("name: mine\nfps: 10\nrollout: {window_frames: 9, sink_frames: 1}\n")
    preset.write_text("fps: 12\nrollout: {sink_frames: 2}\n")
    config = load_config(model, preset=str(preset), overrides=["rollout.steps=[900, 10]"])
    rollout = config.rollout
    assert (config.name, config.fps, rollout.window_frames) == ("mine", 12, 9)
    assert (rollout.sink_frames, rollout.steps) == (2, (900, 10))


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("")
    assert load_config(tmp_path / "m.yaml") == ModelConfig()


def test_sections_can_be_left_out() -> None:
    config = load_config("tiny", overrides=["vae=null", "text_encoder=null"])
    assert (config.vae, config.text_encoder) == (None, None)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("transformr.dim=3", ("unknown key transformr", "did you mean transformer?")),
        ("transformer.dims=3", ("unknown key transformer.dims", "transformer.dim?")),
        ("transformer.dim=0", ("transformer.dim is 0", "above 0")),
        ("transformer.dim=-8", ("transformer.dim is -8",)),
        ("transformer.dim=yes", ("transformer.dim is True", "a whole number")),
        ("transformer.dim=1.5", ("transformer.dim is 1.5", "a whole number")),
        ("transformer.dim=many", ("'many'", "a whole number")),
        ("transformer.dim=null", ("transformer.dim is None",)),
        ("transformer=3", ("transformer is 3", "a section of keys and values")),
        ("transformer.heads=3", ("transformer.heads is 3", "divisor of dim (256)")),
        ("transformer.heads=256", ("transformer.heads", "even")),
        ("transformer.freq_dim=5", ("transformer.freq_dim", "even")),
        ("transformer.patch=[2, 2, 2]", ("transformer.patch", "[1, height, width]")),
        ("transformer.patch=[1, 2]", ("transformer.patch", "a list of 3")),
        ("transformer.patch=2", ("transformer.patch", "a list")),
        ("transformer.eps=0", ("transformer.eps",)),
        ("transformer.eps=tiny", ("transformer.eps", "a number")),
        ("transformer.eps=.nan", ("transformer.eps", "finite")),
        ("transformer.eps=.inf", ("transformer.eps", "finite")),
        ("latent.height=0", ("latent.height is 0",)),
        ("latent.width=25", ("latent.width is 25", "multiple of the patch size (2)")),
        ("rollout.frames_per_block=0", ("rollout.frames_per_block",)),
        ("rollout.sink_frames=-1", ("rollout.sink_frames is -1", "0 or more")),
        ("rollout.window_frames=5", ("rollout.window_frames is 5", "at least", "(6)")),
        ("rollout.window_frames=0", ("rollout.window_frames is 0", "-1 (global attention)")),
        ("rollout.window_frames=-2", ("rollout.window_frames is -2",)),
        ("rollout.global_sink=1", ("rollout.global_sink is 1", "true or false")),
        ("rollout.rope=rotary", ("rollout.rope is 'rotary'", "absolute, relative")),
        ("rollout.steps=[]", ("rollout.steps is []", "falling")),
        ("rollout.steps=[500, 500]", ("rollout.steps", "falling")),
        ("rollout.steps=[1001]", ("rollout.steps", "from 1000 to 1")),
        ("rollout.steps=[10, 0]", ("rollout.steps", "from 1000 to 1")),
        ("rollout.steps=[10, x]", ("rollout.steps[1]", "a whole number")),
        ("rollout.timestep_shift=0", ("rollout.timestep_shift",)),
        ("rollout.context_timestep=1000", ("rollout.context_timestep", "0 to 999")),
        ("vae.channels=8", ("vae",)),
        ("vae.std=[1]", ("vae.std",)),
        ("vae.multipliers=[]", ("vae.multipliers",)),
        ("vae.temporal_upsample=[true]", ("vae.temporal_upsample",)),
        ("text_encoder.dim=32", ("text_encoder.dim is 32", "transformer.text_dim (64)")),
        ("text_encoder.buckets=30", ("text_encoder.buckets",)),
        ("text_encoder.max_distance=8", ("text_encoder.max_distance",)),
        ("fps=0", ("fps is 0",)),
        ("name=", ("name",)),
        ("name='  '", ("name", "non-empty")),
        ("fps", ("--set fps", "key=value")),
        ("=3", ("--set =3", "key=value")),
        ("a..b=3", ("key=value",)),
        ("fps=[1", ("--set fps=[1", "not YAML")),
    ],
)
def test_mistakes(override: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("tiny", overrides=[override])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert "--set" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"fps: [", ("line",)),
        (b"- 1\n", ("expected keys and values",)),
        (b"text\n", ("expected keys and values",)),
        (b"name: caf\xe9\n", ("UTF-8",)),
        (b"3: 4\n", ("unknown key 3",)),
        (b"rollout: {window_frames: 2}\n", ("rollout.window_frames is 2",)),
        (b"a: &a [*a]\n", ("line 1", "an alias stands for what it is a part of")),
    ],
)
def test_mistakes_in_a_file_name_the_file(
    tmp_path: Path, content: bytes, words: tuple[str, ...]
) -> None:
    path = tmp_path / "model.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("source", ["nothing", "nothing.yaml", "../models/tiny"])
def test_a_file_that_is_not_there(source: str) -> None:
    with pytest.raises(ConfigError, match=r"no such configuration file.*longlive-1\.3b, .*tiny"):
        load_config(source)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load_config(tmp_path)


def test_overrides_nest() -> None:
    nested = parse_overrides(["a.b=1", "a.c=[x, 2]", "d=true", "a.b=3"])
    assert nested == {"a": {"b": 3, "c": ["x", 2]}, "d": True}
    with pytest.raises(ConfigError, match="a was set to a single value before"):
        parse_overrides(["a=1", "a.b=2"])


def test_numbers_without_a_dot_are_numbers() -> None:
    assert load_config("tiny", overrides=["transformer.eps=1e-5"]).transformer.eps == 1e-5
    assert load_config("tiny", overrides=["fps=24"]).fps == 24.0


def test_a_section_of_another_kind_begins_anew() -> None:
    full = load_config("longlive-1.3b")
    assert isinstance(full.vae, VaeConfig) and full.vae.kind == "wan"
    tiny = load_config("longlive-1.3b", overrides=["vae.kind=taehv", "vae.latents=raw"]).vae
    assert tiny == TaehvConfig(latents="raw")
    assert load_config("longlive-1.3b", overrides=["vae.kind=wan", "vae.dim=24"]).vae == (
        replace(full.vae, dim=24)
    )
    with pytest.raises(ConfigError, match=r"unknown key vae\.latents"):
        load_config("longlive-1.3b", overrides=["vae.latents=raw"])
    with pytest.raises(ConfigError, match=r"vae\.kind is 'tiny'; allowed: wan, taehv"):
        load_config("longlive-1.3b", overrides=["vae.kind=tiny"])
    with pytest.raises(ConfigError, match=r"vae\.kind is \[\]"):
        load_config("longlive-1.3b", overrides=["vae.kind=[]"])


def test_what_a_checkpoint_says_lies_under_what_is_written() -> None:
    found = {"vae": {"kind": "taehv", "latents": "raw", "widths": [4, 4, 4, 4]}}
    of_file = TaehvConfig(latents="raw", widths=(4, 4, 4, 4))
    assert load_config("longlive-1.3b", found=found).vae == of_file
    written = {"vae": {"kind": "taehv", "latents": "normalized"}}
    model = configure(written, origin="file.yaml", found=found)
    assert model.vae == replace(of_file, latents="normalized")
    assert configure({"vae": None}, origin="file.yaml", found=found).vae == of_file


def test_two_decoders_make_pictures_of_one_size_and_number() -> None:
    both = load_config("longlive-1.3b", overrides=["light_vae.kind=taehv"])
    assert both.light_vae == TaehvConfig() and both.video_size == (480, 832)
    values = config_values(both)
    assert values["light_vae"]["kind"] == "taehv" and "kind" not in values["vae"]
    assert configure(values, origin="again") == both
    assert "light_vae" not in config_values(load_config("longlive-1.3b"))
    slow = ["light_vae.kind=taehv", "light_vae.temporal_upsample=[false, false, true]"]
    with pytest.raises(ConfigError, match=r"light_vae is .* temporal factor 2"):
        load_config("longlive-1.3b", overrides=slow)


def test_the_fingerprint_is_of_every_value() -> None:
    tiny = load_config("tiny")
    others = [
        replace(tiny, fps=17),
        replace(tiny, vae=None),
        replace(tiny, rollout=replace(tiny.rollout, context_timestep=1)),
        replace(tiny, transformer=replace(tiny.transformer, eps=1e-5)),
    ]
    assert len({config_sha256(config) for config in (tiny, *others)}) == 5
    assert config_sha256(tiny) == config_sha256(load_config("tiny"))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2000) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
KEYS = [
    *(f"transformer.{key}" for key in ("dim", "heads", "patch", "eps")),
    *(f"rollout.{key}" for key in ("steps", "rope", "window_frames", "global_sink")),
    *("latent", "vae", "vae.mean", "text_encoder", "fps", "name"),
]


@given(key=st.sampled_from(KEYS), value=values)
def test_any_value_is_taken_or_refused_in_words(key: str, value: Any) -> None:
    section, _, leaf = key.rpartition(".")
    given_values = {section: {leaf: value}} if section else {leaf: value}
    try:
        configure(given_values, origin="file.yaml")
    except ConfigError as error:
        assert str(error).startswith("file.yaml: ")
