"""Test that docstrings open with a complete sentence that a reader understands without the name above it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.repository import ROOT, python_files

FOLDERS = ("omnikit", "recipes", "benchmarks", "egs", "tests")
OPENINGS = {"of", "as", "those", "what", "that", "likewise", "see"}
"""First words, in lower case, of docstrings that are fragments rather than complete sentences."""
PERIOD = re.compile(r"(?<!\.)\.(?=\s|$)")
"""Regular expression of a period that ends a sentence, unlike `..` and the periods inside of `a.b`."""


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield line number and text of each docstring of a module, class, function or attribute."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _own_docstrings(node)


def _own_docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[tuple[int, str]]:
    with_attributes = isinstance(node, ast.Module | ast.ClassDef)
    for before, statement in zip([None, *node.body], node.body, strict=False):
        documents = before is None or (with_attributes and isinstance(before, ast.Assign | ast.AnnAssign))
        expression = statement.value if isinstance(statement, ast.Expr) else None
        if documents and isinstance(expression, ast.Constant) and isinstance(expression.value, str):
            yield statement.lineno, expression.value


def problem(text: str) -> str:
    """Return the problem with the opening of a docstring; empty if there is none."""
    words = text.split()
    if len(words) < 3:
        return "has fewer than three words"
    first = re.sub(r"\W", "", words[0]).lower()
    if first in OPENINGS:
        return f"opens with {words[0]}"
    return "" if PERIOD.search(text.strip().split("\n\n")[0]) else "has no period at the end of its first sentence"


def problems(source: str) -> list[tuple[int, str]]:
    """Return line number and problem of each docstring in a source file that has a problem."""
    return [(line, found) for line, text in docstrings(source) if (found := problem(text))]


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_open_with_a_complete_sentence(folder):
    names = python_files(folder)
    assert names
    found = [f"{name}:{line}: {words}" for name in names for line, words in problems((ROOT / name).read_text("utf-8"))]
    assert not found, "\n".join([f"{len(found)} docstrings:", *found])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Of each slot, the number of positions.", "opens with Of"),
        ("As `open` of the standard library.", "opens with As"),
        ("Those that are free, taken out.", "opens with Those"),
        ("What encodes a recording.", "opens with What"),
        ("That which was decoded last.", "opens with That"),
        ("Likewise for the other streams.", "opens with Likewise"),
        ("See `Codec.decode` for the shapes.", "opens with See"),
        ("Its name.", "fewer than three words"),
        ("", "fewer than three words"),
        ("Return the number of frames", "no period"),
        ("Return one of a, b, ..\n\nThe second sentence ends.", "no period"),
        ("Args:\n    name: of a part", "no period"),
        ("Number of positions.", ""),
        ("Asynchronous decoding of a batch.", ""),
        ("Read a file\nof weights. More:\n\n    drawing", ""),
    ],
)
def test_a_bad_opening_is_named(text, words):
    assert words in problem(text) if words else problem(text) == ""


def test_every_kind_of_docstring_is_looked_at():
    bad = '"""Of nothing at all."""'
    body = f"    {bad}\n    x: int = 1\n    {bad}\n    y = 2\n    {bad}\n\n    async def f():\n        {bad}\n"
    none = f"def g():\n    y = 1\n    {bad}\n"  # a string in a function is no docstring of a local variable
    source = f"{bad}\nX = 1\n{bad}\nclass A:\n{body}{none}"
    assert [line for line, _ in sorted(problems(source))] == [1, 3, 5, 7, 9, 12]
