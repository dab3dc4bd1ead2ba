"""Estimate the naturalness of speech with a network that predicts listeners' mean opinion scores (MOS), 1 to 5."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from tqdm import tqdm

from omnikit.errors import one_line
from omnikit.evaluate.intelligibility import SpeechSet
from omnikit.evaluate.result_tables import markdown_table, seconds

UTMOS = "utmos"
REPOSITORY, ENTRY = "tarepan/SpeechMOS:v1.2.0", "utmos22_strong"
"""GitHub repository and torch.hub entry point of UTMOS's strong learner (Saeki et al. 2022, arXiv 2204.02152)."""


@dataclass(frozen=True)
class MosScore:
    """Predicted mean opinion scores of a set of utterances, 1 to 5."""

    mean: float
    worst: float
    utterances: int  # number of utterances with sound

    def as_dict(self) -> dict[str, float]:
        """Return predicted mean opinion scores as a dictionary for JSON."""
        return asdict(self)


class Utmos:
    """The UTMOS network, which predicts the mean opinion score of an utterance.

    Args:
        source: folder with the code of `REPOSITORY`; None = GitHub. That code downloads the weights once.
        device: device that it runs on.

    Raises:
        ValueError: the code or the weights cannot be loaded.
    """

    def __init__(self, source: str | None = None, device: str = "cpu"):
        where = {"source": "local"} if source else {"trust_repo": True}
        if source and not (Path(source) / "hubconf.py").is_file():
            raise ValueError(f"--mos_source {source}: has no hubconf.py; give a folder with the code of {REPOSITORY}")
        try:
            network = torch.hub.load(source or REPOSITORY, ENTRY, **where)
        except Exception as error:  # the repository's code may raise anything
            raise ValueError(f"--mos {UTMOS}: {source or REPOSITORY} cannot be loaded: {one_line(error)}") from None
        self.network, self.device = network.to(device).eval(), device

    @torch.inference_mode()
    def score(self, wav: Tensor, sample_rate: int) -> float:
        """Predict the mean opinion score, 1 to 5, of a waveform [N] in -1..1 at a rate in Hz."""
        return float(self.network(wav[None].to(self.device), sample_rate).squeeze())


def open_mos(name: str | None, source: str | None = None, device: str = "cpu") -> Utmos | None:
    """Return the predictor of mean opinion scores of a name; None if the name is None.

    Args:
        name: `utmos` or None.
        source: see `Utmos`.
        device: device that it runs on.

    Raises:
        ValueError: the name is unknown, or the network cannot be loaded.
    """
    if name is None:
        return None
    check_mos(name)
    return Utmos(source, device)


def check_mos(name: str) -> None:
    """Refuse an unknown name of a predictor.

    Raises:
        ValueError: the message names the choices.
    """
    if name != UTMOS:
        raise ValueError(f"--mos {name}: unknown (choices: {UTMOS})")


def mos_scores(mos: Utmos | None, speech: dict[str, SpeechSet]) -> dict[str, MosScore]:
    """Predict mean opinion scores for sets of utterances by title; utterances without sound are ignored.

    Without a predictor (None) and for sets without sound there is no score.
    """
    found = {}
    for title, kind in speech.items() if mos is not None else ():
        wavs = tqdm((wav for _, _, wav, *_ in kind.utterances() if len(wav)), desc=f"{title}, MOS")
        scores = [mos.score(wav, kind.sample_rate) for wav in wavs]
        if scores:
            found[title] = MosScore(fmean(scores), min(scores), len(scores))
    return found


def mos_table(found: dict[str, MosScore]) -> str:
    """Return mean opinion scores as a Markdown table with a line per kind of speech."""
    rows = [[title, str(o.utterances), seconds(o.mean), seconds(o.worst)] for title, o in found.items()]
    return markdown_table(["Sound", "Utterances", "UTMOS, mean", "worst"], rows)
