"""The home-made tokenizer: whole words, single digits, every text."""

import random

from st4vla.platform.policy.tokenizer import build_tokenizer


def tokens(processor, text):
    return [processor.tokenizer.decode([i]) for i in processor.tokenizer(text)["input_ids"]]


def test_listed_words_are_one_token_each(processor):
    assert tokens(processor, " put the blue ball") == [" put", " the", " blue", " ball"]


def test_digits_stand_alone(processor):
    assert tokens(processor, "<point>[[812, 34]]</point>") == [
        "<point>[[", "8", "1", "2", ", ", "3", "4", "]]</point>",
    ]  # fmt: skip


def test_any_text_comes_back_unchanged(processor):
    generator = random.Random(0)
    for _ in range(200):
        text = "".join(chr(generator.choice([*range(32, 127), *range(0xA0, 0x3000)])) for _ in range(30))
        assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text


def test_the_same_words_in_any_order_make_the_same_tokenizer():
    first, second = build_tokenizer(["red cube", "blue"], 400), build_tokenizer(["blue", "red cube"], 400)
    assert first.get_vocab() == second.get_vocab()


def test_the_vocabulary_keeps_its_limit(processor):
    assert len(processor.tokenizer) <= 512
