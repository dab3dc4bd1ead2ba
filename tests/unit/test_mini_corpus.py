"""Test the mini corpus at small scale: its layout, and that no test data is in the training data."""

from __future__ import annotations

import filecmp
import io
import json
import random
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile

EGS = Path(__file__).resolve().parents[2] / "egs" / "mini"
sys.path.append(str(EGS))

import corpus_plan  # noqa: E402
import followups  # noqa: E402
import make_corpus  # noqa: E402
import make_text  # noqa: E402
import numpy as np  # noqa: E402
import spoken_texts  # noqa: E402
import voices  # noqa: E402
import world  # noqa: E402

from omnikit.data.manifest_reader import read_manifest  # noqa: E402
from omnikit.files import ASIDE  # noqa: E402

SCALE = 0.01
TRAIN, TESTS = ("train-clean", "train-voice"), ("dev-clean", "test-clean", "test-other", "dev-voice", "test-voice")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mini")
    make_corpus.make_corpus(folder, seed=3, scale=SCALE)
    return folder


def transcripts(data: Path, split: str) -> dict[str, str]:
    """Return the transcript of each utterance of a corpus split in LibriSpeech's layout, by the utterance's id."""
    lines = [line for t in sorted((data / "corpus" / split).glob("*/*/*.trans.txt")) for line in t.open()]
    return dict(line.strip().split(" ", 1) for line in lines)


def questions(data: Path, split: str) -> list[dict]:
    return pq.read_table(data / "qa" / f"{split}.parquet").to_pylist()


def chapter(name: str) -> int:
    return int(name.split("-")[1])


def speakers(data: Path, split: str) -> set[str]:
    return {name.split("-")[0] for name in transcripts(data, split)}


@pytest.mark.parametrize("split", TRAIN + TESTS)
def test_layout_is_librispeechs(data: Path, split: str):
    folder, texts = data / "corpus" / split, transcripts(data, split)
    assert {p.stem for p in folder.glob("*/*/*.flac")} == set(texts)
    for path in folder.glob("*/*/*.flac"):
        speaker, chapter, number = path.stem.split("-")
        assert path.parent == folder / speaker / chapter and len(number) == 4
        assert texts[path.stem] == texts[path.stem].upper()
    known = [line.split("|")[0].strip() for line in (data / "corpus" / "SPEAKERS.TXT").open() if line[0] != ";"]
    assert speakers(data, split) <= set(known) and len(known) == len(set(known))


def test_recordings_can_be_read(data: Path):
    for path in (data / "corpus").glob("*/*/*/*.flac"):
        wav, rate = soundfile.read(path)
        assert rate == 16000 and wav.ndim == 1 and 0.2 < len(wav) / rate < 9.0 and abs(wav).max() > 0.05


def test_no_id_twice(data: Path):
    names = [name for split in TRAIN + TESTS for name in transcripts(data, split)]
    assert len(names) == len(set(names))


def test_no_test_text_in_training(data: Path):
    trained = {text for split in TRAIN for text in transcripts(data, split).values()}
    trained |= {row[key].upper() for row in questions(data, "train") for key in ("t1", "t2")}
    assert len(trained) > 100
    for split in TESTS:
        tested = transcripts(data, split)
        spoken = {name for name in tested if chapter(name) == corpus_plan.SPOKEN_CHAPTER}
        assert not trained & {text for name, text in tested.items() if name not in spoken}
        assert not trained & {tested[name] for name in spoken if not spoken_texts.recurs(tested[name])}


def test_no_test_text_in_the_text_for_the_backbone(data: Path):
    """The text corpus that trains the backbone has no sentence of the test splits, though both use the same templates.
    """
    kept = {text.lower() for split in TESTS for text in transcripts(data, split).values()}
    assert make_text.evaluated(data / "corpus") == kept
    rows, every = make_text.rows(1, kept), make_text.rows(1, set())
    assert not {row["t2"] for row in rows if row["t2"] in kept and not spoken_texts.recurs(row["t2"])}
    few, many = (
        {row["t2"] for row in made if row["kind"] == "repeat" and "dialog" not in row} for made in (rows, every)
    )
    assert few <= many
    one = min(text for text in many if not spoken_texts.recurs(text))
    assert one not in {row["t2"] for row in make_text.rows(1, {one})}


def test_without_a_corpus_no_text_is_made(tmp_path: Path):
    with pytest.raises(ValueError, match="no dev and test splits"):
        make_text.evaluated(tmp_path / "corpus")


def read_aloud(texts: dict[str, str]) -> dict[str, str]:
    chapters = (corpus_plan.TEMPLATE_CHAPTER, corpus_plan.RANDOM_CHAPTER)
    return {name: text for name, text in texts.items() if chapter(name) in chapters}


