"""A toolkit that teaches any language model to hear and to talk.

The public functions and classes (`omnikit.load`, `omnikit.build`, ..) are defined in `omnikit.api`, which is imported
when one of them is first used, so that `import omnikit` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnikit.api import Chunk, Omni, Reply, build, load

__version__ = "0.1.0"
__all__ = ["Chunk", "Omni", "Reply", "build", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'omnikit' has no attribute {name!r}")
    from omnikit import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
