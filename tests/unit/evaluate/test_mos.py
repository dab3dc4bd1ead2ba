"""Test the prediction of mean opinion scores by a network that torch.hub loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from omnikit.evaluate.intelligibility import SpeechSet
from omnikit.evaluate.mos import ENTRY, mos_scores, mos_table, open_mos

HUBCONF = f'''
import torch

class Loudness(torch.nn.Module):
    """Batches [B, T] at a rate -> [B]."""
    def forward(self, wave, sr):
        assert wave.dim() == 2 and sr == 24000
        return 1 + wave.abs().amax(dim=1)

def {ENTRY}(progress=True):
    return Loudness()
'''


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "hubconf.py").write_text(HUBCONF)
    return str(tmp_path)


def test_each_kind_of_speech_has_a_mean_and_its_worst(source):
    utterances = [
        ("a", "one", torch.full((8,), 0.5)),
        ("b", "two", torch.full((5,), -1.0)),
        ("c", "three", torch.zeros(0)),
    ]
    kinds = {"recordings": SpeechSet(24000, lambda: utterances), "nothing": SpeechSet(24000, list)}
    found = mos_scores(open_mos("utmos", source), kinds)
    assert list(found) == ["recordings"]
    assert found["recordings"].as_dict() == {"mean": 1.75, "worst": 1.5, "utterances": 2}
    assert mos_table(found).splitlines()[-1] == "| recordings | 2 | 1.75 | 1.50 |"
    assert mos_scores(open_mos(None), kinds) == {}


def test_who_is_not_there_is_named(source, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"--mos nisqa: unknown \(choices: utmos\)"):
        open_mos("nisqa")
    with pytest.raises(ValueError, match=r"--mos_source .*nowhere: has no hubconf.py"):
        open_mos("utmos", str(tmp_path / "nowhere"))
    (tmp_path / "hubconf.py").write_text("dependencies = ['a_package_that_is_missing']")
    with pytest.raises(ValueError, match=r"--mos utmos: .*a_package_that_is_missing"):
        open_mos("utmos", source)

    def no_network(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load", no_network)
    with pytest.raises(ValueError, match=r"--mos utmos: tarepan/SpeechMOS\S* cannot be loaded: no route to host"):
        open_mos("utmos")
