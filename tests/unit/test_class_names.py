"""Test that no two classes of the repository have the same name."""

from __future__ import annotations

import ast
from collections import defaultdict

from tests.repository import ROOT, python_files

FOLDERS = ("omnikit", "recipes", "benchmarks", "egs")


def test_no_class_name_stands_twice():
    places = defaultdict(set)
    for path in (path for folder in FOLDERS for path in python_files(folder)):
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            places[node.name].add(str(path))
    assert len(places) > 150
    assert not {name: sorted(found) for name, found in places.items() if len(found) > 1}
