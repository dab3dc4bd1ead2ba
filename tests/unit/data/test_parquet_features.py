"""Tests of encoder features that are read from the Parquet files of a manifest, and not copied to a cache."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from toy import toy_model

from omnikit.data import manifest_writer, parquet_features
from omnikit.data.array_cache import fingerprint
from omnikit.data.manifest_reader import TableEntries, read_manifest
from omnikit.data.manifest_writer import ManifestWriter
from omnikit.data.samples import make_dataset
from omnikit.data.sources import read_sources

FIELDS = ["id", "t1", "features", "frames", "encoder"]
COUNT, WIDTH = 40, 6


def features(number: int, scale: int = 1, seed: int = 0) -> np.ndarray:
    """Return the features of an entry [T, D]: between 1 and 7 frames times `scale`."""
    rng = np.random.default_rng([seed, number])
    return rng.standard_normal((scale * (1 + number % 7), WIDTH)).astype("<f2")


def entries(scale: int = 1, encoder: str = "e", seed: int = 0) -> list[dict]:
    """Return manifest entries, of which every fifth has no features."""
    rows = [{"id": f"r{i}", "t1": "what is red"} for i in range(COUNT)]
    for number, row in enumerate(rows):
        if number % 5 != 3:
            values = features(number, scale, seed)
            row |= {"features": values.tobytes(), "frames": len(values), "encoder": encoder}
    return rows


def write(path: Path, rows: list[dict], group: int = 16) -> Path:
    path.parent.mkdir(exist_ok=True)
    with ManifestWriter(path, FIELDS) as writer:
        for begin in range(0, len(rows), group):
            writer.write(rows[begin : begin + group])
    return path


def rewritten(path: Path, target: Path, **options) -> Path:
    """Write a manifest as other programs do."""
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(None), target, **options)
    return target


def check(manifest: TableEntries, scale: int = 1) -> None:
    """Compare the features of all entries, in random order, with those that were written."""
    for number in np.random.default_rng(0).permutation(COUNT).tolist():
        entry = manifest[number]
        assert (entry.features is None) == (number % 5 == 3)
        if entry.features is not None:
            expected = torch.from_numpy(features(number, scale))
            assert entry.features.frames == len(expected) and torch.equal(entry.features.load(), expected)
            assert torch.equal(manifest.features_of(number), expected)
            assert manifest.features_of(number).dtype == torch.float16


def is_fast(manifest: TableEntries) -> bool:
    stored = manifest.features
    return bool((stored.places[stored.sizes >= 0] >= 0).all())


def tables(cache: Path) -> int:
    return sum(file.stat().st_size for file in cache.rglob("*.arrow"))


@pytest.mark.parametrize("group_bytes", [1, 300, 2**26])
def test_features_are_read_from_files_of_the_writer(tmp_path: Path, monkeypatch, group_bytes: int):
    monkeypatch.setattr(manifest_writer, "GROUP_BYTES", group_bytes)
    path = write(tmp_path / "m.parquet", entries())
    manifest = read_manifest(path, tmp_path / "cache")
    monkeypatch.setattr(parquet_features, "_RowGroup", None)
    check(manifest)
    assert is_fast(manifest) and (group_bytes > 1000 or pq.ParquetFile(path).num_row_groups > 3)
    check(pickle.loads(pickle.dumps(manifest)))


def test_several_files_are_one_manifest(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(parquet_features, "_FILES", 2)
    rows = entries()
    for begin in range(0, COUNT, 10):
        write(tmp_path / "m" / f"{begin:02d}.parquet", rows[begin : begin + 10], 4)
    rewritten(tmp_path / "m" / "20.parquet", tmp_path / "m" / "20.parquet")
    check(read_manifest(tmp_path / "m", tmp_path / "cache"))


def test_features_of_megabytes_are_in_one_page(tmp_path: Path):
    """Parquet's usual pages are of 1 MB; positions would not follow from sizes if there were several."""
    manifest = read_manifest(write(tmp_path / "m.parquet", entries(30_000), COUNT), tmp_path / "cache")
    assert is_fast(manifest)
    check(manifest, 30_000)


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "NONE"}, {"compression": "zstd", "row_group_size": 3}, {"use_dictionary": False}],
    ids=str,
)
def test_files_of_other_programs_are_read_by_row_groups(tmp_path: Path, caplog, options: dict):
    path = rewritten(write(tmp_path / "m.parquet", entries()), tmp_path / "other.parquet", **options)
    manifest = read_manifest(path, tmp_path / "cache")
    assert caplog.text.count("read by whole row groups, which is slow") == 1
    assert not is_fast(manifest)
    check(manifest)
    check(read_manifest(path, tmp_path / "cache"))


@pytest.mark.parametrize("options", [{"use_dictionary": True}, {"compression": "zstd"}, {"data_page_size": 1}], ids=str)
def test_a_noted_width_is_not_trusted_blindly(tmp_path: Path, options: dict):
    """A file that keeps the note but not the layout is read by row groups."""
    table = pq.read_table(write(tmp_path / "m.parquet", entries()))
    table = table.replace_schema_metadata({manifest_writer.WIDTH: str(WIDTH)})
    options = {"compression": "NONE", "use_dictionary": False, "write_batch_size": 2} | options
    pq.write_table(table, tmp_path / "other.parquet", **options)
    manifest = read_manifest(tmp_path / "other.parquet", tmp_path / "cache")
    assert not is_fast(manifest)
    check(manifest)