def test_the_two_readings_of_the_sentences(data: Path):
    for name in ("train", "dev", "test"):
        clean, voice = (read_aloud(transcripts(data, f"{name}-{kind}")) for kind in ("clean", "voice"))
        more, strings = (
            corpus_plan.scaled(count, SCALE) if name == "train" else 0
            for count in (corpus_plan.VOICE_SENTENCES, corpus_plan.WORD_STRINGS)
        )
        assert len(voice) == len(clean) - strings + more
        assert len(set(clean.values()) - set(voice.values())) == strings
        assert speakers(data, f"{name}-voice") == {str(voices.ANSWER_SPEAKER)}


def test_no_test_voice_in_training(data: Path):
    trained = speakers(data, "train-clean") | speakers(data, "train-voice")
    assert not trained & speakers(data, "test-other")
    asked = {row["voice"] for row in questions(data, "train")}
    assert not asked & {row["voice"] for row in questions(data, "test_unseen")}
    assert voices.ANSWER_VOICE not in asked


def test_no_variant_of_a_test_voice_in_training():
    def variants(names: list[str]) -> set[str]:
        return {name.partition("+")[2] for name in names}

    assert not variants(voices.TEST_VOICES) & variants([*voices.TRAIN_VOICES, voices.ANSWER_VOICE])
    assert len(voices.TRAIN_VOICES) >= 60 and len(voices.TEST_VOICES) >= 8
    assert len(set(voices.SPEAKERS.values())) == len(voices.SPEAKERS) == 1 + 74 + 10


@pytest.mark.parametrize("split", TRAIN + TESTS)
def test_a_third_of_the_sentences_is_random_word_strings(data: Path, split: str):
    chapters = Counter(map(chapter, read_aloud(transcripts(data, split))))
    assert set(chapters) == {corpus_plan.TEMPLATE_CHAPTER, corpus_plan.RANDOM_CHAPTER}
    more = corpus_plan.scaled(corpus_plan.WORD_STRINGS, SCALE) if split == "train-clean" else 0
    assert chapters[corpus_plan.RANDOM_CHAPTER] - more == (sum(chapters.values()) - more) // 3


def test_a_fifth_of_the_training_recordings_is_as_people_speak():
    chapters = Counter(r.chapter for r in corpus_plan.plan_corpus(1, 0.1) if r.split == "train-clean")
    assert chapters[corpus_plan.SPOKEN_CHAPTER] > 0.19 * sum(chapters.values())
    others = {r.split: r for r in corpus_plan.plan_corpus(1, 0.1) if r.chapter == corpus_plan.SPOKEN_CHAPTER}
    assert set(others) == {"train-clean", "dev-clean", "test-clean", "test-other"}
    assert others["test-other"].voice in voices.TEST_VOICES and others["test-other"].noise_seed is not None


def test_a_fifth_of_all_recordings_to_be_heard_is_as_people_speak():
    """Counted with the questions and dialogs: strings with pauses, and texts with a hesitation or a pause."""
    rows = [r for r in corpus_plan.plan_corpus(1, 0.1) if r.split == "train-clean"]
    rows += [r for r in corpus_plan.plan_questions(1, 0.1) if r.split == "train"]
    rows += [r for r in corpus_plan.plan_dialogs(1, 0.1) if r.split == "dialogs_train"]
    rows += corpus_plan.plan_more_dialogs(1, 0.1)
    spoken = [r for r in rows if r.parts or r.chapter == corpus_plan.SPOKEN_CHAPTER]
    assert len(rows) > 7000 and len(spoken) > 0.2 * len(rows)


def test_texts_as_people_speak():
    rng = random.Random(1)
    made = [spoken_texts.draw(rng) for _ in range(4000)]
    words = [word for u in made if all(" " not in part for part, _ in u.parts) for word in u.text.split()]
    assert 0.5 < sum(word in spoken_texts.DIGITS for word in words) / len(words) < 0.65
    assert sum(len(u.text.split()) == 1 for u in made) > 600
    fillers = [u for u in made if any(part in spoken_texts.HESITATIONS for part, _ in u.parts)]
    assert len(fillers) > 300 and not any(set(u.text.split()) & set(spoken_texts.HESITATIONS) for u in made)
    for u in made:
        said = " ".join(part.strip(",") for part, _ in u.parts if part not in spoken_texts.HESITATIONS)
        assert said == u.text
        assert u.parts[-1][1] == 0 and all(0.05 <= seconds <= 0.5 for _, seconds in u.parts[:-1])
    assert {word for u in made for word in u.text.split()} <= set(followups.vocabulary())


