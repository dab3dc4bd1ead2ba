"""Arrays on disk, and what is made of recordings once."""

from __future__ import annotations

import errno

import pytest
import soundfile
import torch

from omnikit.data import store
from omnikit.data.prepare import codes_of, features_of
from omnikit.data.rows import Clip
from omnikit.data.store import ArrayStore, fingerprint, write_store
from tests.unit.toy import ToyCodec, ToyEncoder


def test_store_gives_back_what_was_written(tmp_path):
    arrays = {f"k{i}": torch.randint(-100, 100, (i % 3, i), dtype=torch.int16) for i in range(600)}
    write_store(tmp_path / "a.arrow", arrays.items())
    stored = ArrayStore(tmp_path / "a.arrow")
    assert stored.keys == list(arrays)
    for key, value in arrays.items():
        assert torch.equal(stored[key], value)
        assert stored.shape(key) == list(value.shape)


def test_a_write_that_fails_leaves_nothing_that_looks_whole(tmp_path):
    def broken():
        yield "a", torch.zeros(3)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_store(tmp_path / "a.arrow", broken())
    assert not (tmp_path / "a.arrow").exists()


def test_a_full_disk_is_told_and_nothing_is_left(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(store, "_batches", full)
    with pytest.raises(ValueError, match=r"c/a.arrow: cannot be written \(No space left on device\); start again"):
        write_store(tmp_path / "c" / "a.arrow", [("a", torch.zeros(3))])
    assert list((tmp_path / "c").iterdir()) == []


def test_fingerprint_follows_weights_and_options():
    encoder, twin, other = ToyEncoder(), ToyEncoder(), ToyEncoder()
    twin.load_state_dict(encoder.state_dict())
    assert fingerprint(encoder) == fingerprint(twin)
    assert fingerprint(encoder) != fingerprint(other)
    twin.pad_to_30s = True
    assert fingerprint(encoder) != fingerprint(twin)


@pytest.fixture
def clips(tmp_path) -> list[Clip]:
    for i, seconds in enumerate((0.5, 0.2, 0.9)):
        soundfile.write(tmp_path / f"{i}.wav", torch.rand(int(16000 * seconds)).numpy() - 0.5, 16000)
    (tmp_path / "3.wav").write_bytes(b"not audio")
    return [Clip(str(i), path=str(tmp_path / f"{i}.wav")) for i in range(4)]


def test_features_and_codes_equal_those_of_single_recordings(clips, tmp_path, caplog):
    encoder, codec = ToyEncoder().eval(), ToyCodec()
    features = features_of(encoder, clips, tmp_path / "cache", "toy")
    codes = codes_of(codec, clips, tmp_path / "cache", "toy")
    assert "1 of 4 recordings skipped: 1 unreadable (such as " in caplog.text
    assert "3.wav" in caplog.text
    assert "3" not in features
    for clip in clips[:3]:
        wav = clip.load(16000)
        alone, _ = encoder(wav[None], torch.tensor([len(wav)]))
        assert torch.allclose(features[clip.key].float(), alone[0], atol=1e-3)
        assert torch.equal(codes[clip.key].long(), codec.encode(wav[None])[0])


def test_made_once_per_weights(clips, tmp_path):
    encoder = ToyEncoder()
    features_of(encoder, clips[:2], tmp_path / "cache", "toy")
    features_of(encoder, clips[:2], tmp_path / "cache", "toy")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    features_of(ToyEncoder(), clips[:2], tmp_path / "cache", "toy")
    assert len(list((tmp_path / "cache").iterdir())) == 2
