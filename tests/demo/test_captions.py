import random

from tokenizers import Tokenizer

from longlive_trt.demo.captions import (
    SPOKEN,
    caption,
    caption_pair,
    stated_caption,
    vocabulary,
    words,
)
from longlive_trt.demo.geometry import model_config
from longlive_trt.demo.scenes import SceneSource
from longlive_trt.demo.words import UNKNOWN_ID, encode, tokenizer, tokenizer_json, word_ids
from longlive_trt.runtime.prompting.tokenizer import PromptTokenizer

TEXT_LEN = model_config().transformer.text_len
ROWS = SceneSource(1).scenes(300).rows()


def test_captions_fit_the_text_length_and_the_vocabulary() -> None:
    known, rng = set(vocabulary()), random.Random(1)
    for row in ROWS:
        said = words(caption(row, rng))
        assert len(said) < TEXT_LEN
        assert set(said) <= known


def test_wordings_differ_and_leave_parts_out() -> None:
    rng = random.Random(2)
    assert len({caption(ROWS[0], rng) for _ in range(50)}) > 45
    stated = [stated_caption(row, rng)[1] for row in ROWS]
    for name in SPOKEN:
        assert any(name not in said for said in stated)
        assert any(name in said for said in stated)


def test_without_dropping_everything_is_stated() -> None:
    row = ROWS[0] | {"pace": 2}
    text, stated = stated_caption(row, random.Random(3), drop=0)
    assert stated == row
    assert text


def test_a_silent_caption_says_the_rest_in_the_same_words() -> None:
    rng = random.Random(5)
    for row in ROWS[:100]:
        text, silent, _ = caption_pair(row | {"pace": 2}, rng, drop=0)
        said, left = words(text), iter(words(text))
        assert all(word in left for word in words(silent))
        assert len(words(silent)) <= len(said) - 3
        assert not {"left", "right", "leftward", "rightward", "races", "fast"} & set(words(silent))


def test_the_product_encodes_prompts_as_training_does() -> None:
    product = PromptTokenizer(Tokenizer.from_str(tokenizer_json()), TEXT_LEN)
    ids, rng = word_ids(), random.Random(4)
    texts = [caption(row, rng) for row in ROWS[:50]]
    texts += ["A Zebra-crossing: 3 RED cars, at night!", "", "red " * 60]
    for text in texts:
        assert product.encode(text).ids.tolist() == encode(text, ids, TEXT_LEN)


def test_ids_are_within_the_text_encoder_s_vocabulary() -> None:
    config = model_config().text_encoder
    assert config is not None
    assert max(word_ids().values()) < config.vocab
    assert tokenizer().token_to_id("zebra") is None
    assert encode("zebra", word_ids(), 4)[0] == UNKNOWN_ID
