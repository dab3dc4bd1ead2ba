"""Does it sound natural? A network's guess of what listeners would give it, 1 to 5 (mean opinion score, MOS)."""

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
"""UTMOS' strong learner (Saeki et al. 2022, arXiv 2204.02152), as this repository of GitHub gives it to torch.hub."""


@dataclass(frozen=True)
class MosScore:
    """Of one kind of speech."""

    mean: float
    worst: float
    utterances: int  # those with sound

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


class Utmos:
    """Args:
        source: a folder with the repository's code; None = GitHub. Weights are downloaded by that code, once.

    Raises:
        ValueError: it cannot be had.
    """

    def __init__(self, source: str | None = None, device: str = "cpu"):
        where = {"source": "local"} if source else {"trust_repo": True}
        if source and not (Path(source) / "hubconf.py").is_file():
            raise ValueError(f"--mos_source {source}: has no hubconf.py; wanted is the code of {REPOSITORY}")
        try:
            network = torch.hub.load(source or REPOSITORY, ENTRY, **where)
        except Exception as error:  # of whatever the code of somebody else raises
            raise ValueError(f"--mos {UTMOS}: {source or REPOSITORY} cannot be loaded: {one_line(error)}") from None
        self.network, self.device = network.to(device).eval(), device

    @torch.inference_mode()
    def score(self, wav: Tensor, sample_rate: int) -> float:
        """Waveform [N] in -1..1 at a rate in Hz -> 1 to 5."""
        return float(self.network(wav[None].to(self.device), sample_rate).squeeze())


def open_mos(name: str | None, source: str | None = None, device: str = "cpu") -> Utmos | None:
    """Who guesses; None where nobody is wanted.

    Raises:
        ValueError: there is nobody of that name, or the network cannot be had.
    """
    if name is None:
        return None
    if name != UTMOS:
        raise ValueError(f"--mos {name}: unknown (choices: {UTMOS})")
    return Utmos(source, device)


def mos_scores(mos: Utmos | None, speech: dict[str, SpeechSet]) -> dict[str, MosScore]:
    """The guesses for each kind of speech; an utterance without sound has none."""
    found = {}
    for title, kind in speech.items() if mos is not None else ():
        wavs = tqdm((wav for _, _, wav in kind.utterances() if len(wav)), desc=f"{title}, MOS")
        scores = [mos.score(wav, kind.sample_rate) for wav in wavs]
        if scores:
            found[title] = MosScore(fmean(scores), min(scores), len(scores))
    return found


def mos_table(found: dict[str, MosScore]) -> str:
    """Markdown: one line per kind of speech."""
    rows = [[title, str(o.utterances), seconds(o.mean), seconds(o.worst)] for title, o in found.items()]
    return markdown_table(["Sound", "Utterances", "UTMOS, mean", "worst"], rows)
