"""How a command or a script tells its user about bad input: one line, exit status 2."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

BAD_INPUT = 2


@contextmanager
def bad_input_exits() -> Iterator[None]:
    """`with bad_input_exits(): main()` turns a `ValueError` into its message on stderr and exit status 2."""
    try:
        yield
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None
