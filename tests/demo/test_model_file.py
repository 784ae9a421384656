from longlive_trt.demo.captions import vocabulary, words
from longlive_trt.demo.geometry import model_config
from longlive_trt.demo.scenes import ATTRIBUTES

PROMPTS = model_config().prompts


def test_everything_that_the_world_has_is_said_to_be_known() -> None:
    said = set(words(PROMPTS.knows))
    for values in ATTRIBUTES.values():
        assert said.issuperset(values)
    assert "\n" not in PROMPTS.knows


def test_suggestions_are_in_words_that_it_knows() -> None:
    known = set(vocabulary())
    assert PROMPTS.suggestions
    for text in PROMPTS.suggestions:
        assert known.issuperset(words(text)), text


def test_the_demo_command_s_prompts_are_in_words_that_it_knows() -> None:
    from longlive_trt.commands.running.demo import PROMPTS as SHOWN

    for text in SHOWN.values():
        assert set(vocabulary()).issuperset(words(text)), text
