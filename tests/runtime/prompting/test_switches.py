"""How prompts change: what blocks are conditioned on, what is refused, and what is recorded."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from longlive_trt.cli import main
from longlive_trt.configs import ModelConfig
from longlive_trt.configs.replay import Replay, Switch, load_replay
from longlive_trt.engines.bundles.bundle import open_bundle
from longlive_trt.errors import EngineError, UsageError
from longlive_trt.runtime.assembly import Engines
from longlive_trt.runtime.prompting.blending import Blend
from longlive_trt.runtime.prompting.encoder import PromptContexts
from longlive_trt.runtime.prompting.switches import SwitchMode
from longlive_trt.runtime.prompting.timeline import Cue
from longlive_trt.runtime.prompting.track import (
    Change,
    PromptTrack,
    RecordedPrompts,
    Shown,
    replay_cues,
    replay_states,
)
from longlive_trt.runtime.state import load_state

BLOCK = 3
GOLDEN = Path(__file__).parents[2] / "data" / "transformer"

Array = np.ndarray[Any, Any]
Error = Callable[[object, object], float]


# ---- the option ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["exact", "partial", "none", "blend:1", "blend:4", "blend:999999"])
def test_a_mode_is_written_as_it_is_read(text: str) -> None:
    assert str(SwitchMode.parse(text)) == text


def test_a_blend_recomputes_nothing() -> None:
    assert SwitchMode.parse("blend:4") == SwitchMode("none", 4)
    assert SwitchMode.parse("partial") == SwitchMode("partial")


@pytest.mark.parametrize(
    "text",
    ["", "Exact", "fast", "blend", "blend:", "blend:0", "blend:-1", "blend:x", "blend:1.5",
     "blend: 4", "blend:4 ", "blend:1000000", "blend:\u0664", "exact:4", "blend:4\n"],
)  # fmt: skip
def test_an_unknown_mode_is_refused_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("--bundle", "nowhere", "--prompt", "a", "--latents-out", "l", "--switch", text)
    assert main(["generate", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --switch {text!r}") and error.count("\n") == 1
    assert "blend:4" in error and "exact" in error
    assert not list(tmp_path.iterdir())


# ---- mixtures --------------------------------------------------------------------------------


def test_the_new_prompts_share_grows_evenly_to_the_whole() -> None:
    start, target = np.zeros((1, 2, 3)), np.full((2, 2, 3), 8.0)
    blend, shares = Blend.between(start, target, 4), []
    while not blend.is_over:
        blend = blend.advanced()
        assert blend.states.shape == (2, 2, 3)
        shares.append(float(blend.states.mean() / 8))
    assert shares == [0.25, 0.5, 0.75, 1.0]


@given(
    values=st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=6),
    others=st.lists(st.floats(-50, 50, width=32), min_size=6, max_size=6),
    blocks=st.integers(1, 9),
    dtype=st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]),
)
def test_equal_prompts_and_the_end_of_a_blend_keep_their_bits(
    values: list[float], others: list[float], blocks: int, dtype: Any
) -> None:
    prompt, other = (np.array(part, dtype)[: len(values)] for part in (values, others))
    same, ending = Blend.between(prompt, prompt, blocks), Blend.between(other, prompt, blocks)
    for _ in range(blocks):
        same, ending = same.advanced(), ending.advanced()
        assert np.array_equal(same.states.astype(dtype), prompt)
    assert np.array_equal(ending.states.astype(dtype), prompt)


# ---- which prompt at which block -------------------------------------------------------------


class Contexts:
    """A context that shows which states it was made of."""

    def of_states(self, states: Array) -> Mapping[str, Array]:
        return {"of": states.copy()}


class Encoder:
    """Every letter has a number; nothing else can be encoded."""

    def __init__(self) -> None:
        self.contexts, self.prepared = Contexts(), list[str]()

    def states_of(self, prompt: str) -> Array:
        if len(prompt) != 1:
            raise EngineError(f"{prompt}: a test")
        return np.full((1, 1, 1), ord(prompt) - ord("a"), np.float32)

    def context_of(self, prompt: str) -> Mapping[str, Array]:
        return self.contexts.of_states(self.states_of(prompt))

    def prepare(self, prompt: str) -> None:
        self.prepared.append(prompt)

    def close(self) -> None:
        pass


def shown(change: Change | None) -> float | tuple[float, str] | None:
    """What a block is conditioned on; with the re-cache that goes with it, if any."""
    if change is None:
        return None
    context, recache = change
    of = float(context["of"].item())
    return of if recache == "none" else (of, recache)


def timeline(mode: str, starts: Mapping[int, str], **resumed: Any) -> PromptTrack:
    cues = [Cue(frame, prompt) for frame, prompt in starts.items()]
    source: Any = Encoder()
    return PromptTrack(source, cues, SwitchMode.parse(mode), **resumed)


def replayed(mode: str, starts: Mapping[int, str]) -> PromptTrack:
    numbers = {prompt: number for number, prompt in enumerate(starts.values())}
    prompts = {number: Encoder().states_of(prompt) for prompt, number in numbers.items()}
    schedule = tuple(Switch(frame, numbers[prompt]) for frame, prompt in starts.items())
    empty = np.zeros((1, 99, 1), np.float32)
    contexts: Any = Contexts()
    replay = Replay(empty, empty, prompts, schedule)
    recorded = RecordedPrompts(contexts, replay_states(replay))
    return PromptTrack(recorded, replay_cues(replay, BLOCK), SwitchMode.parse(mode))


SOURCES: list[Callable[..., Any]] = [timeline, replayed]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("mode", "starts", "expected"),
    [
        ("exact", {0: "a", 6: "e"}, [(0, "exact"), None, (4, "exact"), None]),
        ("partial", {0: "a", 6: "e"}, [(0, "partial"), None, (4, "partial"), None]),
        ("none", {0: "a", 6: "e"}, [0, None, 4, None]),
        ("blend:1", {0: "a", 6: "e"}, [0, None, 4, None]),
        ("blend:4", {0: "a", 3: "e"}, [0, 1, 2, 3, 4, None]),
        # From the states in use: 2 of 4 is where the first blend has come to.
        ("blend:4", {0: "a", 3: "e", 9: "k"}, [0, 1, 2, 4, 6, 8, 10, None]),
        ("blend:2", {0: "a", 3: "e", 9: "a"}, [0, 2, 4, 2, 0, None]),
        ("blend:4", {0: "a", 3: "a"}, [0, 0, 0, 0, 0, None]),
        ("blend:2", {0: "a", 3: "c", 6: "e", 9: "g"}, [0, 1, 2.5, 4.25, 6, None]),
    ],
)
def test_what_blocks_are_conditioned_on(
    source: Callable[..., PromptTrack], mode: str, starts: dict[int, str], expected: list[Any]
) -> None:
    track = source(mode, starts)
    found: list[Any] = [shown(track.due(BLOCK * block)) for block in range(len(expected))]
    # The first prompt finds no cache, whatever the mode says about one.
    assert found[1:] == expected[1:]
    assert (found[0] if isinstance(found[0], float) else found[0][0]) == 0
    assert track.blend is None


def test_the_prompt_is_the_one_that_a_video_turns_to() -> None:
    track = timeline("blend:4", {0: "a", 3: "e"})
    assert shown(track.due(0)) == 0
    track.due(3)
    assert track.prompt == "e"
    assert track.blend is not None and (track.blend.made, track.blend.blocks) == (1, 4)


@pytest.mark.parametrize("mode", ["exact", "blend:4"])
def test_the_prompt_after_the_next_is_prepared(mode: str) -> None:
    track = timeline(mode, {0: "a", 3: "b", 9: "c"})
    encoder: Any = track.source
    for frame, prepared in ((0, ["b"]), (3, ["b", "c"]), (6, ["b", "c"]), (9, ["b", "c"])):
        track.due(frame)
        assert encoder.prepared == prepared


def quarter_turned() -> Blend:
    """A quarter of the way from a to e."""
    return Blend.between(np.zeros((1, 1, 1)), np.full((1, 1, 1), 4.0), 4).advanced()


def due(track: PromptTrack, *frames: int) -> list[Any]:
    return [shown(track.due(frame)) for frame in frames]


def test_a_resumed_blend_goes_on() -> None:
    kept = timeline("exact", {}, prompt="e", blend=quarter_turned())
    assert due(kept, 9, 12, 15, 18) == [2, 3, 4, None]
    assert kept.blend is None and timeline("exact", {}, prompt="e").due(9) is None
    turned = timeline("blend:2", {12: "g"}, prompt="e", blend=quarter_turned())
    assert due(turned, 9, 12, 15, 18) == [2, 4, 6, None]


def test_a_resumed_video_blends_from_its_prompt() -> None:
    assert due(timeline("blend:2", {12: "g"}, prompt="e"), 9, 12, 15, 18) == [None, 5, 6, None]


def test_another_mode_ends_a_resumed_blend() -> None:
    track = timeline("exact", {12: "g"}, prompt="e", blend=quarter_turned())
    assert due(track, 9, 12, 15) == [2, (6, "exact"), None]


# ---- prompts that are asked for on the way ---------------------------------------------------


def test_the_latest_prompt_that_was_asked_for_counts() -> None:
    track = timeline("none", {0: "a"})
    encoder: Any = track.source
    assert due(track, 0, 3) == [0, None]
    track.ask("c")
    track.ask("e")
    assert encoder.prepared == ["c", "e"]
    assert due(track, 6, 9) == [4, None]
    assert track.prompt == "e"


def test_one_that_is_asked_for_may_have_a_mode_of_its_own() -> None:
    track = timeline("partial", {0: "a"})
    track.due(0)
    track.ask("e", SwitchMode.parse("blend:2"))
    assert due(track, 3, 6, 9) == [2, 4, None]
    track.ask("c")
    assert due(track, 12) == [(2, "partial")]


def test_it_takes_the_place_of_the_cue_at_its_block_and_not_of_later_ones() -> None:
    track = timeline("none", {0: "a", 3: "b", 9: "c"})
    track.due(0)
    track.ask("e")
    assert due(track, 3, 6, 9) == [4, None, 2]


def test_it_may_come_before_the_first_block_and_in_a_blend() -> None:
    track = timeline("blend:2", {0: "a"})
    track.ask("e")
    assert due(track, 0) == [4]
    track.ask("i")
    assert due(track, 3) == [6]
    track.ask("a")
    assert due(track, 6, 9, 12) == [3, 0, None]


def test_a_prompt_that_cannot_be_encoded_changes_nothing_else() -> None:
    for blend in (None, quarter_turned()):
        track = timeline("exact", {}, prompt="e", blend=blend)
        track.ask("no letter")
        with pytest.raises(EngineError, match="no letter"):
            track.due(9)
        assert track.shown == Shown("e", blend)
        assert due(track, 9) == [2 if blend else None]


def test_a_track_goes_back() -> None:
    track = timeline("blend:4", {0: "a", 3: "e"})
    assert due(track, 0, 3) == [0, 1]
    track.ask("i")
    there = track.shown
    assert due(track, 6, 9) == [2.75, 4.5]
    track.ask("z")
    track.go_back(there)
    assert (track.prompt, track.shown) == ("e", there)
    assert due(track, 6, 9) == [2.75, 4.5]


# ---- the command -----------------------------------------------------------------------------


def generate(bundle: Path, *arguments: object, code: int = 0) -> None:
    values = ["generate", "--bundle", bundle, *arguments, "--quiet", "--overwrite"]
    assert main([str(value) for value in values]) == code


def latents(path: str) -> Array:
    return load_file(path)["latents"]


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


pytestmark = pytest.mark.usefixtures("in_empty_folder")


def test_replays_take_the_mode(golden_bundle_fp32: Path, relative_error: Error) -> None:
    replay = ("--replay", GOLDEN / "switch15_global_sink.replay.safetensors")
    expected = load_file(GOLDEN / "switch15_global_sink.expected.safetensors")["latents"]
    errors = {}
    for mode in ("exact", "partial", "none", "blend:3"):
        generate(golden_bundle_fp32, *replay, "--switch", mode, "--latents-out", "l")
        errors[mode] = relative_error(latents("l"), expected)
    assert errors["exact"] <= 1e-5
    assert 1e-4 < errors["partial"] < errors["none"] < errors["blend:3"]


def test_a_record_says_how_prompts_changed(video_bundle: Path) -> None:
    prompts = ("--prompt", "a", "--prompt-at", 3, "b", "--frames", 6)
    generate(video_bundle, *prompts, "--out", "a.mp4")
    generate(video_bundle, *prompts, "--out", "b.mp4", "--switch", "blend:4")
    modes = [json.loads(Path(f"{name}.mp4.json").read_text())["switch"] for name in "ab"]
    assert modes == ["exact", "blend:4"]


@pytest.mark.parametrize("cut", [6, 9, 12, 15])
def test_a_resumed_blend_is_bit_for_bit_the_one_that_was_not_cut(
    video_bundle: Path, cut: int
) -> None:
    prompts = ("--prompt", "a", "--prompt-at", 6, "b")
    whole = ("--switch", "blend:3", "--frames", 18, "--latents-out", "whole")
    generate(video_bundle, *prompts, *whole)
    given_now = prompts if cut > 6 else prompts[:2]
    part = ("--frames", cut, "--latents-out", "first", "--save-state", "state")
    generate(video_bundle, *given_now, "--switch", "blend:3", *part)
    assert (load_state(Path("state")).blend is not None) == (6 < cut < 15)
    # Where the blend has begun, its prompts need not be given again; its mode never.
    again = () if cut > 6 else prompts
    rest = ("--frames", 18 - cut, "--latents-out", "second")
    generate(video_bundle, "--resume", "state", *again, *rest)
    joined = np.concatenate([latents("first"), latents("second")], axis=1)
    assert np.array_equal(joined, latents("whole"))


def test_a_prompt_in_the_middle_of_a_resumed_blend(video_bundle: Path) -> None:
    prompts = ("--prompt", "a", "--prompt-at", 3, "b", "--prompt-at", 9, "c")
    mode = ("--switch", "blend:3")
    generate(video_bundle, *prompts, *mode, "--frames", 15, "--latents-out", "whole")
    part = ("--frames", 6, "--latents-out", "first", "--save-state", "state")
    generate(video_bundle, *prompts[:5], *mode, *part)
    generate(video_bundle, "--resume", "state", *prompts, "--frames", 9, "--latents-out", "second")
    joined = np.concatenate([latents("first"), latents("second")], axis=1)
    assert np.array_equal(joined, latents("whole"))


def test_a_resumed_run_may_choose_another_mode(video_bundle: Path) -> None:
    part = ("--frames", 6, "--latents-out", "l", "--save-state", "state", "--switch", "none")
    generate(video_bundle, "--prompt", "a", *part)
    assert load_state(Path("state")).switch == SwitchMode("none")
    resumed = ("--resume", "state", "--prompt", "b", "--frames", 3, "--latents-out")
    generate(video_bundle, *resumed, "kept")
    generate(video_bundle, *resumed, "exact", "--switch", "exact")
    prompts = ("--prompt", "a", "--prompt-at", 6, "b", "--frames", 9, "--latents-out")
    for mode, found in (("none", "kept"), ("exact", "exact")):
        generate(video_bundle, *prompts, "whole", "--switch", mode)
        assert np.array_equal(latents(found), latents("whole")[:, 6:])


# ---- the text encoder's states ---------------------------------------------------------------


def test_contexts_are_those_of_the_states(video_bundle: Path) -> None:
    with Engines(open_bundle(video_bundle)) as engines:
        contexts: PromptContexts = engines.contexts(1)
        encoder = engines.prompt_encoder(1)
        states = encoder.states_of("ab")
        assert states.shape == (1, 5, 12)
        # Behind the prompt's end there is nothing.
        assert states[:, :3].any(axis=-1).all() and not states[:, 3:].any()
        expected, found = encoder.context_of("ab"), contexts.of_states(states)
        assert all(np.array_equal(expected[name], found[name]) for name in expected)


# ---- replays ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "late"),
    [((0, 6), None), ((0, 4, 5), 5), ((0, 7), 7), ((0, 3, 9), 9), ((0, 10**15), 10**15)],
)
def test_a_replay_shows_every_prompt_or_is_refused(
    golden_config: ModelConfig, frames: tuple[int, ...], late: int | None
) -> None:
    shape = golden_config.latent_shape
    tensors = {
        "noise": np.zeros((1, 9, *shape), np.float32),
        "renoise": np.zeros((3, 3, 1, 3, *shape), np.float32),
        "prompt.0": np.zeros((1, 16, 64), np.float32),
    }
    schedule = [{"frame": frame, "prompt": 0} for frame in frames]
    save_file(tensors, "r", {"schedule": json.dumps(schedule)})
    if late is None:
        assert len(load_replay(Path("r"), golden_config).schedule) == len(frames)
        return
    with pytest.raises(UsageError, match=rf"^r: .*for frame {late} .*last block starts at 6"):
        load_replay(Path("r"), golden_config)