def silences(wav: np.ndarray, rate: int, longer: float) -> list[float]:
    """Return the lengths in seconds of the stretches within a waveform [N] that are quieter than 1 % of its peak."""
    loud = np.flatnonzero(np.abs(wav) > 0.01 * np.abs(wav).max())
    return [gap / rate for gap in np.diff(loud) if gap / rate > longer]


@pytest.mark.parametrize("voice", ["en-us", "en-gb+f3"])
def test_pauses_can_be_measured_in_the_sound(voice: str):
    parts = (("seven", 0.3), ("red", 0.12), ("uh", 0.45), ("one", 0.05), ("nine", 0.0))
    reading = corpus_plan.PlannedReading("train-clean", "seven red one nine", voice, 160, 50, parts=parts)
    wav, rate = soundfile.read(io.BytesIO(make_corpus.render(reading)))
    assert silences(wav, rate, 0.1) == pytest.approx([0.3, 0.12, 0.45], abs=0.02)
    assert silences(wav, rate, 0.04) == pytest.approx([0.3, 0.12, 0.45, 0.05], abs=0.02)


def test_joined_waveforms_are_whole():
    margin = round(make_corpus.MARGIN_SECONDS * make_corpus.SAMPLE_RATE)
    word = np.pad(np.ones(1000, np.float32), margin)
    joined = make_corpus.join([word, 0.5 * word, word], [0.05, 0.4])
    assert silences(joined, make_corpus.SAMPLE_RATE, 0.01) == pytest.approx([0.05, 0.4], abs=0.001)
    assert joined.sum() == pytest.approx(2.5 * 1000) and np.array_equal(make_corpus.join([word], []), word)


def test_some_training_questions_have_a_hesitation():
    rows = [r for r in corpus_plan.plan_questions(1, 0.1) if r.split == "train"]
    known = {q.text: q.answer for q in world.known_questions()}
    hesitating = [r for r in rows if r.parts]
    assert 0.1 < len(hesitating) / len(rows) < 0.25 and len({r.id for r in rows}) == len(rows)
    assert all(known[r.text] == r.answer for r in hesitating)
    assert not any(r.parts for r in corpus_plan.plan_questions(1, 0.1) if r.split != "train")


def test_held_out_sums_are_in_no_training_text(data: Path):
    held_out = {row["t1"] for row in questions(data, "test_heldout")}
    assert held_out and all(world.mentions_sum(text) for text in held_out)
    for split in TRAIN:
        assert not any(world.mentions_sum(text.lower()) for text in transcripts(data, split).values())
    for row in questions(data, "train"):
        assert not world.mentions_sum(row["t1"]) and not world.mentions_sum(row["t2"])


def test_held_out_sums_in_the_full_plan():
    """The full mini corpus holds out about 15 % of its arithmetic questions, whose words all occur in training."""
    rows = corpus_plan.plan_questions(seed=1)
    texts = {split: {r.text for r in rows if r.split == split} for split in ("train", "test_heldout", "test_seen")}
    sums = [q.text for q in world.questions() if q.kind == "sum"]
    assert 0.12 < len(texts["test_heldout"]) / len(sums) < 0.18
    assert {w for t in texts["test_heldout"] for w in t.split()} <= {w for t in texts["train"] for w in t.split()}
    answers = {w for r in rows if r.split == "train" for w in r.answer.split()}
    assert {w for r in rows for w in r.answer.split()} <= answers
    assert texts["test_seen"] == texts["train"] and len(texts["train"]) >= 250
    assert not any(world.mentions_sum(r.text) for r in corpus_plan.plan_corpus(seed=1))


@pytest.mark.parametrize("text", ["one plus four is five", "see four plus one", "six six plus eight plus two"])
def test_mentions_held_out_sum(text: str):
    assert world.mentions_sum(text)
    assert not world.mentions_sum(text.replace("plus", "and"))


def test_every_sum_of_a_chain_is_seen():
    assert world.mentions_sum("one plus one plus four")
    assert not world.mentions_sum("one plus one plus two")


def test_seen_voices_are_heard_at_manners_never_trained_on(data: Path):
    train = {(r["speed"], r["pitch"]) for r in questions(data, "train")}
    assert not train & {(r["speed"], r["pitch"]) for r in questions(data, "test_seen")}
    assert {r["voice"] for r in questions(data, "test_seen")} <= set(voices.TRAIN_VOICES)
    assert not set(voices.SPEEDS) & set(voices.HELD_OUT_SPEEDS) and not set(voices.PITCHES) & set(
        voices.HELD_OUT_PITCHES
    )
    trained = [r for r in corpus_plan.plan_corpus(3, SCALE) if r.split == "train-clean"]
    assert {r.speed for r in trained} <= set(voices.SPEEDS) and {r.pitch for r in trained} <= set(voices.PITCHES)


