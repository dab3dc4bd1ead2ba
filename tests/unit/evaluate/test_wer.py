import random
import re

import jiwer
import pytest

from omnikit.evaluate.text import normalizer, normalizer_version, plain
from omnikit.evaluate.wer import Pair, score

WORDS = ["the", "cat", "sees", "a", "red", "dog", "and", "one", "blue", "one"]


def random_pairs(seed: int, count: int = 25) -> list[Pair]:
    rng = random.Random(seed)
    texts = [[" ".join(rng.choices(WORDS, k=rng.randint(1, 8))) for _ in range(2)] for _ in range(count)]
    return [Pair(str(i), *pair) for i, pair in enumerate(texts)]


@pytest.mark.parametrize("seed", range(4))
def test_rates_are_those_of_jiwer(seed):
    pairs = random_pairs(seed)
    references, hypotheses = [p.reference for p in pairs], [p.hypothesis for p in pairs]
    rates = score(pairs, plain)
    words = jiwer.process_words(references, hypotheses)
    assert rates.wer == pytest.approx(100 * words.wer)
    assert rates.cer == pytest.approx(100 * jiwer.cer(references, hypotheses))
    errors = words.insertions + words.deletions + words.substitutions
    assert rates.insertions + rates.deletions + rates.substitutions == errors
    assert rates.insertions - rates.deletions == words.insertions - words.deletions
    each = [100 * jiwer.wer(r, h) for r, h in zip(references, hypotheses, strict=True)]
    assert rates.wer_utterance_mean == pytest.approx(sum(each) / len(each))
    assert rates.exact == pytest.approx(100 * sum(r == h for r, h in zip(references, hypotheses, strict=True)) / 25)


@pytest.mark.parametrize("name", ["plain", "english"])
def test_any_pairs_have_the_rate_of_jiwer_on_the_same_normalised_text(name):
    """Numbers, spellings, contractions, punctuation, empty texts."""
    normalize, rng = normalizer(name), random.Random(0)
    words = [*WORDS, "it's", "Mr.", "colour", "twenty", "-", "DON'T,", "$5", "ü", "(laughs)", "uh", "one", "1st"]
    for _ in range(60):
        texts = [
            [" ".join(rng.choices(words, k=rng.randint(0, 7))) for _ in range(2)] for _ in range(rng.randint(1, 6))
        ]
        references, hypotheses = ([normalize(text) for text in side] for side in zip(*texts, strict=True))
        if any(references):  # else there is no rate
            rates = score([Pair(str(i), *pair) for i, pair in enumerate(texts)], normalize)
            assert rates.wer == pytest.approx(100 * jiwer.wer(references, hypotheses)), texts
            assert rates.cer == pytest.approx(100 * jiwer.cer(references, hypotheses)), texts


def test_a_normaliser_is_named_with_its_version():
    assert re.fullmatch(r"english \(openai-whisper 20\d{6}(\.\d+)?\)", normalizer_version("english"))
    assert normalizer_version("plain").startswith("plain (omnikit ")


def test_corpus_rate_weighs_words_and_mean_weighs_utterances():
    rates = score([Pair("a", "one two three four", "one two three four"), Pair("b", "five", "six")], plain)
    assert (rates.wer, rates.wer_utterance_mean) == (pytest.approx(20), pytest.approx(50))


def test_an_empty_hypothesis_is_all_deletions_and_an_empty_reference_all_insertions():
    rates = score([Pair("a", "one two", ""), Pair("b", "", "three")], plain)
    assert (rates.deletions, rates.insertions, rates.substitutions, rates.words) == (2, 1, 0, 2)
    assert rates.wer_utterance_mean == pytest.approx(100)


def test_alignments_are_written(tmp_path):
    score([Pair("only-one", "one two", "one three")], plain, alignments=tmp_path / "wer.txt")
    text = (tmp_path / "wer.txt").read_text()
    assert "%WER 50.00" in text and "only-one" in text and "three" in text


def test_plain_keeps_every_word_where_english_joins_numbers():
    assert plain(" It's  ONE, two-three_four! ") == "it's one two three four"
    assert normalizer("english")("ONE TWO, THREE") == "123"


def test_unknown_normalizer_names_the_choices():
    with pytest.raises(ValueError, match=r"--normalizer german.*english, plain"):
        normalizer("german")
