"""Plans the texts and speakers of the mini corpus as a pure function of seed and scale, without synthesizing speech."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import dialog_plan
import followups
import spoken_texts
import voices
import world
from dialog_plan import DialogTurn

TEMPLATE_CHAPTER, RANDOM_CHAPTER, SPOKEN_CHAPTER, DIALOG_CHAPTER = 1, 2, 3, 4
"""Chapter ids in the LibriSpeech layout.

They are those of sentences from templates, of random word strings, of texts as people say them (`spoken_texts`), and of
sentences of dialogs (`followups`), which occur in training only.
"""

SENTENCES = {"train": 10200, "dev-clean": 200, "test-clean": 300, "test-other": 300}
VOICE_SENTENCES = 30600
"""Number of additional training sentences that are read by the answer voice alone.

Synthesis of unseen sentences needs more training sentences than their recognition.
"""
SPOKEN = {"test-clean": 150, "test-other": 150, "dev-clean": 80, "train-clean": 4000}
"""Number of additional utterances as people say them."""
WORD_STRINGS = 5000
"""Number of additional random word strings in train-clean: what is in no template has to be heard word by word."""
DIALOG_SENTENCES, VOICE_STRINGS = 1200, 2000
"""Numbers of sentences of dialogs in train-clean, and of strings of all words, those of dialogs too, in train-voice."""
QA_TRAIN, QA_DEV, QA_HELD_OUT_READINGS = 8000, 200, 4
QA_HESITATING = 1500
"""Number of additional training questions with a hesitation or a pause."""
DIALOGS = {"dialogs_train": 5000, "dialogs_dev": 100, "dialogs_test_seen": 200, "dialogs_test_unseen": 200}
MORE_SPLIT, MORE_DIALOGS = "dialogs_more", 10000
"""Name and number of the additional training dialogs; unlike `dialogs_train`, they do not decide what the tests ask."""
MORE_ABOUT_ANSWERS = 4000
"""Number of further dialogs in the same split, whose last question is about the answer before.

