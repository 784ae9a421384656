"""Ideas in attention, with nothing changed and with something changed, on made-up tokens."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.quality import trials, ways
from benchmarks.quality.rolling import Places, Seen, Way, turned
from benchmarks.quality.ways import EarlyExit, MergedQueries, NearSighted, Pooled
from longlive_trt.demo.geometry import model_config
from longlive_trt.export.models.transformer import rope_table, rotate

GRID = model_config().token_grid
TOKENS = model_config().tokens_per_frame
FRAMES, OWN, SINK = 12, 3, 3


@pytest.fixture
def seen() -> Seen:
    """The full window, of two heads."""
    torch.manual_seed(0)
    places = Places.of(torch.arange(FRAMES), GRID)
    keys, values = (torch.randn(1, FRAMES * TOKENS, 2, 64) for _ in range(2))
    own = OWN * TOKENS
    q = torch.randn(1, own, 2, 64)
    return Seen(
        0, q, places[-own:], keys, values, places, sink=SINK * TOKENS, own=own, is_recache=False
    )


def changed(seen: Seen, **changes: Any) -> Seen:
    return Seen(**{**vars(seen), **changes})


def test_places_turn_as_the_models_do(seen: Seen) -> None:
    expected = rotate(seen.keys, rope_table(torch.arange(FRAMES), GRID, 64))
    torch.testing.assert_close(turned(seen.keys, seen.places), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", [Pooled(), MergedQueries(0.0), EarlyExit(0, 1)])
def test_nothing_is_changed_by_an_idea_of_no_size(way: Way, seen: Seen) -> None:
    torch.testing.assert_close(way.attend(seen), Way().attend(seen), rtol=1e-5, atol=1e-5)
    assert way.layers(0, 6) == 6


@pytest.mark.parametrize("way", [Pooled(2), Pooled(1, 1, 2), Pooled(1, 2, 2)])
def test_equal_frames_lose_nothing_when_pooled(way: Pooled, seen: Seen) -> None:
    """Keys that are equal and at one place attend as their mean that counts as often."""
    past = slice(seen.sink, -seen.own)
    keys, values, at = seen.keys.clone(), seen.values.clone(), seen.places.at.clone()
    keys[:, past], values[:, past], at[past] = keys[:, :1], values[:, :1], at[:1]
    same = changed(seen, keys=keys, values=values, places=Places(at))
    torch.testing.assert_close(way.attend(same), Way().attend(same), rtol=1e-4, atol=1e-5)
    assert (way.attend(seen) - Way().attend(seen)).abs().max() > 1e-3
    again = changed(seen, is_recache=True)
    assert torch.equal(way.attend(again), Way().attend(again))


def test_chosen_heads_see_the_block_alone(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "chosen_heads", lambda share: ((0, 1), (3, 0)))
    found, plain = NearSighted(0.25).attend(seen), Way().attend(seen)
    assert torch.equal(found[:, :, 0], plain[:, :, 0])
    alone = changed(seen, keys=seen.keys[:, -seen.own :], values=seen.values[:, -seen.own :],
                    places=seen.places[-seen.own :], sink=0)  # fmt: skip
    torch.testing.assert_close(found[:, :, 1], Way().attend(alone)[:, :, 1], rtol=1e-4, atol=1e-5)
    with_sink = NearSighted(0.25, with_sink=True).attend(seen)
    assert not torch.allclose(with_sink[:, :, 1], found[:, :, 1])


def forget_mass() -> None:
    for remembered in (ways.attention_mass, ways.chosen_heads):
        remembered.cache_clear()


@pytest.fixture
def anew() -> Iterator[None]:
    """What was read of the attention's mass is read again, here and by others."""
    forget_mass()
    yield
    forget_mass()


@pytest.mark.usefixtures("anew")
def test_heads_of_other_weights_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "MASS", tmp_path / "mass.json")
    own = [[0.1, 0.9], [0.8, 0.2]]
    ways.MASS.write_text(json.dumps({"weights": ways.weights(), "own": own}))
    assert ways.chosen_heads(0.5) == ((0, 1), (1, 0))
    forget_mass()
    monkeypatch.setattr(ways, "weights", lambda: {"transformer": "others"})
    with pytest.raises(SystemExit, match=r"python -m benchmarks\.quality\.heads"):
        ways.chosen_heads(0.25)
    # What asks for them is refused before anything else is measured.
    monkeypatch.setattr(sys, "argv", ["trials", "--trials", "attention,steps"])
    with pytest.raises(SystemExit, match=r"mass\.json: not of these weights"):
        trials.main()


def test_equal_queries_merge_without_loss(seen: Seen) -> None:
    q, at = seen.q.clone(), seen.q_places.at.clone()
    q[:, 1::2], at[1::2] = q[:, ::2], at[::2]
    same = changed(seen, q=q, q_places=Places(at))
    found = MergedQueries(0.5).attend(same)
    torch.testing.assert_close(found, Way().attend(same), rtol=1e-4, atol=1e-5)
    assert (MergedQueries(0.5).attend(seen) - Way().attend(seen)).abs().max() > 1e-3


def test_an_early_exit_is_for_first_steps_alone() -> None:
    way = EarlyExit(2, 1)
    assert [way.layers(step, 6) for step in (0, 1, None)] == [4, 6, 6]


@pytest.mark.parametrize(("name", "error"), [("int8", 1 / 127), ("fp8", 1 / 16)])
def test_a_rounded_cache_is_near(name: str, error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-4, 4, 200).view(1, 10, 2, 10)
    monkeypatch.setattr(ways, "_largest", lambda: [{"k": [4.0, 4.0]}])
    kept = ways.RoundedCache(name).kept(0, "k", x)
    assert 0 < float((kept - x).abs().max()) <= 4 * error


def test_what_an_idea_is_known_by_is_the_same_in_every_process() -> None:
    """Or what one process has measured would be measured again by the next."""
    keys = [ways.in_torch(name, way).key for name, _, way in ways.IDEAS]
    assert len(set(keys)) == len(keys)
    assert not [key for key in keys if " at 0x" in key]