def test_features_are_not_copied(tmp_path: Path):
    """The memory-mapped copy of a manifest has the same size whatever the size of the features."""
    sizes = {}
    for scale in (1, 1000):
        read_manifest(write(tmp_path / f"{scale}.parquet", entries(scale)), tmp_path / f"c{scale}")
        sizes[scale] = tables(tmp_path / f"c{scale}")
        assert (tmp_path / f"{scale}.parquet").stat().st_size > 100 * WIDTH * scale
    assert abs(sizes[1000] - sizes[1]) < 1000
    cached = sum(file.stat().st_size for file in (tmp_path / "c1000").rglob("*") if file.is_file())
    assert cached < (tmp_path / "1000.parquet").stat().st_size / 10


def test_starts_read_no_features(tmp_path: Path, monkeypatch):
    """A first start reads a few bytes of each row group, a later one none; features are not part of the digest."""
    path, cache = write(tmp_path / "m.parquet", entries(1000)), tmp_path / "cache"
    read = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, place: read.append(size) or pread(file, size, place))
    monkeypatch.setattr(parquet_features, "_sizes", lambda file: pytest.fail("features were read"))
    read_manifest(path, cache)
    assert read == [4] * 3
    read_manifest(path, cache)
    assert len(read) == 3
    changed = write(tmp_path / "n.parquet", entries(1000, seed=1))
    digests = {parquet_features.TableContent.of_file(file).digest() for file in (path, changed)}
    assert len(digests) == 1 and path.read_bytes() != changed.read_bytes()
    other = write(tmp_path / "n.parquet", entries(1000, encoder="f"))
    assert parquet_features.TableContent.of_file(other).digest() not in digests


def test_a_file_that_changes_while_it_is_used(tmp_path: Path):
    path = write(tmp_path / "m.parquet", entries())
    manifest = read_manifest(path, tmp_path / "cache")
    write(path, entries(3))
    with pytest.raises(ValueError, match=r"manifest .*m.parquet: has changed since it was read; start again"):
        manifest.features_of(0)
    path.unlink()
    with pytest.raises(ValueError, match=r"manifest .*m.parquet: its features cannot be read \(.*No such file"):
        read_manifest(write(path, entries()), tmp_path / "cache").features_of(path.unlink() or 0)


def test_the_writer_notes_the_width_only_if_it_holds(tmp_path: Path):
    def noted(rows: list[dict]) -> bool:
        path = write(tmp_path / "m.parquet", rows)
        return manifest_writer.WIDTH.encode() in (pq.ParquetFile(path).metadata.metadata or {})

    good = {"id": "a", "t1": "x", "features": bytes(2 * WIDTH), "frames": 1}
    assert noted([good]) and noted([good, {"id": "b", "t1": "x"}])
    for bad in ({"features": bytes(3)}, {"frames": None}, {"features": None}, {"features": bytes(4 * WIDTH)}):
        assert not noted([good, good | {"id": "b"} | bad])


def test_shards_with_features_need_the_same_columns(tmp_path: Path):
    (tmp_path / "m").mkdir()
    table = pq.read_table(write(tmp_path / "x.parquet", entries()[:2]))
    pq.write_table(table, tmp_path / "m" / "0.parquet")
    pq.write_table(pa.table({"id": ["z"], "t1": ["x"]}), tmp_path / "m" / "1.parquet")
    with pytest.raises(ValueError, match="shards with features need the same columns"):
        read_manifest(tmp_path / "m", tmp_path / "cache")
    pq.write_table(table.select(["id", "t1", "frames", "encoder"]).slice(0, 0), tmp_path / "m" / "1.parquet")
    assert len(read_manifest(tmp_path / "m", tmp_path / "cache")) == 2


def test_samples_are_the_same_from_either_layout(tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    model = toy_model()
    width = model.encoder.dim
    rows = [row for row in entries(encoder=fingerprint(model.encoder)) if "features" in row]
    for row in rows:
        row["features"] = np.random.default_rng(row["frames"]).bytes(2 * width * row["frames"])
    path = write(tmp_path / "a.parquet", rows)
    found = []
    for each in (path, rewritten(path, tmp_path / "b.parquet", row_group_size=5)):
        sources = {"asr": {"manifest": each, "tasks": ["A1T1"]}}
        read = read_sources(sources, model, tasks={"A1T1": 1.0}, cache_folder=tmp_path / each.stem)
        dataset = make_dataset(model, read, {"A1T1": 1.0})
        found.append([(i["id"], i["sample"].steps.tolist(), i["features"].view(torch.int16)) for i in dataset])
    assert len(found[0]) == len(rows)
    for one, other, row in zip(*found, rows, strict=True):
        assert one[:2] == other[:2] and torch.equal(one[2], other[2])
        assert one[2].numpy().tobytes() == row["features"]
