# ruff: noqa: RUF001

import random
import re
import string
import sys
import unicodedata

import jiwer
import pytest

from omnikit.evaluate.text_normalisation import is_unspaced, normalizer, normalizer_version, of_language, plain
from omnikit.evaluate.wer import Pair, remarks, score

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
    """Error rates are those of jiwer for texts with numbers, contractions and punctuation, and for empty texts."""
    normalize, rng = normalizer(name), random.Random(0)
    words = [*WORDS, "it's", "Mr.", "colour", "twenty", "-", "DON'T,", "$5", "ü", "(laughs)", "uh", "one", "1st"]
    for _ in range(60):
        texts = [
            [" ".join(rng.choices(words, k=rng.randint(0, 7))) for _ in range(2)] for _ in range(rng.randint(1, 6))
        ]
        references, hypotheses = ([normalize(text) for text in side] for side in zip(*texts, strict=True))
        if any(references):  # jiwer has no rate for empty references
            rates = score([Pair(str(i), *pair) for i, pair in enumerate(texts)], normalize)
            assert rates.wer == pytest.approx(100 * jiwer.wer(references, hypotheses)), texts
            assert rates.cer == pytest.approx(100 * jiwer.cer(references, hypotheses)), texts


def test_a_normaliser_is_named_with_its_version():
    assert re.fullmatch(r"english \(openai-whisper 20\d{6}(\.\d+)?\)", normalizer_version("english"))
    assert re.fullmatch(r"plain \(omnikit [\d.]+, revision 2, Unicode [\d.]+\)", normalizer_version("plain"))


def test_corpus_rate_weighs_words_and_mean_weighs_utterances():
    rates = score([Pair("a", "one two three four", "one two three four"), Pair("b", "five", "six")], plain)
    assert (rates.wer, rates.wer_utterance_mean) == (pytest.approx(20), pytest.approx(50))


def test_an_empty_hypothesis_is_all_deletions_and_an_empty_reference_all_insertions():
    rates = score([Pair("a", "one two", ""), Pair("b", "", "three")], plain)
    assert (rates.deletions, rates.insertions, rates.substitutions, rates.words) == (2, 1, 0, 2)
    assert rates.wer_utterance_mean == pytest.approx(100)


@pytest.mark.parametrize(
    "hypotheses", [["hi"], ["hi there", ""], [""], ["", "a b c"]], ids=lambda texts: "|".join(texts)
)
@pytest.mark.parametrize("reference", ["...", ""])
def test_references_that_are_empty_after_normalisation_have_the_rate_of_jiwer(reference, hypotheses):
    """Error rates for empty references are those of jiwer, so that hypotheses with inserted words never score 0 %."""
    rates = score([Pair(str(i), reference, text) for i, text in enumerate(hypotheses)], plain)
    empty = [""] * len(hypotheses)
    assert rates.wer == rates.wer_utterance_mean == pytest.approx(100 * jiwer.wer(empty, hypotheses))
    assert rates.cer == pytest.approx(100 * jiwer.cer(empty, hypotheses))
    assert rates.empty_references == len(hypotheses) and rates.words == 0


def test_empty_references_are_counted_among_others():
    pairs = [Pair("a", "one two", "one two"), Pair("b", "?!", "three"), Pair("c", "", "")]
    rates = score(pairs, plain)
    assert (rates.empty_references, rates.insertions, rates.wer) == (2, 1, pytest.approx(50))
    assert rates.as_dict()["empty_references"] == 2


def test_alignments_are_written(tmp_path):
    score([Pair("only-one", "one two", "one three")], plain, alignments=tmp_path / "wer.txt")
    text = (tmp_path / "wer.txt").read_text()
    assert "%WER 50.00" in text and "only-one" in text and "three" in text


def test_plain_keeps_every_word_where_english_joins_numbers():
    assert plain(" It's  ONE, two-three_four! ") == "it's one two three four"
    assert normalizer("english")("ONE TWO, THREE") == "123"


