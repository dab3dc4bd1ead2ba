"""Write the judge's grammar of the closed world to a file: `python write_grammar.py results/world.jsgf`."""

from __future__ import annotations

import sys
from pathlib import Path

from grammar import grammar

if __name__ == "__main__":
    if len(sys.argv) != 2:
        print("usage: write_grammar.py FILE.jsgf", file=sys.stderr)
        sys.exit(2)
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(grammar() + "\n", encoding="utf-8")
