"""The server: OpenAI's Realtime protocol and REST calls, a page with a microphone, and metrics, over one `Omni`."""

from importlib.util import find_spec

NEEDED = ("fastapi", "prometheus_client", "python_multipart", "silero_vad", "uvicorn", "websockets")
"""Modules of the packages that the extra `serve` installs."""


def check_packages() -> None:
    """Check that the packages of the extra `serve` are installed.

    Raises:
        ValueError: one of them is not; the message names the extra.
    """
    for module in NEEDED:
        if find_spec(module) is None:
            raise ValueError(f'omnikit serve: needs the Python package {module!r}: pip install "omnikit[serve]"')
