import torch

from longlive_trt.demo.scenes import ATTRIBUTES, Scenes, SceneSource, fits


def test_every_traveler_fits_its_place_also_after_a_change() -> None:
    first, second = SceneSource(1).journeys(400, families=30)
    for scenes in (first, second):
        assert all(fits(row["place"], row["traveler"]) for row in scenes.rows())


def test_a_change_keeps_the_land_and_some_attributes() -> None:
    source = SceneSource(2)
    first = source.scenes(300)
    second = source.changed(first)
    assert torch.equal(first.seed, second.seed)
    for name in ATTRIBUTES:
        kept = (getattr(first, name) == getattr(second, name)).float().mean()
        assert 0.3 < kept < 0.98, name


def test_all_values_occur() -> None:
    rows = SceneSource(3).scenes(600).rows()
    for name, values in ATTRIBUTES.items():
        assert {row[name] for row in rows} == set(range(len(values)))


def test_rows_are_scenes_again() -> None:
    scenes = SceneSource(4).scenes(5)
    again = Scenes.of(scenes.rows(), scenes.seed.tolist(), "cpu")
    assert again.rows() == scenes.rows()


def test_the_same_seed_draws_the_same_scenes() -> None:
    assert SceneSource(5).scenes(20).rows() == SceneSource(5).scenes(20).rows()
