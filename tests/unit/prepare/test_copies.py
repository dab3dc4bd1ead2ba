"""Tests of `omnikit tokenize --copies`: augmented copies beside each entry, the same after a kill or a change."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from rewriting import contents, killed_at_random, sound, toy_parts
from toy import ToyEncoder, toy_model

from omnikit.data.augment import Augment, Level, Noise, SeededAugment, Silence, named_augment
from omnikit.data.copy_names import is_copy
from omnikit.data.manifest_reader import read_manifest
from omnikit.data.manifest_writer import FIELDS, ManifestWriter
from omnikit.data.samples import make_dataset
from omnikit.data.sources import read_sources
from omnikit.interfaces import AudioEncoder
from omnikit.prepare import tokenize as tokenizing
from omnikit.prepare.copies import Copies, read_copies
from omnikit.prepare.tokenize import Parts, tokenize

AUGMENT = SeededAugment(
    Augment(
        silence=Silence(probability=0.5, seconds=(0.05, 0.1)),
        noise=Noise(probability=1, snr_db=(5, 20)),
        level=Level(probability=1, gain_db=(-20, 0)),
    ),
    seed=5,
)


def write(path: Path, rows: list[dict]) -> Path:
    fields = [name for name in FIELDS if any(name in row for row in rows)]
    with ManifestWriter(path, fields, path.suffix == ".parquet") as writer:
        for row in rows:
            writer.write([row])  # a row group each
    return path


def spoken(count: int) -> list[dict]:
    """Return test entries with embedded recordings of questions and answers."""
    return [
        {
            "id": f"r{i}", "t1": f"what {i}", "a1": sound(0.1 + 0.07 * (i % 5), i), "t2": "the cat",
            "a2": sound(0.2, -i + 99), "kind": "sum",
        }
        for i in range(count)
    ]  # fmt: skip


def made(folder: Path, tmp_path: Path) -> dict:
    return {entry.id: entry for entry in read_manifest(folder, tmp_path / "cache")}


def features_of(encoder: AudioEncoder, wav: np.ndarray) -> torch.Tensor:
    return encoder(torch.from_numpy(wav)[None], torch.tensor([len(wav)]))[0][0]


def run_copies(manifest: Path, save_folder: Path, begun: Connection, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    parts = toy_parts()
    begun.send(None)
    tokenize(manifest, save_folder, parts, fields=("a1",), shard_size=4, copies=Copies(2, AUGMENT))


def test_copies_follow_their_entry_with_its_texts_and_codes(tmp_path: Path):
    parts, rows = toy_parts(), spoken(5)
    summary = tokenize(write(tmp_path / "m.parquet", rows), tmp_path / "out", parts, copies=Copies(2, AUGMENT))
    assert summary.rows == 15 and not summary.skipped and not summary.notes
    plain = Path(tmp_path / "plain")
    tokenize(tmp_path / "m.parquet", plain, parts)
    entries, before = made(tmp_path / "out", tmp_path), made(plain, tmp_path)
    assert list(entries)[:4] == ["r0", "r0-copy1", "r0-copy2", "r1"]
    for row in rows:
        entry, old = entries[row["id"]], before[row["id"]]
        assert torch.equal(entry.features.load(), old.features.load()) and entry.duration == old.duration
        wav = old.a1.load(16000).numpy()
        for number in (1, 2):
            copy = entries[f"{row['id']}-copy{number}"]
            assert (copy.t1, copy.t2, copy.kind, copy.a1) == (row["t1"], row["t2"], "sum", None)
            assert torch.equal(copy.codes.load(), old.codes.load()) and copy.codes.codec == "toy"
            expected = AUGMENT(wav, 16000, row["id"], number)
            assert copy.duration == pytest.approx(len(expected) / 16000, abs=1e-4)
            assert torch.allclose(copy.features.load().float(), features_of(parts.encoder, expected), atol=2e-3)
            assert not torch.equal(copy.features.load()[:3], old.features.load()[:3])


def test_copies_of_a_dialog_stay_together(tmp_path: Path):
    loud = Augment(level=Level(probability=1, gain_db=(-20, 0)))
    turns = [{**row, "dialog": "d", "turn": i, "a1": sound(0.2, 0)} for i, row in enumerate(spoken(3))]
    typed = {"id": "typed", "t1": "and you", "t2": "yes", "dialog": "d", "turn": 3}
    alone = {"id": "alone", "t1": "and you", "t2": "yes"}
    encoder = Parts(encoder=toy_parts().encoder)
    path = write(tmp_path / "m.parquet", [*turns, typed, alone])
    summary = tokenize(path, tmp_path / "out", encoder, copies=Copies(2, SeededAugment(loud)))
    assert summary.rows == 3 * 4 + 1 and summary.notes.reasons == {"no recording": 2}
    entries = made(tmp_path / "out", tmp_path)
    assert [(e.dialog, e.turn) for e in entries.values() if e.id.endswith("copy2")] == [
        ("d-copy2", i) for i in range(4)
    ]
    assert "typed-copy1" in entries and "alone-copy1" not in entries
    for number in (1, 2):  # equal recordings at one level
        found = [entries[f"r{i}-copy{number}"].features.load() for i in range(3)]
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert not torch.equal(entries["r0-copy1"].features.load(), entries["r0-copy2"].features.load())


@pytest.mark.parametrize("ending", ["parquet", "json"])
def test_dialogs_without_a_recording_have_no_copies(tmp_path: Path, ending: str):
    """The turns of a dialog stand in several shards; only the last turn of `late` is spoken."""
    rows = [{"id": f"w{i}", "t1": "x", "t2": "y", "dialog": "written", "turn": i} for i in range(3)]
    rows += [{"id": f"l{i}", "t1": "x", "t2": "y", "dialog": "late", "turn": i} for i in range(3)]
    (tmp_path / "q.wav").write_bytes(sound(0.2, 0))
    rows[-1]["a1"] = sound(0.2, 0) if ending == "parquet" else str(tmp_path / "q.wav")
    options = {"shard_size": 2, "copies": Copies(1, AUGMENT)}
    encoder = Parts(encoder=toy_parts().encoder)
    path = write(tmp_path / f"m.{ending}", rows)
    tokenize(path, tmp_path / "out", encoder, **options)
    copies = ["l0-copy1", "l1-copy1", "l2-copy1"]
    assert sorted(name for name in made(tmp_path / "out", tmp_path) if is_copy(name)) == copies
    rows[0]["a1"] = rows[-1]["a1"]  # now the turns in the next shard have copies, too
    write(path, rows)
    tokenize(path, tmp_path / "out", encoder, **options)
    found = {name for name in made(tmp_path / "out", tmp_path) if is_copy(name)}
    assert found == {*copies, "w0-copy1", "w1-copy1", "w2-copy1"}


def test_stored_features_cannot_be_augmented(tmp_path: Path):
    encoder = Parts(encoder=toy_parts().encoder)
    path = write(tmp_path / "m.parquet", [{**row, "dialog": "d", "turn": i} for i, row in enumerate(spoken(2))])
    tokenize(path, tmp_path / "clean", encoder, drop=("a1",))
    with pytest.raises(ValueError, match=r"entry r0: has features, but no recording \(a1\) to augment; make copies"):
        tokenize(tmp_path / "clean", tmp_path / "out", encoder, copies=Copies(1, AUGMENT))


@pytest.mark.long
def test_killed_at_ten_moments_it_ends_with_the_same_copies(tmp_path: Path):
    path = write(tmp_path / "m.parquet", spoken(40))
    assert killed_at_random(run_copies, path, tmp_path / "whole", tmp_path / "killed") > 3
    assert len(contents(tmp_path / "whole")) == 20
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_killed_run_goes_on_after_its_last_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, options = write(tmp_path / "m.parquet", spoken(8)), {"shard_size": 2, "copies": Copies(2, AUGMENT)}
    tokenize(path, tmp_path / "whole", toy_parts(), **options)
    calls, augmented = [], Copies.augmented

    def interrupted(self, *arguments):
        calls.append(arguments)
        if len(calls) > 10:
            raise KeyboardInterrupt
        return augmented(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Copies, "augmented", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tokenize(path, tmp_path / "killed", toy_parts(), **options)
    assert 0 < len(list((tmp_path / "killed").glob("*.parquet"))) < 4
    tokenize(path, tmp_path / "killed", toy_parts(), **options)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_copies_do_not_depend_on_shares_and_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, options = write(tmp_path / "m.parquet", spoken(12)), {"shard_size": 4, "copies": Copies(2, AUGMENT)}
    tokenize(path, tmp_path / "whole", toy_parts(), **options)
    monkeypatch.setattr(tokenizing, "HELD", 3000)  # a copy may be encoded apart from its entry
    monkeypatch.setattr(tokenizing, "THREADS", 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        tokenize(path, tmp_path / "shares", toy_parts(), **options)
    whole, shares = made(tmp_path / "whole", tmp_path), made(tmp_path / "shares", tmp_path)
    assert list(whole) == list(shares) and len(whole) == 36
    for name, entry in whole.items():
        assert torch.allclose(shares[name].features.load(), entry.features.load(), atol=2e-3)
        assert torch.equal(shares[name].codes.load(), entry.codes.load())


def test_a_changed_recording_alone_is_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [{key: value for key, value in row.items() if key != "a2"} for row in spoken(4)]
    for row in rows:
        (tmp_path / f"{row['id']}.wav").write_bytes(row["a1"])
        row["a1"] = f"{row['id']}.wav"
    path = write(tmp_path / "m.json", rows)
    count: list[int] = []

    class Counting(ToyEncoder):
        def forward(self, wav, lengths):
            count.append(len(wav))
            return super().forward(wav, lengths)

    torch.manual_seed(0)
    encoder = Counting()

    def copy() -> dict:
        count.clear()
        tokenize(path, tmp_path / "out", Parts(encoder=encoder), copies=Copies(2, AUGMENT))
        return {name: entry.features.load() for name, entry in made(tmp_path / "out", tmp_path).items()}

    first = copy()
    assert sum(count) == 12 and copy() is not None and not count  # complete, so nothing is encoded
    (tmp_path / "r1.wav").write_bytes(sound(0.3, 77))
    second = copy()
    assert sum(count) == 3
    same = {name for name in first if torch.equal(first[name], second[name])}
    assert same == set(first) - {"r1", "r1-copy1", "r1-copy2"}
    others = Copies(2, SeededAugment(AUGMENT.augment, 6))
    tokenize(path, tmp_path / "out", Parts(encoder=encoder), copies=others)
    assert not torch.equal(made(tmp_path / "out", tmp_path)["r0-copy1"].features.load()[:3], first["r0-copy1"][:3])


def test_a_skipped_entry_is_counted_once_and_has_no_copies(tmp_path: Path):
    broken = {"empty": sound(0.0), "words": b"no sound", "short": sound(0.005)}
    rows = spoken(1) + [{"id": name, "t1": "x", "a1": data} for name, data in broken.items()]
    parts = Parts(encoder=toy_parts().encoder)
    summary = tokenize(write(tmp_path / "m.parquet", rows), tmp_path / "out", parts, copies=Copies(2, AUGMENT))
    assert summary.rows == 3 and summary.skipped.reasons == {"empty": 1, "unreadable": 1, "refused": 1}


def test_copies_are_as_long_as_the_encoder_accepts(tmp_path: Path):
    class Short(ToyEncoder):
        def num_frames(self, samples: int) -> int:
            if samples > 5000:
                raise ValueError("too long")
            return super().num_frames(samples)

        def forward(self, wav, lengths):
            assert int(lengths.max()) <= 5000
            return super().forward(wav, lengths)

    silent = SeededAugment(Augment(silence=Silence(probability=1, seconds=(0.05, 0.05))))
    rows = [{"id": name, "t1": "x", "a1": sound(seconds)} for name, seconds in (("a", 0.2), ("b", 0.3))]
    path = write(tmp_path / "m.parquet", rows)
    assert tokenize(path, tmp_path / "out", Parts(encoder=Short()), copies=Copies(1, silent)).rows == 4
    found = made(tmp_path / "out", tmp_path)
    assert found["a-copy1"].duration == pytest.approx(0.3) and found["b-copy1"].duration == pytest.approx(0.3)


def test_trainings_read_copies(tmp_path: Path):
    model = toy_model()
    model.recipe = "part_names: {codec: toy}\n"
    rows = [{**row, "t1": "what is red"} for row in spoken(3)]
    parts = Parts(model.codec, "toy", model.encoder)
    tokenize(write(tmp_path / "m.parquet", rows), tmp_path / "out", parts, drop=("a1", "a2"), copies=Copies(2, AUGMENT))
    options = {"qa": {"manifest": tmp_path / "out", "tasks": ["A1T1", "A1A2"]}}
    tasks = {"A1T1": 1.0, "A1A2": 1.0}
    samples = make_dataset(model, read_sources(options, model, tasks=tasks, cache_folder=tmp_path / "cache"), tasks)
    assert len(samples) == 2 * 9 and samples[1]["id"] == "r0-copy1" and samples[1]["features"] is not None
    assert not list((tmp_path / "cache").rglob("*.bin"))  # nothing was encoded again


def test_bad_options_of_copies(tmp_path: Path):
    path = write(tmp_path / "m.parquet", [{**spoken(1)[0], "id": "a-copy1"}])
    copies = Copies(1, AUGMENT)
    with pytest.raises(ValueError, match="entry a-copy1: is a copy already; make all copies"):
        tokenize(path, tmp_path / "out", Parts(encoder=ToyEncoder()), copies=copies)
    with pytest.raises(ValueError, match="--copies 1: features of which encoder"):
        tokenize(path, tmp_path / "out", Parts(toy_parts().codec, "toy"), copies=copies)
    assert read_copies(None, None, 0) is None
    assert read_copies(2, "rooms", 7).augment.augment.fingerprint == named_augment("rooms").fingerprint
    for arguments, message in (
        ((2, None, 0), r"--copies 2: of which kind\? give --augment NAME \(choices: rooms, telephone\)"),
        ((None, "rooms", 0), "--augment rooms: how many copies"),
        ((0, "rooms", 0), "--copies 0: must be 1 or more"),
        ((1, "rooms", -1), "--seed -1"),
        ((1, "cave", 0), "--augment cave: no such augment"),
    ):
        with pytest.raises(ValueError, match=message):
            read_copies(*arguments)
