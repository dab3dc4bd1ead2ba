"""Measures the intelligibility of speech after each mini codec by the word errors of an external recogniser.

    python score_codecs.py [--data_folder data] [--pretrained pretrained] [--limit 0] [--output_folder results/codecs]

The recogniser transcribes template sentences of `test-voice` (its grammar has no random word strings): the recordings,
their resynthesis by each codec, and for reference the mel spectrogram without quantisation through two vocoders.
Shuffled codes show the result of guessing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from grammar import grammar
from torch import Tensor
from torch.nn import functional

from omnikit.codecs.mel_rvq import MelRVQ
from omnikit.data.find_files import visible
from omnikit.data.manifest_reader import Recording
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.evaluate.asr_judges import PocketsphinxJudge
from omnikit.evaluate.intelligibility import judged, keep_wavs, rates_table, shuffled
from omnikit.files import write_json, write_text
from omnikit.hparams import build_part
from omnikit.interfaces import Codec
from omnikit.offline.batches import sound
from omnikit.option_ranges import FROM_ZERO

CODECS = ("mel_rvq", "snac_mini")
TEMPLATE_CHAPTER = "1"
KEPT_WAVS = 4

Item = tuple[str, str, Recording]
"""An utterance as its id, its transcript and its recording."""


def template_sentences(corpus: Path, split: str, limit: int) -> list[Item]:
    """Return the first `limit` recordings of a split's template sentences; 0 = all.

    Raises:
        ValueError: the split has no template sentences.
    """
    found = []
    for transcript in sorted(visible(corpus / split, f"*/{TEMPLATE_CHAPTER}/*.trans.txt")):
        for line in transcript.read_text(encoding="utf-8").splitlines():
            name, text = line.split(" ", 1)
            found.append((name, text.lower(), Recording(name, path=str(transcript.with_name(f"{name}.flac")))))
    if not found:
        raise ValueError(f"--data_folder: no template sentences in {corpus / split}")
    return found[: limit or None]


def load_codec(name: str, pretrained: Path) -> Codec:
    codec = build_part("codec", name, weights=str(pretrained / name))
    codec.load_weights()
    return codec.eval()


def searched(codec: MelRVQ, wav: Tensor) -> Tensor:
    """Resynthesize a waveform [N] as [N'] with the codec's vocoder, from its mel spectrogram without quantisation."""
    columns = codec.linear(codec.patches(wav[None])[0].unflatten(1, (codec.patch, -1)).flatten(0, 1))
    search = codec.phase_search()
    silence = columns.new_zeros(codec.lookahead // codec.hop + 1, columns.shape[1])
    found, _ = search.push(search.begin(), torch.cat([columns, silence])[None])
    return found[0, codec.lookahead :][: len(columns) * codec.hop]


def griffin_lim(codec: MelRVQ, wav: Tensor, rounds: int = 60) -> Tensor:
    """Resynthesize a waveform [N] as [N'] with Griffin-Lim, from its mel spectrogram without quantisation.

    Unlike the codec's streaming vocoder, it optimises the phases of the whole utterance at once.
    """
    magnitude = codec.linear(codec.patches(wav[None])[0].unflatten(1, (codec.patch, -1)).flatten(0, 1))
    spectrum, samples = magnitude.to(torch.complex64), (len(magnitude) - 1) * codec.hop + codec.n_fft
    scale = codec.hop / codec.window.square().sum()
    for _ in range(rounds):
        frames = (torch.fft.irfft(spectrum, n=codec.n_fft) * codec.window).T[None]
        signal = functional.fold(frames, (1, samples), (1, codec.n_fft), stride=(1, codec.hop)).flatten() * scale
        again = torch.fft.rfft(signal.unfold(0, codec.n_fft, codec.hop) * codec.window)
        spectrum = magnitude * again / again.abs().clamp(min=1e-9)
    return signal[codec.margin : len(signal) - codec.margin]


def sounds(codecs: dict[str, Codec]) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the versions of a recording to be judged, by title, as functions from its waveform [N] to another [N']."""
    rng = torch.Generator().manual_seed(0)
    mel = codecs["mel_rvq"]
    kinds: dict[str, Callable[[Tensor], Tensor]] = {"original recordings": lambda wav: wav}
    for name, codec in codecs.items():
        kinds[f"resynthesis by {name}"] = lambda wav, codec=codec: sound(codec, codec.encode(wav[None])[0])
    kinds["mel unquantised, vocoder of mel_rvq"] = lambda wav: searched(mel, wav)
    kinds["mel unquantised, Griffin-Lim of 60 rounds"] = lambda wav: griffin_lim(mel, wav)
    for name, codec in codecs.items():
        kinds[f"{name}, codes shuffled"] = lambda wav, codec=codec: sound(
            codec, shuffled(codec.encode(wav[None])[0], rng)
        )
    return kinds


@torch.inference_mode()
def score_all(items: list[Item], codecs: dict[str, Codec], folder: Path) -> None:
    """Score all versions of the recordings, print the table, and write it with the hypotheses to a folder."""
    judge, rates, hypotheses = PocketsphinxJudge(grammar()), {}, {}
    sample_rate = codecs["mel_rvq"].sample_rate
    for title, make in sounds(codecs).items():
        utterances = [(name, text, make(recording.load(sample_rate))) for name, text, recording in items]
        rates[title], pairs = judged(judge, utterances, sample_rate, title)
        print(f"{title}: WER {rates[title].wer:.1f} %", flush=True)
        hypotheses[title] = {pair.id: [pair.reference, pair.hypothesis] for pair in pairs}
        keep_wavs(utterances, folder / title.replace(" ", "_").replace(",", ""), sample_rate, KEPT_WAVS)
    write_json(folder / "hypotheses.json", hypotheses)
    write_json(folder / "rates.json", {title: rate.as_dict() for title, rate in rates.items()})
    write_text(folder / "wer.md", rates_table(rates) + "\n")
    print(rates_table(rates))


def main() -> None:
    here = Path(__file__).parent
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_folder", type=Path, default=here / "data", help="default: %(default)s")
    parser.add_argument(
        "--pretrained", type=Path, default=here / "pretrained", help="folder of the codecs; default: %(default)s"
    )
    parser.add_argument(
        "--output_folder", type=Path, default=here / "results" / "codecs", help="default: %(default)s"
    )
    parser.add_argument("--split", default="test-voice", help="split of the recordings; default: %(default)s")
    parser.add_argument("--limit", type=FROM_ZERO, default=0, help="number of recordings; 0 = all, the default")
    options = parser.parse_args()
    items = template_sentences(options.data_folder / "corpus", options.split, options.limit)
    codecs = {name: load_codec(name, options.pretrained) for name in CODECS}
    score_all(items, codecs, options.output_folder)


if __name__ == "__main__":
    with bad_input_exits():
        main()