def test_questions_and_answers_can_be_heard(data: Path):
    answers = {row["t2"]: row["a2"] for row in pq.read_table(data / "qa" / "answers.parquet").to_pylist()}
    known = {q.text: q.answer for q in world.questions()}
    for split in corpus_plan.DIALOGS:
        for row in questions(data, split):
            assert soundfile.info(io.BytesIO(row["a1"])).samplerate == 16000
            assert soundfile.info(io.BytesIO(answers[row["t2"]])).duration > 0.2
    for split in ("train", "dev", "test_seen", "test_unseen", "test_heldout"):
        for row in questions(data, split):
            assert known[row["t1"]] == row["t2"] and row["split"] == split
            assert soundfile.info(io.BytesIO(row["a1"])).samplerate == 16000
            assert soundfile.info(io.BytesIO(answers[row["t2"]])).duration > 0.3


@pytest.mark.long
def test_made_again_it_is_the_same(data: Path, tmp_path: Path):
    make_corpus.make_corpus(tmp_path, seed=3, scale=SCALE, workers=1)
    made = sorted(p.relative_to(data) for p in data.rglob("*") if p.is_file())
    assert made == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    _, different, failed = filecmp.cmpfiles(data, tmp_path, made, shallow=False)
    assert not different and not failed


def test_another_seed_says_something_else():
    assert {r.text for r in corpus_plan.plan_corpus(1, 0.1)} != {r.text for r in corpus_plan.plan_corpus(2, 0.1)}


def test_what_is_half_made_is_made_anew_and_what_is_whole_is_kept(data: Path, tmp_path: Path):
    stamp = (data / "corpus" / "SPEAKERS.TXT").stat().st_mtime_ns
    make_corpus.make_corpus(data, seed=3, scale=SCALE)
    assert (data / "corpus" / "SPEAKERS.TXT").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="holds another corpus"):
        make_corpus.make_corpus(data, seed=4, scale=SCALE)
    (tmp_path / "corpus" / "train-clean").mkdir(parents=True)
    (tmp_path / f"corpus{ASIDE}" / "old").mkdir(parents=True)
    make_corpus.make_corpus(tmp_path, seed=3, scale=0.001)
    assert json.loads((tmp_path / "corpus" / "READY").read_text())["seed"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "qa"]
    assert not (tmp_path / "corpus" / "old").exists()


def test_dialogs_can_be_read(data: Path, tmp_path: Path):
    entries = read_manifest(data / "qa" / "dialogs_test_seen.parquet", tmp_path / "tables")
    planned = [r for r in corpus_plan.plan_dialogs(3, SCALE) if r.split == "dialogs_test_seen"]
    assert [(e.dialog, e.turn, e.t1, e.t2) for e in entries] == [(r.dialog, r.turn, r.text, r.answer) for r in planned]
    assert all(e.reference_answers() == (r.accepted or (r.answer,)) for e, r in zip(entries, planned, strict=True))


def test_dialogs_about_interrupted_answers_can_be_read(data: Path):
    planned = corpus_plan.plan_crop_dialogs(3, SCALE)
    rows = pq.read_table(data / "qa" / "dialogs_test_crop.parquet").to_pylist()
    assert [(r["id"], r["dialog"], r["turn"], r["t1"], r["t2"]) for r in rows] == [
        (r.id, r.dialog, r.turn, r.text, r.answer) for r in planned
    ]
    assert all(len(soundfile.read(io.BytesIO(r["a1"]))[0]) > 0 for r in rows)


def test_the_answers_of_written_dialogs_are_recorded(data: Path, tmp_path: Path):
    files = (data / "qa" / "dialogs_written.parquet", tmp_path / "tables", data / "qa" / "answers.parquet")
    entries = read_manifest(*files)
    planned = corpus_plan.draw_written_dialogs(3, SCALE)
    assert [(e.t1, e.t2) for e in entries] == [(turn.text, turn.answer) for dialog in planned for turn in dialog]
    assert all(e.a1 is None and e.a2 is not None for e in entries)


def test_the_world_is_closed():
    words = world.vocabulary()
    assert 100 <= len(words) <= 150 and all(word.isalpha() and word.islower() for word in words)
    used = {w for r in [*corpus_plan.plan_corpus(5, 0.05), *corpus_plan.plan_questions(5)] for w in r.text.split()}
    assert used <= set(followups.vocabulary())
    assert set(words) < set(followups.vocabulary()) and len(followups.vocabulary()) <= 200
