"""Plans the texts and speakers of the mini corpus as a pure function of seed and scale, without synthesizing speech."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import voices
import world

TEMPLATE_CHAPTER, RANDOM_CHAPTER = 1, 2
"""Chapter ids in the LibriSpeech layout of sentences from templates and of random word strings."""

SENTENCES = {"train": 10200, "dev-clean": 200, "test-clean": 300, "test-other": 300}
VOICE_SENTENCES = 30600
"""Number of additional training sentences that are read by the answer voice alone.

Synthesis of unseen sentences needs more training sentences than their recognition.
"""
QA_TRAIN, QA_DEV, QA_HELD_OUT_READINGS = 8000, 200, 4
NOISE_SNR_DB = (15.0, 20.0)


@dataclass(frozen=True)
class PlannedReading:
    """One planned recording of the corpus: a text with its split, voice, speed, pitch and noise."""

    split: str
    text: str
    voice: str
    speed: int  # words per minute
    pitch: int  # 0..99
    chapter: int = TEMPLATE_CHAPTER
    noise_seed: int | None = None  # None = clean
    snr_db: float = 0.0
    id: str = ""
    kind: str = ""  # QA only: the kind of question
    answer: str = ""  # QA only

    @property
    def speaker(self) -> int:
        return voices.SPEAKERS[self.voice]


def scaled(count: int, scale: float) -> int:
    return max(6, round(count * scale))


def plan_corpus(seed: int, scale: float = 1.0) -> list[PlannedReading]:
    """Return the planned recordings of all ASR and TTS splits, with ids as in LibriSpeech."""
    rng = random.Random(f"corpus {seed}")
    sentences = draw_sentences(rng, scale)
    train, dev, clean, other = (sentences[name] for name in SENTENCES)
    every_speed, every_pitch = (
        voices.SPEEDS + voices.HELD_OUT_SPEEDS,
        voices.PITCHES + voices.HELD_OUT_PITCHES,
    )
    readings = [
        *_read("train-clean", train, voices.TRAIN_VOICES, voices.SPEEDS, voices.PITCHES, rng),
        *_read("dev-clean", dev, voices.TRAIN_VOICES, every_speed, every_pitch, rng),
        *_read("test-clean", clean, voices.TRAIN_VOICES, every_speed, every_pitch, rng),
        *(_noisy(r, rng) for r in _read("test-other", other, voices.TEST_VOICES, every_speed, every_pitch, rng)),
    ]
    for split, texts in (("train-voice", train), ("dev-voice", dev), ("test-voice", clean)):
        readings += _read_by_answer_voice(split, texts, rng)
    more = draw_voice_sentences(random.Random(f"answer voice {seed}"), scale, sentences)
    return _with_ids(readings + _read_by_answer_voice("train-voice", more, rng))


def draw_sentences(rng: random.Random, scale: float) -> dict[str, list[tuple[str, int]]]:
    """Return distinct pairs of text and chapter for each split in `SENTENCES`; a third are random word strings.

    The known questions and answers are among the training sentences, so that no test sentence is one of them.
    """
    readable = [q for q in world.known_questions() if not world.mentions_sum(q.text, world.UNREAD_SUMS)]
    known = [text for q in readable for text in (q.text, q.answer)]
    seen = _said_in_questions()
    found: dict[str, list[tuple[str, int]]] = {}
    for name, count in SENTENCES.items():
        size = scaled(count, scale)
        templates = []
        if name == "train":
            templates = rng.sample(sorted(set(known)), min(len(set(known)), size // 3))
        found[name] = [(text, TEMPLATE_CHAPTER) for text in templates]
        found[name] += _draw(size - size // 3 - len(templates), size // 3, seen, rng)
    return found


def draw_voice_sentences(
    rng: random.Random, scale: float, others: dict[str, list[tuple[str, int]]]
) -> list[tuple[str, int]]:
    """Return the additional sentences of the answer voice as pairs of text and chapter.

    None of them is a question, an answer, or one of the sentences in `others`.
    """
    size = scaled(VOICE_SENTENCES, scale)
    seen = _said_in_questions() | {text for sentences in others.values() for text, _ in sentences}
    return _draw(size - size // 3, size // 3, seen, rng)


def _said_in_questions() -> set[str]:
    return {text for q in world.questions() for text in (q.text, q.answer)}


def _draw(templates: int, strings: int, seen: set[str], rng: random.Random) -> list[tuple[str, int]]:
    """Return pairs of text and chapter that are not in `seen` yet: template sentences, then random word strings."""
    sentences = _distinct(world.template_sentence, templates, seen, rng)
    words = _distinct(world.random_words, strings, seen, rng)
    return [(text, TEMPLATE_CHAPTER) for text in sentences] + [(text, RANDOM_CHAPTER) for text in words]


def _distinct(draw: Callable[[random.Random], str], count: int, seen: set[str], rng: random.Random) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        text = draw(rng)
        if text not in seen and not world.mentions_sum(text, world.UNREAD_SUMS):
            seen.add(text)
            found.append(text)
    return found


def _read(
    split: str,
    texts: Iterable[tuple[str, int]],
    who: list[str],
    speeds: tuple[int, ...],
    pitches: tuple[int, ...],
    rng: random.Random,
) -> list[PlannedReading]:
    return [
        PlannedReading(split, text, rng.choice(who), rng.choice(speeds), rng.choice(pitches), chapter)
        for text, chapter in texts
    ]


def _read_by_answer_voice(split: str, texts: Iterable[tuple[str, int]], rng: random.Random) -> list[PlannedReading]:
    return _read(split, texts, [voices.ANSWER_VOICE], (voices.ANSWER_SPEED,), (voices.ANSWER_PITCH,), rng)


def _noisy(recording: PlannedReading, rng: random.Random) -> PlannedReading:
    return replace(recording, noise_seed=rng.getrandbits(32), snr_db=rng.uniform(*NOISE_SNR_DB))


def _with_ids(readings: list[PlannedReading]) -> list[PlannedReading]:
    """Return planned recordings with ids `<speaker>-<chapter>-<number>`, which are unique over all splits."""
    counts: Counter[tuple[int, int]] = Counter()
    found = []
    for r in readings:
        key = (r.speaker, r.chapter)
        found.append(replace(r, id=f"{r.speaker}-{r.chapter}-{counts[key]:04d}"))
        counts[key] += 1
    return found


def plan_questions(seed: int, scale: float = 1.0) -> list[PlannedReading]:
    """Return the planned recordings of all question splits: train, dev, test_seen, test_unseen, test_heldout."""
    rng = random.Random(f"questions {seed}")
    known, held_out = world.known_questions(), world.held_out_questions()
    known = rng.sample(known, min(len(known), scaled(len(known), scale)))
    held_out = rng.sample(held_out, min(len(held_out), scaled(len(held_out), scale)))
    seen, unseen = voices.TRAIN_VOICES, voices.TEST_VOICES
    trained = (voices.SPEEDS, voices.PITCHES)
    untrained = (voices.HELD_OUT_SPEEDS, voices.HELD_OUT_PITCHES)
    taken: set[tuple] = set()
    rows = _ask("test_seen", known, len(known), seen, untrained, rng, taken)
    rows += _ask("test_unseen", known, len(known), unseen, untrained, rng, taken)
    rows += _ask("test_heldout", held_out, QA_HELD_OUT_READINGS * len(held_out), seen, untrained, rng, taken)
    rows += _ask("dev", known, scaled(QA_DEV, scale), seen, untrained, rng, taken)
    rows += _ask("train", known, scaled(QA_TRAIN, scale), seen, trained, rng, taken)
    return rows


def _ask(
    split: str,
    questions: list[world.WorldQuestion],
    count: int,
    who: list[str],
    manner: tuple[tuple[int, ...], tuple[int, ...]],
    rng: random.Random,
    taken: set[tuple],
) -> list[PlannedReading]:
    """Return `count` planned recordings that cycle through the questions.

    No question is read twice with the same voice, speed and pitch, over all calls that share `taken`.
    """
    speeds, pitches = manner
    rows: list[PlannedReading] = []
    while len(rows) < count:
        q = questions[len(rows) % len(questions)]
        how = (rng.choice(who), rng.choice(speeds), rng.choice(pitches))
        if (q.text, *how) in taken:
            continue
        taken.add((q.text, *how))
        rows.append(PlannedReading(split, q.text, *how, id=f"{split}-{len(rows):05d}", kind=q.kind, answer=q.answer))
    return rows
