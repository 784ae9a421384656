"""Prompt sets, and the videos that are made of them."""

from pathlib import Path

import pytest

from longlive_trt.configs import ModelConfig, load_config
from longlive_trt.demo.geometry import model_config
from longlive_trt.demo.scenes import ATTRIBUTES
from longlive_trt.demo.words import word_ids, words
from longlive_trt.errors import UsageError
from longlive_trt.quality.cases import LONG, PROMPT, TIMELINE, Lengths, cases
from longlive_trt.quality.prompts import PromptSet, read_prompts, shipped_file


@pytest.mark.parametrize("config", [model_config(), load_config("longlive-1.3b")])
def test_the_shipped_sets(config: ModelConfig) -> None:
    shipped = read_prompts(shipped_file(config))
    assert (len(shipped.prompts), len(shipped.timelines)) == (40, 10)
    texts = [asked.prompt for asked in shipped.prompts]
    assert len(set(texts)) == 40
    assert all(len(timeline) == 3 for timeline in shipped.timelines)


def test_the_demos_set_says_what_can_be_judged() -> None:
    shipped, known = read_prompts(shipped_file(model_config())), word_ids()
    for asked in (*shipped.prompts, *(one for line in shipped.timelines for one in line)):
        assert {"place", "time", "weather", "traveler", "color", "direction"} <= asked.shows.keys()
        assert all(value in ATTRIBUTES[name] for name, value in asked.shows.items())
        assert all(word in known for word in words(asked.prompt))


def test_videos_of_a_set() -> None:
    config = model_config()
    shipped = read_prompts(shipped_file(config))
    made = cases(shipped, config, Lengths(prompts=2, timelines=1, long=1, long_seconds=30, seed=5))
    assert [(case.kind, case.number) for case in made] == [
        *((PROMPT, 0), (PROMPT, 1), (TIMELINE, 0), (LONG, 0))
    ]
    assert len({case.seed for case in made}) == 4 and made[0].seed == 5
    single, timeline, long = made[0], made[2], made[3]
    assert (single.blocks, single.spans[0].end) == (9, 105)
    assert list(timeline.texts) == [0, 18, 36] and timeline.blocks == 18
    names = [span.name for span in timeline.spans]
    assert names == ["first", "changed", "kept", "changed", "kept"]
    # Two blocks of three latent frames after the switch at 18.
    assert timeline.spans[1].begin == config.video_frames(24)
    stated = shipped.timelines[0]
    assert {**timeline.spans[1].shows, **timeline.spans[2].shows} == stated[1].shows
    assert all(stated[0].shows[name] == v for name, v in timeline.spans[2].shows.items())
    assert long.blocks == 40 and [s.end - s.begin for s in long.spans] == [160, 160]
    assert timeline.prompt_of(17) == stated[0].prompt
    assert timeline.prompt_of(18) == stated[1].prompt


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n\n# a comment\n a dog \n")
    assert [asked.prompt for asked in read_prompts(tmp_path / "p.txt").prompts] == [
        "a cat",
        "a dog",
    ]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.json", "{", "not valid JSON"),
        ("p.json", '{"format": 2, "prompts": [{"prompt": "a"}]}', "format is 2; allowed: 1"),
        ("p.json", '{"format": 1}', "no prompts and no timelines"),
        ("p.json", '{"format": 1, "prompts": [{"prompt": " "}]}', "a text of 1 to 4096"),
        ("p.json", '{"format": 1, "timelines": [[]]}', "a timeline without a prompt"),
        ("p.txt", "# nothing\n", "no prompts and no timelines"),
        ("gone.txt", None, "cannot be read"),
    ],
)
def test_sets_that_cannot_be_used(name: str, text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=words):
        read_prompts(tmp_path / name)


def test_no_videos_at_all() -> None:
    asked = PromptSet(1, read_prompts(shipped_file(model_config())).prompts)
    with pytest.raises(UsageError, match="no videos to make"):
        cases(asked, model_config(), Lengths(prompts=0, timelines=0, long=0))
