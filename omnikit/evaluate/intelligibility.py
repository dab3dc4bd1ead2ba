"""Is speech understood by a recogniser that is not ours? Recordings, what a codec keeps of them, and spoken answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from omnikit.audio import save_audio
from omnikit.data.rows import Clip
from omnikit.evaluate.tables import markdown_table, percent
from omnikit.evaluate.text import plain
from omnikit.evaluate.wer import ErrorRates, Pair, score
from omnikit.interfaces import Codec

Said = tuple[str, str, Tensor]
"""Id, the text that should be heard, and the waveform [N]."""


def open_judge(grammar_file: str | None):
    """The judge that knows the sentences of a JSGF file; None where no file is named: nothing is judged then.

    Raises:
        ValueError: there is no such file, it is no grammar, or the judge is not installed.
    """
    if grammar_file is None:
        return None
    if not Path(grammar_file).is_file():
        raise ValueError(f"--grammar_file {grammar_file}: no such file")
    try:
        from omnikit.evaluate.judge import Judge
    except ModuleNotFoundError as error:
        raise ValueError(f"--grammar_file needs {error.name}: pip install 'omnikit[judge]'") from None
    return Judge(Path(grammar_file).read_text(encoding="utf-8"))


def judged(judge, said: Iterable[Said], sample_rate: int, title: str) -> tuple[ErrorRates, list[Pair]]:
    """Error rates of what the judge hears, and what that is."""
    pairs = [Pair(name, text, judge.transcribe(wav, sample_rate)) for name, text, wav in tqdm(list(said), desc=title)]
    return score(pairs, plain), pairs


def sound(codec: Codec, codes: Tensor) -> Tensor:
    """Codes of one utterance [K, T] -> waveform [N]; without a frame there is no sound."""
    if not codes.shape[1]:
        return torch.zeros(0)
    with torch.inference_mode():
        return codec.decode(codes[None])[0].cpu()


def encoded(codec: Codec, clip: Clip) -> Tensor:
    """Codes of a recording [K, T]."""
    device = next((tensor.device for tensor in codec.state_dict().values()), None)
    with torch.inference_mode():
        return codec.encode(clip.load(codec.sample_rate)[None].to(device))[0]


def shuffled(codes: Tensor, generator: torch.Generator) -> Tensor:
    """Codes [K, T] with each codebook's own put in random order: what a judge still understands of it, it guessed."""
    order = torch.stack([torch.randperm(codes.shape[1], generator=generator) for _ in codes])
    return codes.gather(1, order.to(codes.device))


def reference_rates(
    judge, codecs: dict[str, Codec], clips: Sequence[tuple[str, str, Clip]], *, shuffle_with: str
) -> dict[str, ErrorRates]:
    """What the judge understands of recordings, of each codec's resynthesis of them, and of shuffled codes.

    Args:
        clips: id, text and recording.
        shuffle_with: name of the codec whose codes are shuffled.
    """
    first = codecs[shuffle_with]
    originals = ((name, text, clip.load(first.sample_rate)) for name, text, clip in clips)
    rates = {"original recordings": judged(judge, originals, first.sample_rate, "original recordings")[0]}
    for codec_name, codec in codecs.items():
        again = ((name, text, sound(codec, encoded(codec, clip))) for name, text, clip in clips)
        title = f"resynthesis by {codec_name}"
        rates[title] = judged(judge, again, codec.sample_rate, title)[0]
    generator = torch.Generator().manual_seed(0)
    noise = ((name, text, sound(first, shuffled(encoded(first, clip), generator))) for name, text, clip in clips)
    title = f"{shuffle_with}, codes shuffled"
    rates[title] = judged(judge, noise, first.sample_rate, title)[0]
    return rates


def keep_wavs(said: Sequence[Said], folder: Path, sample_rate: int, count: int) -> None:
    """The first `count` of them as `<folder>/<id>.wav`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, _, wav in said[:count]:
        save_audio(folder / f"{name}.wav", wav, sample_rate)


def rates_table(rates: dict[str, ErrorRates]) -> str:
    """Markdown: one line per kind of sound."""
    rows = [[name, str(r.utterances), percent(r.wer), percent(r.exact)] for name, r in rates.items()]
    return markdown_table(["Sound", "Utterances", "Judged WER %", "Without an error %"], rows)
