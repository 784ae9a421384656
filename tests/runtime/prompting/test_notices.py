"""What whoever wrote a prompt is told."""

from dataclasses import replace

import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Split

from longlive_trt.configs import ModelConfig, PromptsConfig, TransformerConfig
from longlive_trt.runtime.prompting.notices import notices
from longlive_trt.runtime.prompting.tokenizer import PromptTokenizer

WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "car")
CONFIG = ModelConfig(name="small", transformer=TransformerConfig(text_len=8))


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[2]))
    made.normalizer = Lowercase()
    made.pre_tokenizer = Split(Regex("[a-z]+"), behavior="removed", invert=True)
    return PromptTokenizer(made, 8)


def told(tokenizer: PromptTokenizer, prompt: str, config: ModelConfig = CONFIG) -> list[str]:
    return notices(prompt, tokenizer.encode(prompt), config)


def test_known_words_are_no_news(tokenizer: PromptTokenizer) -> None:
    assert told(tokenizer, "A red car!") == []


def test_unknown_words_are_named_once_as_they_were_written(tokenizer: PromptTokenizer) -> None:
    assert told(tokenizer, "Zebras in a red car, zebras in") == [
        "the model small has no word for 'Zebras', 'in', 'zebras' and leaves that out"
    ]


def test_what_the_model_knows_is_said_with_them(tokenizer: PromptTokenizer) -> None:
    config = replace(CONFIG, prompts=PromptsConfig(knows="red cars"))
    (line,) = told(tokenizer, "a zebra", config)
    assert line.endswith("'zebra' and leaves that out; it knows red cars")
    assert told(tokenizer, "a red car", config) == []


def test_of_many_words_the_first_are_named(tokenizer: PromptTokenizer) -> None:
    long = replace(CONFIG, transformer=TransformerConfig(text_len=40))
    prompt = " ".join(f"{chr(97 + i)}{chr(97 + i)}" for i in range(11))
    tokens = PromptTokenizer(tokenizer._tokenizer, 40).encode(prompt)
    (line,) = notices(prompt, tokens, long)
    assert "'hh' and 3 more" in line and "'ii'" not in line


def test_a_cut_prompt_is_told_and_only_what_was_read_of_it(tokenizer: PromptTokenizer) -> None:
    cut, unknown = told(tokenizer, "zebra " + "red " * 8 + "tail")
    assert cut.startswith("the prompt that begins 'zebra red") and "longer than 8 tokens" in cut
    assert "'zebra'" in unknown and "tail" not in unknown
