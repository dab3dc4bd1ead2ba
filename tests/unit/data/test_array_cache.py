"""Tests of the on-disk cache of arrays, and of features and codes that are computed once and then read from it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterable
from pathlib import Path

import pytest
import soundfile
import torch

from omnikit.data import array_cache
from omnikit.data.array_cache import ArrayCache, ArrayLocation, ArrayStore, fingerprint, open_cache
from omnikit.data.digest_ledger import open_ledger
from omnikit.data.encode_recordings import cached_codes, cached_features
from omnikit.data.manifest_reader import Recording
from tests.unit.toy import ToyCodec, ToyEncoder


def numbers(count: int = 600) -> dict[bytes, torch.Tensor]:
    return {bytes([i // 256, i % 256]): torch.randint(-100, 100, (i % 3, i), dtype=torch.int16) for i in range(count)}


def found(cache: ArrayCache, digest: bytes) -> ArrayLocation | None:
    (place,) = cache.find([digest])
    return place


def stored(cache, arrays: Iterable[bytes]) -> ArrayStore:
    return ArrayStore(cache.folder, [(digest.hex(), found(cache, digest)) for digest in arrays])


def test_store_gives_back_what_was_written(tmp_path):
    arrays = numbers()
    with open_cache(tmp_path / "a") as cache:
        cache.add(list(arrays.items())[:200])
        cache.add([*list(arrays.items())[200:], (b"x", "unreadable"), (b"f", torch.ones(2, 3).half())])
        assert found(cache, b"y") is None and found(cache, b"x").problem == "unreadable"
        store = stored(cache, [*arrays, b"f"])
    for each in (store, pickle.loads(pickle.dumps(store))):
        assert list(each.index) == [digest.hex() for digest in [*arrays, b"f"]]
        for digest, value in arrays.items():
            assert torch.equal(each[digest.hex()], value)
            assert each.shape(digest.hex()) == list(value.shape)
        assert torch.equal(each[b"f".hex()], torch.ones(2, 3).half())
    assert len(pickle.dumps(store)) < 60_000  # arrays are not pickled


def test_a_write_that_fails_leaves_what_was_whole(tmp_path):
    def broken():
        yield b"a", torch.zeros(3, 1)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"), open_cache(tmp_path / "a") as cache:
        cache.add([(b"b", torch.ones(2, 2))])
        cache.add(broken())
    with open_cache(tmp_path / "a") as cache:
        assert found(cache, b"a") is None and torch.equal(stored(cache, [b"b"])[b"b".hex()], torch.ones(2, 2))
        (file,) = cache.folder.glob("*.bin")
        assert file.stat().st_size == found(cache, b"b").end


def killed(folder: Path) -> None:
    with open_cache(folder) as cache:
        cache.add([(b"a", torch.ones(2, 2))])
        cache._append(torch.zeros(1000, 1000))
        cache._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_costs_the_last_chunk(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=killed, args=(tmp_path / "a",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with open_cache(tmp_path / "a") as cache:
        assert torch.equal(stored(cache, [b"a"])[b"a".hex()], torch.ones(2, 2))
        cache.add([(b"b", torch.zeros(1, 1))])
        assert torch.equal(stored(cache, [b"b"])[b"b".hex()], torch.zeros(1, 1))


def test_a_full_disk_is_told_and_nothing_is_left(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(array_cache.os, "fsync", full)
    with (
        pytest.raises(ValueError, match=r"c/\w+.bin: cannot be written \(No space left on device\); start again"),
        open_cache(tmp_path / "c") as cache,
    ):
        cache.add([(b"a", torch.zeros(3, 1))])
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["index.sqlite"]


def test_files_that_are_cut_short_are_told_and_made_again(tmp_path, caplog):
    with open_cache(tmp_path / "a") as cache:
        cache.add([(b"a", torch.ones(2, 2)), (b"b", torch.ones(2, 2))])
    (file,) = (tmp_path / "a").glob("*.bin")
    os.truncate(file, 20)
    with open_cache(tmp_path / "a") as cache:
        assert found(cache, b"a").rows == 2 and found(cache, b"b") is None
    assert f"{file}: is missing or cut short" in caplog.text
    file.unlink()
    with open_cache(tmp_path / "a") as cache:
        assert found(cache, b"a") is None


@pytest.mark.parametrize("name", ["index.sqlite", "ledger.sqlite"])
def test_a_damaged_index_says_what_to_do(name, tmp_path):
    (tmp_path / name).write_bytes(b"not a database" * 1000)
    opened = open_cache(tmp_path) if name == "index.sqlite" else open_ledger(tmp_path)
    with pytest.raises(ValueError, match=rf"{name}: is damaged \(file is not a database\); delete the folder"):
        opened.__enter__()


def add_many(folder: Path, first: int) -> None:
    with open_cache(folder) as cache:
        for i in range(first, first + 30):
            cache.add([(bytes([i]), torch.full((1, 1), i))])


def test_two_processes_share_a_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add_many, args=(tmp_path / "a", first)) for first in (0, 20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    with open_cache(tmp_path / "a") as cache:
        held = stored(cache, [bytes([i]) for i in range(50)])
    assert [int(held[bytes([i]).hex()]) for i in range(50)] == list(range(50))


def test_fingerprint_follows_weights_and_options():
    encoder, twin, other = ToyEncoder(), ToyEncoder(), ToyEncoder()
    twin.load_state_dict(encoder.state_dict())
    assert fingerprint(encoder) == fingerprint(twin)
    assert fingerprint(encoder) != fingerprint(other)
    twin.pad_to_30s = True
    assert fingerprint(encoder) != fingerprint(twin)


@pytest.fixture
def recordings(tmp_path) -> list[Recording]:
    for i, seconds in enumerate((0.5, 0.2, 0.9)):
        soundfile.write(tmp_path / f"{i}.wav", torch.rand(int(16000 * seconds)).numpy() - 0.5, 16000)
    (tmp_path / "3.wav").write_bytes(b"not audio")
    return [Recording(str(i), path=str(tmp_path / f"{i}.wav")) for i in range(4)]


def test_features_and_codes_equal_those_of_single_recordings(recordings, tmp_path, caplog):
    encoder, codec = ToyEncoder().eval(), ToyCodec()
    features = cached_features(encoder, recordings, tmp_path / "cache", "toy")
    codes = cached_codes(codec, recordings, tmp_path / "cache", "toy")
    assert "1 of 4 recordings skipped: 1 unreadable (such as " in caplog.text
    assert "3.wav" in caplog.text
    assert "3" not in features
    for recording in recordings[:3]:
        wav = recording.load(16000)
        alone, _ = encoder(wav[None], torch.tensor([len(wav)]))
        assert torch.allclose(features[recording.key].float(), alone[0], atol=1e-3)
        assert torch.equal(codes[recording.key].long(), codec.encode(wav[None])[0])


def test_made_once_per_weights(recordings, tmp_path):
    encoder = ToyEncoder()
    cached_features(encoder, recordings[:2], tmp_path / "cache", "toy")
    cached_features(encoder, recordings[:2], tmp_path / "cache", "toy")
    assert len(list((tmp_path / "cache").glob("features-*/*.bin"))) == 1
    cached_features(ToyEncoder(), recordings[:2], tmp_path / "cache", "toy")
    assert len(list((tmp_path / "cache").glob("features-*/*.bin"))) == 2
