"""A run that was saved and resumed is bit for bit the run that was not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from longlive_trt.cli import main
from longlive_trt.engines.bundles.bundle import Bundle, open_bundle
from longlive_trt.errors import OutputError, UsageError
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.noise import SeededNoise
from longlive_trt.runtime.session import Session
from longlive_trt.runtime.state import load_state, restore, save_state
from longlive_trt.runtime.transformer import Context


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def generate(bundle: Path, *arguments: object, code: int = 0) -> None:
    values = ["generate", "--bundle", bundle, *arguments, "--quiet", "--overwrite"]
    assert main([str(value) for value in values]) == code


def latents(path: str) -> np.ndarray[Any, Any]:
    return load_file(path)["latents"]


def pictures(folder: str) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(Path(folder).glob("*.png"))])


SWITCHES = {
    "none": (),
    "before and after": ("--prompt-at", 3, "b", "--prompt-at", 15, "c"),
    "at the cut": ("--prompt-at", 9, "b"),
    "late, and waiting": ("--prompt-at", 8, "b", "--prompt-at", 9, "c"),
}


@pytest.mark.parametrize("case", SWITCHES)
def test_latents_of_a_resumed_run(video_bundle: Path, case: str) -> None:
    prompts = ("--prompt", "a", *SWITCHES[case])
    rollout = ("--set", "rollout.window_frames=6", "--set", "rollout.sink_frames=2")
    generate(
        video_bundle, *prompts, *rollout, "--frames", 18, "--latents-out", "whole", "--seed", 4
    )
    triples = zip(prompts[2::3], prompts[3::3], prompts[4::3], strict=True)
    first = [part for triple in triples if triple[1] < 7 for part in triple]
    parts = ("--latents-out", "first", "--save-state", "state")
    generate(video_bundle, *prompts[:2], *first, *rollout, "--frames", 9, *parts, "--seed", 4)
    generate(video_bundle, "--resume", "state", *prompts, "--frames", 9, "--latents-out", "second")
    joined = np.concatenate([latents("first"), latents("second")], axis=1)
    assert np.array_equal(joined, latents("whole"))


def test_a_moving_sink_and_two_cuts(video_bundle: Path) -> None:
    # Two slots of past, and a sink that begins at an odd frame: their places depend on it.
    rollout = ("--set", "rollout.window_frames=8", "--set", "rollout.global_sink=false")
    switches = ("--prompt-at", 9, "b", "--prompt-at", 15, "c")
    prompts = ("--prompt", "a", *switches)
    generate(video_bundle, *prompts, *rollout, "--frames", 24, "--latents-out", "whole")
    parts = ("--frames", 12, "--latents-out", "l0", "--save-state", "s0")
    generate(video_bundle, *prompts[:5], *rollout, *parts)
    parts = ("--frames", 6, "--latents-out", "l1", "--save-state", "s1")
    generate(video_bundle, "--resume", "s0", *prompts, *parts)
    generate(video_bundle, "--resume", "s1", "--frames", 6, "--latents-out", "l2")
    joined = np.concatenate([latents(f"l{part}") for part in range(3)], axis=1)
    assert np.array_equal(joined, latents("whole"))


def test_pictures_of_a_resumed_run(video_bundle: Path) -> None:
    prompts = ("--prompt", "a", "--prompt-at", 3, "b")
    generate(video_bundle, *prompts, "--frames", 12, "--out", "whole/", "--latents-out", "whole.l")
    generate(video_bundle, *prompts, "--frames", 6, "--out", "first/", "--save-state", "state")
    # The part in the middle is not shown, but the decoder has to see it.
    middle = ("--frames", 3, "--latents-out", "middle.l", "--save-state", "state")
    generate(video_bundle, "--resume", "state", *middle)
    generate(video_bundle, "--resume", "state", "--frames", 3, "--out", "last/")
    whole = pictures("whole")
    assert len(whole) == 45
    assert np.array_equal(pictures("first"), whole[:21])
    assert np.array_equal(pictures("last"), whole[33:])
    assert np.array_equal(latents("middle.l"), latents("whole.l")[:, 6:9])


def test_a_new_prompt_takes_over_at_once(video_bundle: Path) -> None:
    state = ("--latents-out", "l", "--save-state", "state")
    generate(video_bundle, "--prompt", "a", "--frames", 6, *state)
    generate(
        video_bundle, "--resume", "state", "--prompt", "b", "--frames", 3, "--latents-out", "l"
    )
    switched = latents("l")
    prompts = ("--prompt", "a", "--prompt-at", 6, "b")
    generate(video_bundle, *prompts, "--frames", 9, "--latents-out", "l")
    assert np.array_equal(switched, latents("l")[:, 6:])


def test_a_record_says_where_a_resumed_video_began(video_bundle: Path) -> None:
    generate(
        video_bundle, "--prompt", "a", "--frames", 3, "--out", "a.mp4", "--save-state", "s",
        "--seed", 2,
    )  # fmt: skip
    generate(video_bundle, "--resume", "s", "--frames", 3, "--out", "b.mp4")
    record = json.loads(Path("b.mp4.json").read_text())
    assert (record["resumed_at_latent_frame"], record["seed"]) == (3, 2)
    assert record["video_frames"] == 12


# ---- sessions without the command line -------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(mini_bundle: Callable[[str], Path]) -> Bundle:
    return open_bundle(mini_bundle("relative"))


def context(engines: Engines, batch: int, seed: int) -> Context:
    config = engines.bundle.config.transformer
    shape = (batch, config.text_len, config.text_dim)
    states = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return engines.contexts(batch).of_states(states)


def new_session(engines: Engines, batch: int) -> Session:
    config = engines.bundle.config
    shape = (batch, 3, *config.latent_shape)
    return engines.session(config, SeededNoise(1, shape, 4), batch=batch, decode=False)


@pytest.mark.parametrize("cut", [1, 2, 4, 5, 7])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_restored_session_goes_on_with_the_same_bits(
    bundle: Bundle, cut: int, batch: int
) -> None:
    with Engines(bundle) as engines:
        prompts = {0: context(engines, batch, 0), 5: context(engines, batch, 5)}

        def make(session: Session, blocks: range) -> list[np.ndarray[Any, Any]]:
            made = []
            for block in blocks:
                if block in prompts:
                    session.switch_prompt(prompts[block])
                made.append(session.step().latents)
            return made

        with new_session(engines, batch) as session:
            whole = make(session, range(9))
        with new_session(engines, batch) as session:
            make(session, range(cut))
            save_state(Path("deep/state"), session, bundle_key="k", seed=1, prompt="p")
        with new_session(engines, batch) as session:
            state = load_state(Path("deep/state"))
            assert (state.batch, state.next_frame, state.prompt) == (batch, 3 * cut, "p")
            restore(session, state)
            assert session.blocks_made == cut
            resumed = make(session, range(cut, 9))
    assert all(map(np.array_equal, whole[cut:], resumed))


def test_a_saved_session_goes_on_unchanged(bundle: Bundle) -> None:
    with Engines(bundle) as engines, new_session(engines, 1) as session:
        session.switch_prompt(context(engines, 1, 0))
        session.step()
        save_state(Path("state"), session, bundle_key="k", seed=1, prompt="")
        after_saving = session.step().latents
        with new_session(engines, 1) as other:
            other.switch_prompt(context(engines, 1, 0))
            other.step()
            assert np.array_equal(after_saving, other.step().latents)


def test_a_state_that_cannot_be_written_leaves_the_old_one(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with Engines(bundle) as engines, new_session(engines, 1) as session:
        session.switch_prompt(context(engines, 1, 0))
        session.step()
        Path("state").write_text("old")
        monkeypatch.setattr("longlive_trt.runtime.state.save_file", full_disk)
        with pytest.raises(OutputError, match=r"state: .*free some space"):
            save_state(Path("state"), session, bundle_key="k", seed=1, prompt="")
    assert [path.name for path in Path().iterdir()] == ["state"]
    assert Path("state").read_text() == "old"


# ---- states that are not taken ---------------------------------------------------------------


@pytest.fixture
def state(video_bundle: Path) -> Path:
    out = ("--latents-out", "l", "--save-state", "state")
    generate(video_bundle, "--prompt", "a", "--frames", 3, *out)
    return Path("state")


def refused(bundle: Path, capsys: Any, *arguments: str) -> str:
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    capsys.readouterr()
    generate(bundle, "--resume", "state", *arguments, code=2)
    error = str(capsys.readouterr().err)
    assert error.startswith("error: ") and error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before
    return error


def test_what_is_no_state(video_bundle: Path, state: Path, capsys: Any) -> None:
    whole = state.read_bytes()
    save_file({"x": np.zeros(3)}, "other")
    for content in (b"", b"junk", whole[:500], whole[:-1], Path("other").read_bytes()):
        state.write_bytes(content)
        error = refused(video_bundle, capsys, "--latents-out", "new")
        assert "state: not a state file, or cut short" in error


@pytest.mark.parametrize("format_", [1, 3])
def test_a_state_of_another_version(
    video_bundle: Path, state: Path, capsys: Any, format_: int
) -> None:
    with safe_open(state, "numpy") as file:
        described = json.loads(file.metadata()["state"])
    # As the first version wrote it: without a checksum.
    save_file(load_file(state), state, {"state": json.dumps({**described, "format": format_})})
    error = refused(video_bundle, capsys, "--latents-out", "new")
    assert f"another version (format {format_}, and this one reads 2)" in error


def test_a_flipped_bit_of_a_tensor_is_noticed(video_bundle: Path, state: Path, capsys: Any) -> None:
    flip(state, state.stat().st_size // 2)
    error = refused(video_bundle, capsys, "--latents-out", "new")
    assert "state: damaged since it was saved (sha256 " in error and "undamaged copy" in error


def flip(path: Path, position: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def test_no_flipped_bit_goes_unnoticed(bundle: Bundle) -> None:
    path, drawn = Path("state"), np.random.default_rng(0)
    with Engines(bundle) as engines, new_session(engines, 1) as session:
        session.switch_prompt(context(engines, 1, 0))
        session.step()
        save_state(path, session, bundle_key="k", seed=1, prompt="p")
    load_state(path)
    size, header = path.stat().st_size, int.from_bytes(path.read_bytes()[:8], "little")
    positions = [*range(0, 8 + header, 7), *drawn.integers(8 + header, size, 100), size - 1]
    for position in positions:
        bit = int(drawn.integers(8))
        flip(path, int(position), bit)
        with pytest.raises(UsageError, match=r"^state: "):
            load_state(path)
        flip(path, int(position), bit)
    load_state(path)


def test_a_state_of_another_bundle(
    mini_bundle: Callable[[str], Path], state: Path, capsys: Any
) -> None:
    error = refused(mini_bundle("absolute"), capsys, "--latents-out", "new")
    assert "another bundle" in error


@pytest.mark.parametrize("key", ["window_frames=9", "sink_frames=1", "global_sink=false"])
def test_settings_that_shape_the_cache_stay(
    video_bundle: Path, state: Path, capsys: Any, key: str
) -> None:
    change = ("--set", f"rollout.{key}", "--frames", "3", "--latents-out", "new")
    if key.startswith("global_sink"):
        generate(video_bundle, "--resume", "state", *change)
    else:
        name, _, now = key.partition("=")
        error = refused(video_bundle, capsys, *change)
        assert f"rollout.{name} was" in error and f"is {now} now" in error


def test_pictures_cannot_go_on_where_there_were_none(
    video_bundle: Path, state: Path, capsys: Any
) -> None:
    error = refused(video_bundle, capsys, "--out", "v.mp4", "--frames", "3")
    assert "without --out" in error


def test_loading_refuses_a_folder() -> None:
    with pytest.raises(UsageError, match="no such state file"):
        load_state(Path())


def test_the_configuration_of_a_state_is_that_of_its_run(video_bundle: Path) -> None:
    out = ("--latents-out", "l", "--save-state", "state", "--set", "rollout.window_frames=9")
    generate(video_bundle, "--prompt", "a", "--frames", 3, *out)
    saved = load_state(Path("state")).config
    whole = open_bundle(video_bundle).config
    assert saved == replace(whole, rollout=replace(whole.rollout, window_frames=9))