With an answer that is interrupted the right one to such a question differs from the one that is known by heart.
"""
WRITTEN_SPLIT, WRITTEN_DIALOGS = "dialogs_written", 30000
"""Name and number of the training dialogs whose questions are not recorded; their answers are."""
CROP_SPLIT, CROP_DIALOGS = "dialogs_test_crop", 100
"""Name and number of the test dialogs about an answer that is interrupted: their last question is about it."""
FEWEST_DIALOGS = 60
"""Minimum number of training dialogs at any scale; with fewer there are hardly any held-out cases of their facts."""
HESITATING_SHARE, MORE_HESITATING_SHARE = 0.1, 0.3
"""Shares of the turns of training dialogs, and of the additional ones, with a hesitation or a pause."""
NOISE_SNR_DB = (15.0, 20.0)
Manner = tuple[list[str], tuple[int, ...], tuple[int, ...]]
"""Voices, speeds and pitches to choose from."""
TRAINED: Manner = (voices.TRAIN_VOICES, voices.SPEEDS, voices.PITCHES)
SEEN: Manner = (voices.TRAIN_VOICES, voices.HELD_OUT_SPEEDS, voices.HELD_OUT_PITCHES)
UNSEEN: Manner = (voices.TEST_VOICES, voices.HELD_OUT_SPEEDS, voices.HELD_OUT_PITCHES)
"""Manners in which dialogs of training and of tests in training and in unseen voices are read."""


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
    parts: tuple[tuple[str, float], ...] = ()  # spoken parts, each with the seconds of silence after it; () = the text

    @property
    def speaker(self) -> int:
        return voices.SPEAKERS[self.voice]


@dataclass(frozen=True)
class PlannedTurn(PlannedReading):
    """One planned recording of a turn of a dialog."""

    dialog: str = ""
    turn: int = 0
    template: str = ""  # follow-ups only
    accepted: tuple[str, ...] = ()  # all wordings of the answer, if there is more than one
    guess: str = ""  # follow-ups only: the most frequent answer to this question in training


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
    readings += _read_by_answer_voice("train-voice", more, rng)
    others = _plan_spoken(seed, scale, readings) + _plan_dialog_sentences(seed, scale, readings)
    return _with_ids(readings + others + _plan_word_strings(seed, scale, readings + others))


def _evaluated(readings: list[PlannedReading]) -> set[str]:
    return {r.text for r in readings if r.split.startswith(("dev", "test"))}


def _plan_spoken(seed: int, scale: float, others: list[PlannedReading]) -> list[PlannedReading]:
    """Return the planned recordings of utterances as people say them, given those of all other sentences.

    Those of test splits are drawn first. None that is long is a sentence of a dialog or one of another split.
    """
    rng = random.Random(f"spoken {seed}")
    never = _evaluated(others)
    seen = {r.text for r in others} | _said_in_questions() | followups.texts()
    readings = []
    for split, count in SPOKEN.items():
        training = split.startswith("train")
        if training:
            seen -= followups.texts() - never
        who = voices.TEST_VOICES if split == "test-other" else voices.TRAIN_VOICES
        speeds = voices.SPEEDS if training else voices.SPEEDS + voices.HELD_OUT_SPEEDS
        pitches = voices.PITCHES if training else voices.PITCHES + voices.HELD_OUT_PITCHES
        for made in spoken_texts.distinct(scaled(count, scale), seen, never, rng):
            reading = PlannedReading(split, made.text, rng.choice(who), rng.choice(speeds), rng.choice(pitches))
            reading = replace(reading, chapter=SPOKEN_CHAPTER, parts=made.parts)
            readings.append(_noisy(reading, rng) if split == "test-other" else reading)
    return readings


def _plan_word_strings(seed: int, scale: float, others: list[PlannedReading]) -> list[PlannedReading]:
    """Return the planned recordings of additional random word strings, given those of all other sentences."""
    rng = random.Random(f"word strings {seed}")
    seen = {r.text for r in others} | _said_in_questions()
    strings = [(text, RANDOM_CHAPTER) for text in _distinct(world.random_words, scaled(WORD_STRINGS, scale), seen, rng)]
    return _read("train-clean", strings, voices.TRAIN_VOICES, voices.SPEEDS, voices.PITCHES, rng)


def _plan_dialog_sentences(seed: int, scale: float, others: list[PlannedReading]) -> list[PlannedReading]:
    """Return the planned recordings of sentences of training dialogs, given those of all other sentences.

    A selection is read by the training voices. All answers, and random strings of all words, are read by the answer
    voice.
    """
    rng = random.Random(f"dialog sentences {seed}")
    turns = [turn for dialog in draw_training_dialogs(seed, scale) for turn in dialog]
    never = _evaluated(others) | _said_in_questions()
    texts = sorted(_readable({text for turn in turns for text in (turn.text, turn.answer)} - never))
    answers = sorted(_readable({turn.answer for turn in turns} - never))
    chosen = rng.sample(texts, min(len(texts), scaled(DIALOG_SENTENCES, scale)))
    strings = _distinct(_all_words, scaled(VOICE_STRINGS, scale), set(never), rng)
    read = [(text, DIALOG_CHAPTER) for text in chosen]
    spoken = [(text, DIALOG_CHAPTER) for text in answers + strings]
    clean = _read("train-clean", read, voices.TRAIN_VOICES, voices.SPEEDS, voices.PITCHES, rng)
    return clean + _read_by_answer_voice("train-voice", spoken, rng)


def _readable(texts: set[str]) -> set[str]:
    return {text for text in texts if not world.mentions_sum(text, world.UNREAD_SUMS)}


def _all_words(rng: random.Random) -> str:
    """Return a string of 2 to 6 random words of the whole vocabulary."""
    return " ".join(rng.choice(followups.vocabulary()) for _ in range(rng.randint(2, 6)))


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
    return rows + _hesitating_questions(seed, scale, rows)


def _hesitating_questions(seed: int, scale: float, rows: list[PlannedReading]) -> list[PlannedReading]:
    """Return further planned training questions: some of those there are, with a hesitation or a pause."""
    rng = random.Random(f"hesitating {seed}")
    train = [row for row in rows if row.split == "train"]
    chosen = rng.sample(train, min(len(train), scaled(QA_HESITATING, scale)))
    return [
        replace(_hesitating(row, rng), id=f"train-{len(train) + i:05d}") for i, row in enumerate(chosen)
    ]


def _hesitating(row: PlannedReading, rng: random.Random) -> PlannedReading:
    return replace(row, parts=spoken_texts.hesitating(row.text, rng).parts)


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


def draw_training_dialogs(seed: int, scale: float = 1.0) -> list[list[DialogTurn]]:
    """Return the training dialogs, in which no held-out case occurs."""
    count = max(FEWEST_DIALOGS, scaled(DIALOGS["dialogs_train"], scale))
    return dialog_plan.draw_dialogs(random.Random(f"dialogs {seed}"), count)


def draw_written_dialogs(seed: int, scale: float = 1.0) -> list[list[DialogTurn]]:
    """Draw the training dialogs with typed questions, of which only the answers are recorded.

    None of them has a held-out case.
    """
    return dialog_plan.draw_dialogs(random.Random(f"{WRITTEN_SPLIT} {seed}"), scaled(WRITTEN_DIALOGS, scale))


def plan_dialogs(seed: int, scale: float = 1.0) -> list[PlannedTurn]:
    """Return the planned recordings of all dialogs: train, dev, test_seen and test_unseen.

    The follow-ups of the test splits are held-out cases; each of their facts occurs in a training dialog. The voices
    are those of the questions of the same names.
    """
    train = draw_training_dialogs(seed, scale)
    told, guesses = dialog_plan.told_facts(train), dialog_plan.guesses(train)
    rows: list[PlannedTurn] = []
    for split, count in DIALOGS.items():
        rng = random.Random(f"{split} {seed}")
        if split == "dialogs_train":
            read = _read_dialogs(split, train, TRAINED, rng, guesses)
            rows += _some_hesitating(read, HESITATING_SHARE, random.Random(f"hesitating dialogs {seed}"))
            continue
        held_out = split.startswith("dialogs_test")
        dialogs = dialog_plan.draw_dialogs(rng, scaled(count, scale), held_out=held_out, told=told)
        manner = UNSEEN if split == "dialogs_test_unseen" else SEEN
        rows += _read_dialogs(split, dialogs, manner, rng, guesses)
    return rows


def plan_more_dialogs(seed: int, scale: float = 1.0) -> list[PlannedTurn]:
    """Return the planned recordings of the additional training dialogs, in which no held-out case occurs."""
    rng, about = random.Random(f"{MORE_SPLIT} {seed}"), random.Random(f"{MORE_SPLIT} about answers {seed}")
    dialogs = dialog_plan.draw_dialogs(rng, scaled(MORE_DIALOGS, scale))
    rows = _some_hesitating(_read_dialogs(MORE_SPLIT, dialogs, TRAINED, rng, {}), MORE_HESITATING_SHARE, rng)
    more = dialog_plan.draw_about_answers(about, scaled(MORE_ABOUT_ANSWERS, scale))
    read = _read_dialogs(MORE_SPLIT, more, TRAINED, about, {}, first=len(dialogs))
    return rows + _some_hesitating(read, MORE_HESITATING_SHARE, about)


def plan_crop_dialogs(seed: int, scale: float = 1.0) -> list[PlannedTurn]:
    """Return the planned recordings of the test dialogs whose last question is about the answer before.

    The follow-ups are held-out cases, the voices those of `dialogs_test_unseen`.
    """
    train = draw_training_dialogs(seed, scale)
    told, guesses = dialog_plan.told_facts(train), dialog_plan.guesses(train)
    rng = random.Random(f"{CROP_SPLIT} {seed}")
    dialogs = dialog_plan.draw_about_answers(rng, scaled(CROP_DIALOGS, scale), held_out=True, told=told)
    return _read_dialogs(CROP_SPLIT, dialogs, UNSEEN, rng, guesses)


def _read_dialogs(
    split: str,
    dialogs: Iterable[list[DialogTurn]],
    manner: Manner,
    rng: random.Random,
    guesses: dict[str, str],
    first: int = 0,
) -> list[PlannedTurn]:
    """Return the planned recordings of the turns of dialogs; each dialog has one random voice, speed and pitch.

    Args:
        first: number of the first dialog, in its name.
    """
    rows = []
    for i, dialog in enumerate(dialogs, first):
        how, name = tuple(map(rng.choice, manner)), f"{split}-{i:05d}"
        rows += [
            PlannedTurn(
                split, turn.text, *how, id=f"{name}-{n}", kind=turn.kind, answer=turn.answer, dialog=name, turn=n,
                template=turn.template, accepted=turn.accepted,
                guess=guesses.get(turn.text, "") if turn.template else "",
            )
            for n, turn in enumerate(dialog)
        ]  # fmt: skip
    return rows


def _some_hesitating(rows: list[PlannedTurn], share: float, rng: random.Random) -> list[PlannedTurn]:
    return [_hesitating(row, rng) if rng.random() < share else row for row in rows]
