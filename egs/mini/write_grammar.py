"""Writes the grammar of the mini corpus as a JSGF file: `python write_grammar.py results/world.jsgf`."""

from __future__ import annotations

import sys

from grammar import grammar

from omnikit.errors import bad_input_exits
from omnikit.files import write_text

if __name__ == "__main__":
    with bad_input_exits():
        if len(sys.argv) != 2:
            raise ValueError("one argument is needed: write_grammar.py FILE.jsgf")
        write_text(sys.argv[1], grammar() + "\n")
