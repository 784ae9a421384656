"""Live videos of real engines: whatever was typed, the recipe makes the same latents again."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from longlive_trt.cli import main
from longlive_trt.serving.engine import BundleModel, load_model
from longlive_trt.serving.live.encoding import EncodedPicture
from longlive_trt.serving.live.generator import Generator
from longlive_trt.serving.live.plan import Cut
from longlive_trt.serving.live.recipe import SavedVideo, recipe
from longlive_trt.serving.live.schedule import Cue
from longlive_trt.serving.live.session import LiveSession
from longlive_trt.serving.live.wish import Wish
from longlive_trt.serving.settings import Settings

Array = np.ndarray[Any, Any]


class Witness:
    """Keeps the latents of what was handed out, and forgets what was taken back."""

    wants_jpeg = False

    def __init__(self) -> None:
        self.latents: dict[int, Array] = {}
        self.pictures: dict[int, EncodedPicture] = {}
        self.cuts: list[Cut] = []
        self.speculated: list[str] = []
        self.error: BaseException | None = None
        self.changed_event = threading.Event()

    def on_block(self, block: int, made: Any) -> None:
        self.latents[block] = made.latents
        self.changed_event.set()

    def picture(self, picture: EncodedPicture) -> None:
        self.pictures[picture.frame] = picture

    def cut(self, cut: Cut) -> None:
        self.cuts.append(cut)

    def failed(self, error: BaseException) -> None:
        self.error = error

    def applied(self, _cue: Cue, _epoch: int) -> None: ...
    def notice(self, _text: str) -> None: ...
    def changed(self) -> None: ...
    def finished(self) -> None: ...
    def block(self, _stage: str, _seconds: float) -> None: ...
    def rollback(self, _reason: str) -> None: ...

    def speculation(self, outcome: str) -> None:
        self.speculated.append(outcome)

    def wait_for(self, blocks: int, timeout: float = 20) -> None:
        end = time.monotonic() + timeout
        while not set(range(blocks)) <= set(self.latents):
            assert self.error is None, self.error
            assert time.monotonic() < end
            time.sleep(0.005)


@pytest.fixture(scope="module")
def model(video_bundle: Path) -> Iterator[BundleModel]:
    with load_model(video_bundle, "cpu") as model:
        yield model


@pytest.fixture
def play(model: BundleModel, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    generator, sessions = Generator(), []

    def start(**values: Any) -> tuple[LiveSession, Witness]:
        witness = Witness()
        wish = Wish(**{"prompt": "a red car at dusk", "seed": 11, **values})
        session = LiveSession(
            model,
            generator,
            wish,
            witness,
            witness,
            Settings(),
            tmp_path,
            on_block=witness.on_block,
        )
        sessions.append(session)
        return session, witness

    yield start
    for session in sessions:
        session.close().result(30)
        session.discard()
    generator.close()


def remade(session: LiveSession, blocks: int, bundle: Path, folder: Path) -> Array:
    """By the command line, from the recipe."""
    values = recipe(
        session.clock,
        session.cues(),
        seed=session.seed,
        switch=session.switch,
        bundle_key=session.bundle_key,
        end=blocks,
    )
    (folder / "recipe.json").write_text(json.dumps(values))
    arguments = ["generate", "--bundle", str(bundle), "--timeline", str(folder / "recipe.json")]
    assert (
        main([*arguments, "--latents-out", str(folder / "latents"), "--overwrite", "--quiet"]) == 0
    )
    return load_file(folder / "latents")["latents"]


def assert_same(session: LiveSession, witness: Witness, bundle: Path, folder: Path) -> None:
    session.pause()
    time.sleep(0.3)
    with session.plan.lock:
        blocks = session.plan.made
    witness.wait_for(blocks)
    found = np.concatenate([witness.latents[block] for block in range(blocks)], axis=1)
    expected = remade(session, blocks, bundle, folder)
    assert found.shape == expected.shape and found.shape[1] == 3 * blocks
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "switch",
    [
        "exact",
        pytest.param("blend:3", marks=pytest.mark.exhaustive),
        pytest.param("partial", marks=pytest.mark.exhaustive),
        pytest.param("none", marks=pytest.mark.exhaustive),
    ],
)
def test_cuts_drafts_and_edits_leave_the_recipes_bits(
    play: Callable[..., Any], video_bundle: Path, tmp_path: Path, switch: str
) -> None:
    session, witness = play(switch=switch)
    witness.wait_for(3)
    session.interact("a blue boat at night")
    witness.wait_for(4)
    session.draft("a green bird in the fog")
    time.sleep(0.8)
    session.draft("something else")
    time.sleep(0.5)
    session.draft("a white train at noon")
    time.sleep(0.7)
    session.interact("a white train at noon")
    later = session.interact("a purple balloon", frame=session.clock.first_frame(9))
    session.edit(later.cue.id, frame=session.clock.first_frame(7), prompt="a purple bird")
    witness.wait_for(9)
    assert witness.cuts and witness.speculated
    assert_same(session, witness, video_bundle, tmp_path)


def test_a_promoted_draft_is_in_the_recipe(
    play: Callable[..., Any], video_bundle: Path, tmp_path: Path
) -> None:
    session, witness = play()
    witness.wait_for(3)
    for _ in range(10):
        session.draft("a white train at noon")
        time.sleep(0.45)
        if session.interact("a white train at noon").speculation is not None:
            break
        session.interact("a red car")
    assert "promoted" in witness.speculated
    time.sleep(0.5)
    assert_same(session, witness, video_bundle, tmp_path)


def test_a_saved_video_goes_on_bit_for_bit(
    play: Callable[..., Any], video_bundle: Path, tmp_path: Path
) -> None:
    session, witness = play(switch="blend:4")
    witness.wait_for(3)
    session.interact("a blue boat at night")
    time.sleep(1.6)
    saved: SavedVideo = session.save(tmp_path / "one.state").result(30)
    assert 1 <= saved.block <= session.plan.made
    saved.write()
    again = SavedVideo.read(saved.path)
    assert (again.block, again.seed, again.switch) == (saved.block, 11, "blend:4")
    # The one that was saved goes on as if it had not been.
    assert_same(session, witness, video_bundle, tmp_path)
    other, seen = play(prompt="", saved=again)
    assert other.resumed_at == other.clock.first_frame(saved.block)
    other.interact("a white bird", frame=other.clock.first_frame(saved.block + 3))
    blocks = saved.block + 5
    end = time.monotonic() + 60
    while not set(range(saved.block, blocks)) <= set(seen.latents):
        assert time.monotonic() < end and seen.error is None, seen.error
        time.sleep(0.01)
    expected = remade(other, blocks, video_bundle, tmp_path)
    found = np.concatenate([seen.latents[n] for n in range(saved.block, blocks)], axis=1)
    assert np.array_equal(found, expected[:, 3 * saved.block :])


def test_two_sessions_at_a_time_do_not_disturb_each_other(
    play: Callable[..., Any], video_bundle: Path, tmp_path: Path
) -> None:
    both = [play(seed=seed) for seed in (1, 2)]
    for session, witness in both:
        witness.wait_for(3)
        session.interact("a blue boat at night")
    for number, (session, witness) in enumerate(both):
        witness.wait_for(5)
        folder = tmp_path / str(number)
        folder.mkdir()
        assert_same(session, witness, video_bundle, folder)


def test_a_restart_is_the_video_of_its_seed(
    play: Callable[..., Any], video_bundle: Path, tmp_path: Path
) -> None:
    session, witness = play()
    witness.wait_for(3)
    session.restart(5, "a green car")
    time.sleep(0.1)
    witness.latents.clear()
    session.restart(6, None)
    witness.wait_for(3)
    assert session.seed == 6 and [cue.prompt for cue in session.cues()] == ["a green car"]
    time.sleep(0.5)
    assert_same(session, witness, video_bundle, tmp_path)


def test_a_model_of_absolute_positions_ends_where_they_do(
    make_once: Callable[..., Path], mini_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    from tests.fakes.video import add_stand_ins

    mini = mini_bundle("absolute")
    bundle = make_once("mini-video-absolute", lambda path: add_stand_ins(mini, path))
    generator, witness = Generator(), Witness()
    with load_model(bundle, "cpu") as model:
        assert model.facts.blocks == 341
        shared = (witness, witness, Settings(), tmp_path)
        wish = Wish(prompt="a red car", seed=1, frames=60)
        session = LiveSession(model, generator, wish, *shared, on_block=witness.on_block)
        assert session.plan.end == 6
        witness.wait_for(4)
        assert_same(session, witness, bundle, tmp_path)
        session.close().result(30)
        session.discard()
    generator.close()


# ---- recipes that do not fit -----------------------------------------------------------------


def test_a_recipe_of_another_bundle(
    video_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"format": 1, "seed": 1, "switch": "exact", "frames": 6, "bundle_key": "0" * 64}
    values["prompts"] = [{"frame": 0, "prompt": "x"}]
    path = tmp_path / "recipe.json"
    for change, words in (
        ({}, "another bundle"),
        ({"format": 2}, "another version"),
        ({"seed": "1"}, "the recipe's seed is '1'"),
    ):
        path.write_text(json.dumps({**values, **change}))
        arguments = ["generate", "--bundle", str(video_bundle), "--timeline", str(path)]
        assert main([*arguments, "--latents-out", str(tmp_path / "latents")]) == 2
        assert words in capsys.readouterr().err
