"""Tests of dialogs: grouping, what is cut or skipped, and the loss of a dialog against a slow, obvious computation."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from omnikit.data import source_index
from omnikit.data.collate import Batch
from omnikit.data.copy_names import copy_name, is_copy, origin_of
from omnikit.data.dialogs import REASONS, WHOLE
from omnikit.data.manifest_reader import answer_field
from omnikit.data.manifest_writer import ManifestWriter
from omnikit.data.micro_batch import MicroBatch
from omnikit.data.sample_draws import SampleDraws
from omnikit.data.samples import Samples, collate_items, make_dataset
from omnikit.data.sources import read_entries, read_sources
from omnikit.data.step_sampler import StepSampler
from omnikit.losses import StreamLosses
from omnikit.model import AdaptedSpeech, OmniLM
from omnikit.tasks import TASK_NAMES, TASKS, Sample, asked_in, make_sample
from omnikit.tokens import IGNORE
from omnikit.train.loader import batch_loader
from omnikit.train.recipe_checks import check_sources
from omnikit.turns import heard_part
from tests.repository import ROOT
from tests.unit.data.test_collate import tensors_of
from tests.unit.llms.test_host_reads import HostReads
from tests.unit.qa_brain import brain_of, losses_of
from tests.unit.rewriting import sound
from tests.unit.toy import PATTERNS, toy_model

ANSWERING = ["A1A2", "A1T2", "T1A2", "T1T2"]
LONG = "a cat sees the two red dog"
TEXTS = ["what is red", "the cat sees a dog", "yes", "a cat hears two dogs", "no dog hears the cat"]
FIELDS = ["id", "duration", "dialog", "turn", "t1", "t2", "a1", "a2"]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(source_index, "PART", 3)


def entry(number: int, dialog: str | None, turn: int | None, **fields) -> dict:
    """Return a manifest entry with a spoken question and a spoken answer, both of a length of its own."""
    seconds = 0.04 + 0.01 * (number % 3)
    found = {
        "id": f"e{number}", "t1": TEXTS[number % 5], "t2": TEXTS[number * 2 % 5], "duration": seconds,
        "a1": sound(seconds, number), "a2": sound(0.002 + 0.0005 * (number % 4), number),
        "dialog": dialog, "turn": turn, **fields,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def write(path: Path, entries: list[dict]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with ManifestWriter(path, FIELDS, embedded=True) as writer:
        writer.write(entries)
    return path


def dialogs(count: int, turns: int = 3) -> list[dict]:
    """Return the entries of dialogs `d0`, `d1` .., whose turns stand in the manifest in a mixed order.

    No answer contains the one before it.
    """
    numbers = np.random.default_rng(0).permutation(count * turns).tolist()
    return [entry(n, f"d{n % count}", n // count, t2=TEXTS[(n + n // count) % 5]) for n in numbers]


def answered(name: str, *answers: str) -> list[dict]:
    """Return the entries of a dialog with these answers; equal answers have the same recording."""
    lengths = {text: 0.002 + 0.0005 * len(text) for text in answers}
    return [
        entry(turn, name, turn, id=f"{name}{turn}", t2=text, a2=sound(lengths[text], len(text)))
        for turn, text in enumerate(answers)
    ]


def samples(
    model: OmniLM, path: Path, tasks=("A1A2",), longest: int | None = None, seed: int = 0, features="cached", **options
) -> Samples:
    mix = dict.fromkeys(tasks, 1.0)
    sources = {"talk": {"manifest": path, "tasks": list(tasks), **options}}
    read = read_sources(sources, model, tasks=mix, cache_folder=path.parent / "cache", features=features)
    return make_dataset(model, read, mix, longest, seed)


def told(dataset: Samples) -> list[list[str]]:
    """Return the ids of the entries of each sample."""
    entries = dataset.makers[0].source.entries
    turns = [[turn[0] for turn in dataset.turns.of(i)] if dataset.turns else [] for i in range(len(dataset))]
    return [
        [entries[one].id for one in own or [int(first)]]
        for own, first in zip(turns, dataset.table.entries, strict=True)
    ]


def batch_of(model: OmniLM, dataset: Samples, indices, packed: bool = False) -> Batch:
    return collate_items(model)(dataset.__getitems__(MicroBatch(indices, packed=packed)))


@torch.no_grad()
def slow_losses(model: OmniLM, dataset: Samples, index: int) -> tuple[list[list[Tensor]], int]:
    """Return the losses of a sample by stream, and its length, computed turn by turn from the manifest."""
    task, source = TASKS[dataset.tasks[index]], dataset.makers[0].source
    embedded, wholes, labelled, before = [], [], [], WHOLE
    for number, spoken, heard in dataset.turns.of(index):
        one = source.entries[number]
        answer = model.llm.tokenizer.encode(getattr(one, answer_field(task)))
        codes = model.codec.encode(one.a2.load(16000)[None])[0] if task.speaks else None
        if heard != WHOLE:
            answer, codes = heard_part(answer, codes, heard)
        speech, given = None, {"question": model.llm.tokenizer.encode(one.t1)}
        if spoken:
            wav = one.a1.load(16000)
            adapted, lengths = model.encode_speech(wav[None], torch.tensor([len(wav)]))
            speech = AdaptedSpeech(adapted, lengths, torch.ones(1, dtype=torch.long))
            given = {"audio_frames": int(lengths[0])}
        asked = asked_in(task, "speech" if spoken else "text")
        turn = make_sample(asked, model.layout, model.pattern, answer=answer, codes=codes, **given)
        whole = torch.from_numpy(turn.whole)
        wanted = torch.full_like(whole, IGNORE)
        begin, cut, before = turn.start + 1, heard != WHOLE and before == WHOLE, heard
        ends = [begin + len(answer)]
        for row, end in zip(whole[1:], model.layout.audio, strict=True):
            ends += (begin + (row[begin:] == end.eoa).nonzero()[0]).tolist() if task.speaks else []
        wanted[0, begin : ends[0] + (not cut)] = whole[0, begin : ends[0] + (not cut)]
        if task.speaks:
            last = min(ends[1:]) if cut else max(ends[1:]) + 1
            wanted[1:, begin:last] = whole[1:, begin:last]
        embedded.append(model.embed(whole[None], speech))
        wholes.append(whole)
        labelled.append(wanted)
    inputs, labels = torch.cat(embedded, dim=1)[:, :-1], torch.cat(labelled, dim=1)[:, 1:]
    hidden = model.hidden(inputs)
    logits = [model.text_logits(hidden.text[0]), *model.audio_logits(hidden.audio[0])]
    found = [
        [-each[position].log_softmax(-1)[wanted] for position, wanted in enumerate(row.tolist()) if wanted != IGNORE]
        for each, row in zip(logits, labels, strict=True)
    ]
    return found, inputs.shape[1]


@pytest.mark.parametrize(("pattern", "features"), [*((each, "cached") for each in PATTERNS), ("delayed", "on_the_fly")])
@pytest.mark.parametrize("task", ANSWERING)
def test_the_loss_of_a_batch_is_that_of_its_turns_in_a_row(tmp_path: Path, task: str, pattern: str, features: str):
    model = toy_model(pattern, tts_blocks=1)
    entries = [*dialogs(4), *answered("d4", LONG, LONG, "yes"), *(entry(20 + n, None, None) for n in range(2))]
    path = write(tmp_path / "talk" / "m.parquet", entries)
    dataset = samples(model, path, [task], features=features, mixed=0.4, interrupted=0.7)
    assert sorted(map(len, told(dataset))) == [1, 1, 3, 3, 3, 3, 3] and set(dataset.turns.spoken) == {True, False}
    assert (dataset.turns.heard != WHOLE).any()
    indices = range(2, 7)
    found = [slow_losses(model, dataset, i) for i in indices]
    assert [length for _, length in found] == dataset.lengths[2:].tolist()
    by_stream = [[one for losses, _ in found for one in losses[s]] for s in range(model.layout.num_streams)]
    used = [each for each in by_stream if len(each)]
    for packed in (False, True):
        objective, losses = losses_of(brain_of(model), batch_of(model, dataset, indices, packed))
        assert losses.counts.sum(dim=0).tolist() == list(map(len, by_stream))
        assert losses.counts[TASK_NAMES.index(task)].tolist() == list(map(len, by_stream))
        assert torch.allclose(losses.sums.sum(dim=0), torch.tensor([float(sum(each)) for each in by_stream]), rtol=1e-4)
        assert torch.allclose(objective, torch.stack([sum(each) / len(each) for each in used]).mean(), rtol=1e-4)
    expected = sum_losses([losses_of(brain_of(model), batch_of(model, dataset, [i]))[1] for i in range(7)])
    mixed = losses_of(brain_of(model), batch_of(model, dataset, [3, 0, 5, 1, 6, 4, 2], packed=True))[1]
    assert torch.equal(mixed.counts, expected.counts) and torch.allclose(mixed.sums, expected.sums, rtol=1e-4)


def sum_losses(found: list[StreamLosses]) -> StreamLosses:
    return StreamLosses(*(torch.stack(each).sum(dim=0) for each in zip(*found, strict=True)))


def test_the_table_and_the_sampler_know_lengths_and_labels(tmp_path: Path):
    model = toy_model()
    repeating = (one for n in range(8) for one in answered(f"again{n}", "yes", LONG, LONG, LONG, "no"))
    path = write(tmp_path / "m.parquet", [*dialogs(12), *repeating, entry(40, None, None)])
    dataset = samples(model, path, ANSWERING, mixed=0.5, interrupted=0.5)
    assert Counter(_cut_turns(dataset, i) for i in range(len(dataset)))[(1, 2, 3)] >= 2
    for i, item in enumerate(dataset):
        sample = item["sample"]
        assert (sample.length, sample.text_labels, sample.audio_labels) == (
            dataset.lengths[i], dataset.table.text_labels[i], dataset.table.audio_labels[i]
        )  # fmt: skip
        counts = (sample.labels != IGNORE).sum(dim=1).tolist()
        assert counts == [sample.text_labels] + [sample.audio_labels] * 3
        assert item["id"] == told(dataset)[i][0] and TASK_NAMES[sample.task] == dataset.tasks[i]
    draws = SampleDraws(dataset.table, dict.fromkeys(ANSWERING, 1.0))
    sampler = StepSampler(draws, max_batch_length=2000, steps_per_epoch=3, packed=True)
    for micro_batch in sampler:
        batch = batch_of(model, dataset, micro_batch, packed=True)
        own = losses_of(brain_of(model), batch)[1].counts
        assert torch.equal(own, torch.from_numpy(micro_batch.step_labels)[:, [0, 1, 1, 1]])


def _cut_turns(dataset: Samples, sample: int) -> tuple[int, ...]:
    return tuple(place for place, turn in enumerate(dataset.turns.of(sample)) if turn[2] != WHOLE)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_answer_that_repeats_a_cut_one_is_its_heard_part_with_an_end(tmp_path: Path, pattern: str):
    model = toy_model(pattern)
    talks = (answered(f"d{n}", "yes", "the cat sees a dog", LONG, LONG, LONG, "no") for n in range(20))
    dataset = samples(model, write(tmp_path / "m.parquet", [one for talk in talks for one in talk]), interrupted=1)
    whole, places = len(model.llm.tokenizer.encode(LONG)), Counter(_cut_turns(dataset, i) for i in range(20))
    assert set(places) == {(2, 3, 4), (3, 4)}  # repeated answers are preferred
    for index, item in enumerate(dataset):
        cut, *again = _cut_turns(dataset, index)
        turns, sample = dataset.turns.of(index), item["sample"]
        assert len({turns[place][2] for place in (cut, *again)}) == 1
        text, codes = _answer(model, sample, cut)
        assert 1 <= len(text) < whole and codes.numel() == 3 * turns[cut][2]
        labels = [sample.labels[:, span.start :][:, : span.text] for span in sample.turn_labels]
        assert labels[cut][0].tolist() == text  # no end mark
        for place in again:
            assert labels[place][0].tolist() == [*text, model.layout.text.eot]
            assert torch.equal(_answer(model, sample, place)[1], codes)
            span = sample.turn_labels[place]
            ends = [(row[span.start :][: span.audio] == ids.eoa).sum() for row, ids in
                    zip(sample.labels[1:], model.layout.audio, strict=True)]  # fmt: skip
            assert ends == [1] * len(model.layout.audio)
        table = dataset.table
        text_labels, *audio_labels = (sample.labels != IGNORE).sum(dim=1).tolist()
        assert text_labels == table.text_labels[index] and set(audio_labels) == {table.audio_labels[index]}
        assert sample.length == dataset.lengths[index]
        assert slow_losses(model, dataset, index)[1] == sample.length


def _answer(model: OmniLM, sample: Sample, place: int) -> tuple[list[int], Tensor]:
    """Return the text ids before `eot` and the codes before `eoa` of the answer of a turn."""
    begin = sample.turn_labels[place].start + 1
    rows = [row[begin:] for row in torch.from_numpy(sample.whole)]
    text = rows[0][: rows[0].tolist().index(model.layout.text.eot)].tolist()
    codes = [row[row != ids.pad] for row, ids in zip(rows[1:], model.layout.audio, strict=True)]
    codes = [row[: row.tolist().index(ids.eoa)] for row, ids in zip(codes, model.layout.audio, strict=True)]
    return text, torch.stack(codes)


def test_an_answer_that_ends_with_a_cut_one_is_cut_to_the_same_part(tmp_path: Path):
    model = toy_model()
    talks = (answered(f"d{n}", LONG, LONG, "yes " + LONG, "no") for n in range(12))
    dataset = samples(model, write(tmp_path / "m.parquet", [one for talk in talks for one in talk]), interrupted=1)
    yes = model.llm.tokenizer.encode("yes")
    assert {_cut_turns(dataset, i) for i in range(12)} == {(0, 1, 2), (1, 2)}
    for index, item in enumerate(dataset):
        cut, sample, turns = _cut_turns(dataset, index)[0], item["sample"], dataset.turns.of(index)
        text, codes = _answer(model, sample, cut)
        longer, more = _answer(model, sample, 2)
        assert longer == [*yes, *text] and more.shape[1] == turns[2][2] > codes.shape[1] == turns[cut][2]
        assert sample.labels[0, sample.turn_labels[2].start :].tolist()[: len(longer) + 1] == [
            *longer,
            model.layout.text.eot,
        ]
        assert sample.length == dataset.lengths[index] and sample.text_labels == dataset.table.text_labels[index]


def test_an_answer_that_the_next_one_contains_elsewhere_is_not_cut(tmp_path: Path):
    fixed = [*answered("sure", LONG, f"{LONG} yes"), *answered("twice", LONG, LONG, f"no {LONG} yes", "no")]
    fixed += answered("chance", "no dog", f"{LONG} no dog")
    louder = answered("other recording", LONG, LONG)
    louder[1]["a2"] = sound(0.05, 3)
    path = write(tmp_path / "m.parquet", [*fixed, *louder])
    dataset = samples(toy_model(), path, ["A1A2", "T1A2"], interrupted=1)
    cut = [_cut_turns(dataset, i) for i in range(len(dataset))]
    assert cut == [(), (2,), (), ()] * 2
    assert [item["sample"].length for item in dataset] == dataset.lengths.tolist()
    assert [item["sample"].text_labels for item in dataset] == dataset.table.text_labels.tolist()


def test_what_is_cut_depends_on_the_turns_that_fit(tmp_path: Path):
    """The repetition lies beyond `max_sample_length`, so that another answer is cut."""
    entries = answered("d", "no dog", "the cat", "yes yes yes", "yes yes yes")
    model, path = toy_model(), write(tmp_path / "m.parquet", entries)
    assert _cut_turns(samples(model, path, interrupted=1), 0) == (2, 3)
    whole = samples(model, path, interrupted=0)
    dataset = samples(model, path, longest=int(whole.lengths[0]) - 1, interrupted=1)
    assert len(dataset.turns.of(0)) == 3 and _cut_turns(dataset, 0) in {(0,), (1,)}
    assert dataset[0]["sample"].length == dataset.lengths[0]


@pytest.mark.parametrize("ending", ["csv", "parquet", "shards"])
def test_turns_come_in_the_order_of_their_numbers(tmp_path: Path, ending: str):
    entries = dialogs(4)
    for one in entries:
        for name in ("a1", "a2"):
            (tmp_path / f"{one['id']}{name}.wav").write_bytes(one[name])
            one[name] = str(tmp_path / f"{one['id']}{name}.wav")
    path, parts = tmp_path / f"m.{ending}", {tmp_path / f"m.{ending}": entries}
    if ending == "shards":  # the turns of a dialog stand in several
        parts = {path / "0.parquet": entries[:5], path / "1.parquet": entries[5:]}
    for file, some in parts.items():
        file.parent.mkdir(exist_ok=True)
        with ManifestWriter(file, FIELDS) as writer:
            writer.write(some)
    dataset = samples(toy_model(), path, ["T1T2"])
    firsts = list(dict.fromkeys(one["dialog"] for one in entries))  # dialogs in the order of their first entries
    assert told(dataset) == [[f"e{int(name[1:]) + 4 * turn}" for turn in range(3)] for name in firsts]


def test_gaps_doubles_and_missing_numbers_are_counted_and_said_in_one_line(tmp_path: Path, caplog):
    entries = [
        entry(0, "gap", 1), entry(1, "gap", 2), entry(2, "gap", 4), entry(3, "gap", 5),
        entry(4, "late", 2), entry(5, "late", 3), entry(6, "double", 1), entry(7, "double", 1),
        entry(8, "double", 2), entry(9, "lost", None), entry(10, None, None), entry(11, "mute", 1),
        entry(12, "mute", 2, a2=None, t2=None),
    ]  # fmt: skip
    dataset = samples(toy_model(), write(tmp_path / "m.parquet", entries), ["A1T2", "A1T1"])
    answered = [each for each, task in zip(told(dataset), dataset.tasks, strict=True) if task == "A1T2"]
    assert answered == [["e10"], ["e0", "e1"], ["e6", "e8"], ["e11"]]
    transcribed = [each for each, task in zip(told(dataset), dataset.tasks, strict=True) if task == "A1T1"]
    assert transcribed == [[f"e{i}"] for i in range(13)]  # each entry is a sample of its own
    [line] = [record.getMessage() for record in caplog.records if "turns of dialogs" in record.getMessage()]
    assert line == (
        "sources.talk: turns of dialogs: 1 turn without a number (such as entry e9 of dialog lost), "
        "1 double turn (such as entry e7 of dialog double), 1 no first turn (such as entry e4 of dialog late), "
        "1 missing turn (such as entry e2 of dialog gap), 1 unusable turn (A1T2) (such as entry e12 of dialog mute)"
    )


def test_one_dialog_that_begins_earlier_does_not_drop_the_others(tmp_path: Path, caplog):
    entries = [
        entry(0, "odd", 0), entry(1, "odd", 1), entry(2, "a", 1), entry(3, "a", 2), entry(4, "b", 1),
        entry(5, "late", 2),
    ]  # fmt: skip
    dataset = samples(toy_model(), write(tmp_path / "m.parquet", entries), ["A1T2"])
    assert told(dataset) == [["e0", "e1"], ["e2", "e3"], ["e4"]]
    assert "turns of dialogs: 1 no first turn (such as entry e5 of dialog late)" in caplog.text


def test_long_dialogs_keep_the_turns_that_fit(tmp_path: Path, caplog):
    model = toy_model()
    entries = [*dialogs(3), entry(30, "long", 0, a1=sound(2.0)), entry(31, "long", 1)]
    path = write(tmp_path / "m.parquet", entries)
    whole = samples(model, path, interrupted=0)
    longest = int(sorted(whole.lengths)[1])  # fits one of the three, and another cut
    caplog.set_level(logging.WARNING)
    dataset = samples(model, path, longest=longest, interrupted=0)
    assert len(dataset) == 3 and dataset.lengths.max() <= longest
    for kept, full in zip(told(dataset), told(whole)[:3], strict=True):
        assert kept == full[: len(kept)] and 1 <= len(kept)
    cut = sum(kept != full for kept, full in zip(told(dataset), told(whole)[:3], strict=True))
    assert cut and f"{cut} cut to max_sample_length (A1A2)" in caplog.text
    assert "1 longer than max_sample_length (A1A2) (such as entry e30 of dialog long)" in caplog.text
    for i, item in enumerate(dataset):
        assert item["sample"].length == dataset.lengths[i]


def test_questions_are_mixed_and_answers_cut_by_hashes_of_seed_and_dialog(tmp_path: Path):
    model = toy_model()
    path = write(tmp_path / "m.parquet", dialogs(150, turns=2))
    dataset = samples(model, path, mixed=0.3, interrupted=0.1)
    again = samples(model, path, mixed=0.3, interrupted=0.1)
    other = samples(model, path, mixed=0.3, interrupted=0.1, seed=1)
    for name in ("spoken", "heard", "entries"):
        assert np.array_equal(getattr(dataset.turns, name), getattr(again.turns, name))
    assert (dataset.turns.spoken != other.turns.spoken).mean() > 0.2
    assert 0.2 < (~dataset.turns.spoken).mean() < 0.4
    assert 0.04 < (dataset.turns.heard != WHOLE).sum() / 150 < 0.17
    assert (dataset.turns.heard[1::2] == WHOLE).all()  # the last answer is whole
    for i in np.flatnonzero(dataset.turns.heard != WHOLE) // 2:
        sample = dataset[i]["sample"]
        frames = dataset.turns.heard[2 * i]
        assert 1 <= frames and sample.turn_labels[0].audio == frames + 1  # and the delay of the first stream
    plain = samples(model, path, interrupted=0)
    assert plain.turns.spoken.all() and (plain.turns.heard == WHOLE).all()
    limited = samples(model, path, mixed=0.3, interrupted=0.1, limit=20)
    assert len(limited) == 20  # dialogs
    kinds = {tuple(ids): dataset.turns.of(i) for i, ids in enumerate(told(dataset))}
    for i, ids in enumerate(told(limited)):  # the choice does not depend on what else the source holds
        assert [turn[1:] for turn in limited.turns.of(i)] == [turn[1:] for turn in kinds[tuple(ids)]]


def test_a_turn_without_a_recording_is_typed_and_a_dialog_without_any_is_not_spoken(tmp_path: Path):
    entries = [entry(n, f"d{n // 3}", n % 3) for n in range(6)]
    for number in (1, 3, 4, 5):
        del entries[number]["a1"]
    path = write(tmp_path / "m.parquet", entries)
    dataset = samples(toy_model(), path, ["A1T2", "T1T2"])
    assert told(dataset) == [["e0", "e1", "e2"]] * 1 + [["e0", "e1", "e2"], ["e3", "e4", "e5"]]
    assert dataset.turns.spoken.tolist() == [True, False, True] + [False] * 6


def test_held_out_dialogs_stay_whole(tmp_path: Path):
    path = write(tmp_path / "m.parquet", [*dialogs(6), entry(30, None, None), entry(31, None, None)])

    def of(**options) -> Counter:
        return Counter(one.dialog or one.id for one in read_entries("talk", {"manifest": path, **options}, tmp_path))

    held, others = of(only_held_out=3), of(without_held_out=3)
    assert len(held) == 3 and len(others) == 5 and not held.keys() & others.keys()
    assert all(count == (3 if name[0] == "d" else 1) for name, count in (held + others).items())
    assert len(of(without_held_out=3, limit=2)) == 2
    with pytest.raises(ValueError, match=r"sources\.talk\.only_held_out: 8; the manifest has 8 dialogs"):
        of(only_held_out=8)


@pytest.mark.parametrize("ending", ["parquet", "json"])
@pytest.mark.parametrize("talk", [True, False])
def test_copies_are_held_out_with_their_entry(tmp_path: Path, talk: bool, ending: str):
    """The entries held out of a manifest with copies are those held out of the manifest without."""
    clean = [{"id": f"e{n}", "t1": "yes", "t2": "yes"} for n in range(20)]
    for n, one in enumerate(clean[:12] if talk else ()):
        one |= {"dialog": f"d{n % 4}", "turn": n // 4}
    copies = [
        {**one, **{key: copy_name(one[key], number) for key in ("id", "dialog") if key in one}}
        for number in (1, 2)
        for one in clean
    ]
    for name, entries in (("clean", clean), ("copies", clean + copies)):
        with ManifestWriter(tmp_path / f"{name}.{ending}", ["id", "t1", "t2", *(["dialog", "turn"] * talk)]) as writer:
            writer.write(entries)

    def of(name: str, **options) -> set[str]:
        path = tmp_path / f"{name}.{ending}"
        return {one.id for one in read_entries("talk", {"manifest": path, **options}, tmp_path)}

    held, kept = of("clean", only_held_out=5), of("clean", without_held_out=5)
    assert held and kept and of("copies", only_held_out=5) == held
    assert of("copies", without_held_out=5) == {copy for one in kept for copy in (one, f"{one}-copy1", f"{one}-copy2")}
    some = of("copies", without_held_out=5, limit=3)
    assert len(some) == 3 * len({one for one in some if not is_copy(one)})
    assert len(of("copies")) == 60
    word = "12 dialogs" if talk else "20 entries"
    with pytest.raises(ValueError, match=f"the manifest has {word}"):
        of("copies", only_held_out=20)


def test_names_that_only_look_like_copies_are_held_out(tmp_path: Path):
    """Copies without the entry that they were made of stay together, and nothing is lost."""
    path = tmp_path / "m.parquet"
    with ManifestWriter(path, ["id", "t1"]) as writer:
        writer.write([{"id": f"e{n}-copy{k}", "t1": "x"} for n in range(3) for k in (1, 2)] + [{"id": "z", "t1": "x"}])
    for count, size in ((0, 0), (3, None)):
        held = {one.id for one in read_entries("x", {"manifest": path, "only_held_out": count}, tmp_path)}
        others = {one.id for one in read_entries("x", {"manifest": path, "without_held_out": count}, tmp_path)}
        assert len(held | others) == 7 and not held & others and (size is None or len(held) == size)
        assert not {origin_of(one) for one in held} & {origin_of(one) for one in others}


def test_a_second_start_uses_the_stored_grouping(tmp_path: Path, monkeypatch):
    model, path = toy_model(), write(tmp_path / "m.parquet", dialogs(5))
    first = samples(model, path, ["T1T2"])
    monkeypatch.setattr(source_index, "_dialog", lambda entry: pytest.fail("dialogs were read again"))
    second = samples(model, path, ["T1T2"])
    assert told(second) == told(first) and np.array_equal(second.turns.begins, first.turns.begins)


@pytest.mark.parametrize("features", ["cached", "on_the_fly"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_yield_the_same_batches(tmp_path: Path, method: str, features: str, monkeypatch):
    monkeypatch.setattr(source_index, "PART", 8192)  # as in a spawned process
    model, path = toy_model(), write(tmp_path / "m.parquet", [*dialogs(4), entry(30, None, None)])
    dataset = samples(model, path, ["A1A2"], features=features, mixed=0.3, interrupted=0.5)
    wanted = [MicroBatch([0, 3, 1]), MicroBatch([4, 2], packed=True)]
    expected = [batch_of(model, dataset, each, each.packed) for each in wanted]
    loader = batch_loader(dataset, wanted, model, num_workers=1, device="cpu", method=method)
    for found, own in zip(loader, expected, strict=True):
        pairs = list(zip(tensors_of(found), tensors_of(own), strict=True))
        assert len(pairs) == 16 and all(torch.equal(*pair) for pair in pairs) and found.sizes == own.sizes


def test_a_step_with_dialogs_reads_nothing_back_from_the_device(tmp_path: Path):
    model, path = toy_model(), write(tmp_path / "m.parquet", dialogs(3))
    batch = batch_of(model, samples(model, path), [0, 1, 2])
    speech = batch.speech(*model.adapter(batch.features.float(), batch.lengths))
    assert len(speech.places) == 9 and batch.sizes.sequences == 3
    with HostReads() as reads:
        hidden = model(batch.steps, speech)
        (hidden.text.sum() + hidden.audio.sum()).backward()
    assert reads.found == []


def test_a_model_learns_a_follow_up_that_needs_the_turn_before(tmp_path: Path):
    """Spoken and typed turns are mixed; the last turn is the same in all dialogs, but not its answer."""
    words = ["cat", "dog", "red", "blue"]
    entries = []
    for number in range(24):
        word = words[number % 4]
        spoken = {"duration": 0.02, "a1": sound(0.02, number % 4)}
        entries.append({"id": f"{number}a", "dialog": f"d{number}", "turn": 0, "t1": word, "t2": word, **spoken})
        again = {"duration": 0.02, "a1": sound(0.02, 9)}
        entries.append({"id": f"{number}b", "dialog": f"d{number}", "turn": 1, "t1": "what", "t2": word, **again})
    model = toy_model()
    dataset = samples(model, write(tmp_path / "m.parquet", entries), ["A1T2"], mixed=0.5)
    assert len(set(map(tuple, (dataset.turns.spoken.reshape(-1, 2).tolist())))) == 4
    batch, brain = batch_of(model, dataset, range(24), packed=True), brain_of(model)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        losses_of(brain, batch)[0].backward()
        optimiser.step()
        optimiser.zero_grad()
    with_history, without = [], []
    for item in dataset:
        whole = item["sample"].steps[None]
        speech = batch_speech(model, item)
        hidden = model(whole, speech)
        at = item["sample"].turn_labels[1].start
        with_history.append(int(model.text_logits(hidden.text[0, at]).argmax()) == int(item["sample"].labels[0, at]))
    assert all(with_history)
    last = samples(model, write(tmp_path / "last" / "m.parquet", entries[1::2]), ["A1T2"])
    assert len(last) == 24
    for item in last:
        hidden = model(item["sample"].steps[None], batch_speech(model, item))
        at = item["sample"].start
        without.append(int(model.text_logits(hidden.text[0, at]).argmax()) == int(item["sample"].labels[0, at]))
    assert sum(without) <= 6  # one of four words


def batch_speech(model: OmniLM, item: dict) -> AdaptedSpeech | None:
    """Return the adapted speech of a sample alone."""
    batch = collate_items(model)([item])
    return batch.speech(*model.adapter(batch.features.float(), batch.lengths)) if batch.has_speech else None


def test_the_documentation_lists_the_reasons():
    text = (ROOT / "docs" / "data_rules.md").read_text(encoding="utf-8")
    assert all(f"| {reason} | {words} |" in text for reason, words in REASONS.items())


@pytest.mark.parametrize("option", ["mixed", "interrupted"])
def test_shares_outside_of_their_range_are_refused(option: str):
    with pytest.raises(ValueError, match=rf"--sources.talk.{option} 1.5: must be at most 1"):
        check_sources({"talk": {"manifest": "m.csv", option: 1.5}}, "sources")