TEXTS = [
    "schöne Grüße", "Ça va, l’été?", "मुझे हिन्दी पसंद है", "বাংলা ভাষা", "שָׁלוֹם עוֹלָם", "مَرْحَبًا بِالعَالَم",
    "สวัสดี น้ำ", "Việt Nam", "ਪੰਜਾਬੀ ਭਾਸ਼ਾ", "தமிழ் மொழி", "ΟΔΟΣ ὀδός", "안녕하세요 세계", "한국어, 中文。",
    "Ёлка й", "ሰላም ልዑል", "x² ½ Ⅳ",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_the_same_in_every_unicode_form(text):
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    assert plain(forms[0]) == plain(forms[1]) == plain(plain(text)) == unicodedata.normalize("NFC", plain(text))
    assert score([Pair("a", *forms)], plain).cer == 0


@pytest.mark.parametrize("text", TEXTS)
def test_words_stay_whole_in_every_script(text):
    """Text normalisation keeps the number of words, and every letter, combining mark and digit, in every script."""
    bare = "".join(char for char in unicodedata.normalize("NFD", text) if unicodedata.category(char)[0] in "LMNZ")
    if "’" not in text:
        assert plain(text) == unicodedata.normalize("NFC", bare.casefold())
    assert len(plain(text).split()) == len(text.split())


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("Don’t, don‘t donʼt don＇t!", "don't don't don't don't"),
        ("the dogs’ bowl; ’tis rock ’n’ roll", "the dogs' bowl 'tis rock 'n' roll"),
        ("‘Hello, world,’ she said: ‘don’t’", "hello world she said don't"),
        ("it's 'n' the dogs' ' - ''", "it's 'n' the dogs'"),
        ("STRASSE Straße straẞe", "strasse strasse strasse"),
        ("क्\u200dष می\u200cخواهم \u200d", "क्\u200dष می\u200cخواهم"),
        ("👩\u200d👩\u200d👧 ❤\ufe0f I 👋🏽", "i"),
        ("Donau\u00addampf \ufeffa\u200bb \u200fשלום\u200e", "donaudampf a b שלום"),
        ("١٢٣ १२३ 12,5 a_b", "١٢٣ १२३ 12 5 a b"),
        ("\u0301 … ¿?", ""),
    ],
)
def test_what_belongs_to_a_word(typed, expected):
    assert plain(typed) == expected


def test_plain_english_is_what_it_was():
    """ASCII text is normalised by the rules behind published error rates, except that lone apostrophes are removed."""
    rng, signs = random.Random(0), string.ascii_letters + string.digits + string.punctuation + " " * 20 + "\n\t"
    for _ in range(2000):
        text = "".join(rng.choices(signs, k=40))
        before = re.sub(r"[^\w\s']|_", " ", text.lower()).split()
        assert plain(text) == " ".join(word for word in before if word.strip("'")), text


@pytest.mark.parametrize("language", ["zh", "zh-CN", "cmn", "ja", "th"])
def test_languages_without_spaces_are_scored_by_characters(language):
    pairs = [Pair("a", "今天 天气很好", "今天天气很好 吗", language), Pair("b", "好", "坏", language)]
    rates = score(pairs, plain)
    assert is_unspaced(language) and rates.words == 7
    assert rates.cer == rates.wer == pytest.approx(100 * jiwer.cer(["今天天气很好", "好"], ["今天天气很好吗", "坏"]))
    assert rates.wer_utterance_mean == pytest.approx((100 / 6 + 100) / 2)
    stored = rates.as_dict()
    assert stored["wer"] is stored["wer_utterance_mean"] is None and stored["cer"] == round(rates.cer, 4)
    assert remarks(rates) == ["scored by characters, without spaces: 2 of 2 utterances"]


def test_a_character_counts_like_a_word_where_languages_are_mixed():
    rates = score([Pair("a", "one two", "one", "en"), Pair("b", "你 好", "你坏", "zh")], plain)
    assert (rates.words, rates.wer, rates.has_words) == (4, pytest.approx(50), True)
    assert rates.cer == pytest.approx(100 * (4 + 1) / (7 + 2))
    assert score([Pair("a", "你 好", "你好")], plain).wer == 100  # nobody said that this is Chinese


def test_each_language_has_its_own_normaliser():
    by_language = normalizer("by_language")
    assert of_language(by_language, "en-GB")("Two colours [noise]") == "2 colors"
    assert of_language(by_language, "de")("Zwei Straßen (lacht), 20!") == "zwei straßen 20"
    assert by_language("Zwei Straßen") == "zwei straßen" and of_language(plain, "zh") is plain
    rates = score([Pair("a", "twenty", "20", "en"), Pair("b", "zwanzig", "20", "de")], by_language)
    assert rates.wer == 50


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("2024年3月5日，有1,234个人。", "二零二四年三月五日有一千二百三十四个人"),
        ("５０％ 的人", "百分之五十的人"),
        ("3.14 （笑）", "三点一四"),
        ("百分之五十的人", "百分之五十的人"),
    ],
)
def test_chinese_numbers_are_written_as_they_are_said(typed, expected):
    pytest.importorskip("cn2an")
    assert normalizer("chinese")(typed) == expected
    assert score([Pair("a", expected, typed, "yue")], normalizer("by_language")).wer == 0


def test_chinese_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cn2an", None)
    with pytest.raises(ValueError, match=r"chinese: needs the Python package 'cn2an'.*omnikit\[chinese\]"):
        normalizer("chinese")


def test_unknown_normalizer_names_the_choices():
    with pytest.raises(ValueError, match=r"--normalizer german.*english, plain"):
        normalizer("german")
