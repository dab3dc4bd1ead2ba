"""What is said about a package that is not installed."""

from __future__ import annotations

import pytest

from omnikit.errors import missing_package

METADATA = """\
Metadata-Version: 2.1
Name: omnikit
Version: 0
Requires-Dist: torch>=2
Provides-Extra: everything
Requires-Dist: some_judge>=5; extra == "everything"
Requires-Dist: pytest; extra == "everything"
Provides-Extra: judge
Requires-Dist: some_judge>=5; extra == "judge"
"""


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    folder = tmp_path / "omnikit-0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(METADATA)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("some_judge", "pip install 'omnikit[judge]'"),
        ("some_judge.inner", "pip install 'omnikit[judge]'"),
        ("pytest", "pip install 'omnikit[everything]'"),
        ("torch", "pip install torch"),
        ("unheard_of", "pip install unheard_of"),
    ],
)
def test_a_missing_package_names_its_extra(module, command):
    message = missing_package(module)
    assert message.endswith(f"which is not installed: {command}")
    assert repr(module.partition(".")[0]) in message
