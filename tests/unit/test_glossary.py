"""Test that docs/glossary.md explains each term once, in one sentence, and that no outdated word is a term."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text(encoding="utf-8")
TERMS, OLD = PAGE.split("## Old word -> term")
ROW = re.compile(r"^\| (?!term |old word |---)(.+?) \| (.+) \|$", re.M)


def test_each_term_is_explained_once_in_one_sentence():
    explained = ROW.findall(TERMS)
    assert len(explained) > 80
    names = Counter(name for terms, _ in explained for name in terms.split(", "))
    assert [name for name, times in names.items() if times > 1] == []
    for term, meaning in explained:
        assert meaning.endswith(".") and re.sub(r"`[^`]*`|\.\.", "", meaning).count(".") == 1, f"{term}: {meaning}"


def test_an_old_word_is_no_term():
    terms = {name for names, _ in ROW.findall(TERMS) for name in names.split(", ")}
    old = {name for words, _ in ROW.findall(OLD) for name in re.sub(r" \(.*", "", words).split(", ")}
    assert old and not old & terms
