"""On-disk index of the entries of a source: token ids of their texts, frames of stored features and codes, dialogs.

The index is made once, in parallel, and memory-mapped by every training that uses the source. It is a folder of part
files of `PART` entries each, so that a killed build goes on after its last whole part:

    int32: n | BEGIN1[n] TOKENS1[n] BEGIN2[n] .. TURN[n] | token ids of entry 0: t1, t2, of entry 1: ..

The name of the folder is a hash of everything that the content depends on (`index_key`), so an index is never out of
date: a changed manifest or tokenizer has another folder.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from omnikit.data.batched import in_batches
from omnikit.data.manifest_reader import AUDIO, ManifestEntry
from omnikit.errors import one_line
from omnikit.files import whole_file, write_json
from omnikit.interfaces import Tokenizer
from omnikit.torchrun import cores

INDEX = "index"
"""Name of the folder in the cache folder that holds the indices of sources."""
VERSION = 3
"""Version of the part files, increased when the same entries give other parts."""
PART = 8192
"""Number of entries in each part file but the last."""
PARTS_PER_PROCESS = 8  # starting a process costs as much as about one part
ABSENT, REFUSED, FOREIGN = -1, -2, -2
"""Values in place of a number: no such field; a text that the tokenizer refuses; another system's features or codes."""
UNNUMBERED = -2
"""Value in place of the number of a turn: the entry names a dialog, but not its place there."""
BEGIN1, TOKENS1, BEGIN2, TOKENS2, FEATURES, CODES1, CODES, RECORDINGS, SECONDS, DIALOG1, DIALOG2, TURN = range(12)
"""Columns of a part: where the token ids of `t1` and `t2` begin and how many they are, the number of frames of stored
features, `codes1` and `codes`, which recordings there are (bit 0 `a1`, bit 1 `a2`), the duration in seconds as the
bits of a float32 (NaN if unknown), a hash of the dialog's name in two halves, and the number of the turn."""
_COLUMNS = 12
_TOGETHER = 512  # texts that are tokenized together
_EXAMPLES = 16  # refused texts of a part whose errors are stored
_TEXTS = {"t1": (BEGIN1, TOKENS1), "t2": (BEGIN2, TOKENS2)}


@dataclass(frozen=True)
class PartMaker:
    """Makes parts of an index from manifest entries; it is sent to the processes of a pool.

    Args:
        tokenizer: tokenizer of the system's backbone.
        codec: name of the system's codec, whose stored codes are used; None if it has no name.
        encoder: fingerprint of the system's encoder, whose stored features are used; None = none are stored.
    """

    tokenizer: Tokenizer
    codec: str | None = None
    encoder: str | None = None

    def __call__(self, entries: Sequence[ManifestEntry]) -> IndexPart:
        """Return the part of an index that describes these entries."""
        texts = list({text: None for entry in entries for text in (entry.t1, entry.t2) if text is not None})
        ids = dict(zip(texts, _encoded(self.tokenizer, texts), strict=True))
        columns, flat, refused = np.full((_COLUMNS, len(entries)), ABSENT, np.int32), [], {"t1": {}, "t2": {}}
        begin = 0
        for place, entry in enumerate(entries):
            for name, (begins, counts) in _TEXTS.items():
                found = ids.get(getattr(entry, name))
                if isinstance(found, ValueError):
                    columns[counts, place] = REFUSED
                    if len(refused[name]) < _EXAMPLES:
                        refused[name][place] = f"entry {entry.id}: {one_line(found)}"
                elif found is not None:
                    columns[begins : counts + 1, place] = begin, len(found)
                    flat.append(found)
                    begin += len(found)
            columns[FEATURES:, place] = self._stored(entry)
        tokens = np.fromiter(chain.from_iterable(flat), np.int32, begin)
        return IndexPart(np.concatenate([np.array([len(entries)], np.int32), columns.ravel(), tokens]), refused)

    def _stored(self, entry: ManifestEntry) -> tuple[int, ...]:
        """Return the columns from `FEATURES` on."""
        seconds = np.float32(np.nan if entry.duration is None else entry.duration).view(np.int32)
        return (
            _frames(entry.features, None if entry.features is None else entry.features.encoder == self.encoder),
            *(_frames(codes, None if codes is None else codes.codec == self.codec)
              for codes in (entry.codes1, entry.codes)),
            sum(1 << bit for bit, name in enumerate(AUDIO) if getattr(entry, name) is not None),
            int(seconds), *_dialog(entry),
        )  # fmt: skip


@dataclass
class IndexPart:
    """The values of one part file, and the errors of some texts that the tokenizer refuses, by field and entry."""

    values: np.ndarray
    refused: dict[str, dict[int, str]] = field(default_factory=lambda: {"t1": {}, "t2": {}})

    @cached_property
    def columns(self) -> np.ndarray:
        """The columns of the part [columns, entries]."""
        return self.values[1 : 1 + _COLUMNS * int(self.values[0])].reshape(_COLUMNS, -1)

    @cached_property
    def ids(self) -> np.ndarray:
        """Token ids of all texts of the part, one text after another."""
        return self.values[1 + _COLUMNS * int(self.values[0]) :]

    def save(self, path: Path) -> None:
        """Write the part file, after a file `<name>.json` with the errors of refused texts if there are any."""
        if any(self.refused.values()):
            write_json(path.with_suffix(".json"), self.refused)
        with whole_file(path, of_process=True) as aside, aside.open("wb") as file:
            np.save(file, self.values)

    @classmethod
    def load(cls, path: Path) -> IndexPart:
        """Return the part in a file, which is memory-mapped."""
        part, errors = cls(np.load(path, mmap_mode="r")), path.with_suffix(".json")
        if errors.is_file():
            stored = json.loads(errors.read_text(encoding="utf-8"))
            part.refused = {name: {int(place): text for place, text in stored[name].items()} for name in part.refused}
        return part


class SourceIndex:
    """Token ids of the texts of a source's entries, and the number of frames of their stored features and codes.

    Args:
        parts: the parts, each of `PART` entries but the last.
        folder: folder of the part files; None = the index is in memory only.
    """

    def __init__(self, parts: Sequence[IndexPart], folder: Path | None = None):
        self.parts, self.folder = parts, folder

    @classmethod
    def open(cls, folder: Path, parts: int) -> SourceIndex:
        """Memory-map the part files of a complete index."""
        return cls([IndexPart.load(_part_file(folder, number)) for number in range(parts)], folder)

    def __reduce__(self) -> tuple:
        # a process to which the index is sent maps the files itself
        if self.folder is None:
            return SourceIndex, (self.parts,)
        return SourceIndex.open, (self.folder, len(self.parts))

    def __len__(self) -> int:
        return sum(int(part.values[0]) for part in self.parts)

    def column(self, number: int) -> np.ndarray:
        """Return one column, such as `FEATURES`, for all entries [entries]."""
        return np.concatenate([np.zeros(0, np.int32), *(part.columns[number] for part in self.parts)])

    def value(self, number: int, entry: int) -> int:
        """Return the value of one column, such as `FEATURES`, for one entry."""
        return int(self.parts[entry // PART].columns[number, entry % PART])

    def counts(self, name: str) -> np.ndarray:
        """Return the number of token ids of the text `t1` or `t2` of all entries, `ABSENT` or `REFUSED` [entries]."""
        return self.column(_TEXTS[name][1])

    def seconds(self) -> np.ndarray:
        """Return the duration of all entries in seconds, NaN where it is unknown [entries]."""
        return self.column(SECONDS).view(np.float32)

    def dialogs(self) -> np.ndarray:
        """Return a hash (64 bits) of the name of each entry's dialog, of any value if it is not in one [entries]."""
        return self.column(DIALOG1).astype(np.int64) << 32 | self.column(DIALOG2).view(np.uint32)

    def tokens(self, name: str, entry: int) -> list[int]:
        """Return the token ids of the text `t1` or `t2` of an entry."""
        part, place = self.parts[entry // PART], entry % PART
        begin, count = (int(part.columns[column, place]) for column in _TEXTS[name])
        return part.ids[begin : begin + count].tolist()

    def refusal(self, name: str, entry: int) -> str | None:
        """Return why the tokenizer refuses the text `t1` or `t2` of an entry; None if it does not, or if not stored."""
        return self.parts[entry // PART].refused[name].get(entry % PART)


def index_key(*depends_on: object) -> str:
    """Return a hash (32 hex digits) of values that the content of an index depends on, besides `VERSION`."""
    return hashlib.sha256(repr((VERSION, PART, depends_on)).encode(errors="surrogatepass")).hexdigest()[:32]


def build_index(
    entries: Sequence[ManifestEntry], make: PartMaker, folder: Path | None = None, title: str = ""
) -> SourceIndex:
    """Return the index of entries, after making the part files that its folder lacks.

    Several processes may build the same index at the same time; each part file is whole whoever writes it.

    Args:
        folder: folder of the index; None = the index is kept in memory.
        title: name of the source, for the progress bar.
    """
    count = -(-len(entries) // PART)
    if folder is None:
        return SourceIndex([make(entries[begin : begin + PART]) for begin in range(0, len(entries), PART)])
    missing = [number for number in range(count) if not _part_file(folder, number).is_file()]
    with tqdm(total=len(missing) * PART, desc=f"{title}: texts", leave=False, delay=1.0) as bar:
        for _ in _made(entries, make, folder, missing):
            bar.update(PART)
    return SourceIndex.open(folder, count)


def _made(entries: Sequence[ManifestEntry], make: PartMaker, folder: Path, missing: list[int]) -> Iterator[None]:
    """Make part files, in a pool of processes if they are many, and yield after each."""
    processes = min(cores(), len(missing) // PARTS_PER_PROCESS)
    if processes < 2 or not _can_be_sent(make):
        for number in missing:
            yield _write(entries, make, folder, number)
        return
    context = multiprocessing.get_context()
    with ProcessPoolExecutor(processes, context, _start, (entries, make, folder)) as pool:
        for done in as_completed([pool.submit(_write_in_pool, number) for number in missing]):
            yield done.result()


def _can_be_sent(make: PartMaker) -> bool:
    try:
        pickle.dumps(make)
    except (pickle.PicklingError, AttributeError, TypeError):  # a tokenizer of one's own may be bound to its process
        return False
    return True


def _start(*work: object) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes of the pool use all cores already
    _WORK.extend(work)


_WORK: list = []
"""Entries, part maker and folder of the index that this process of a pool works on."""


def _write_in_pool(number: int) -> None:
    _write(*_WORK, number)


def _write(entries: Sequence[ManifestEntry], make: PartMaker, folder: Path, number: int) -> None:
    make(entries[number * PART : (number + 1) * PART]).save(_part_file(folder, number))


def _part_file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npy"


def _frames(stored: object, own: bool | None) -> int:
    return ABSENT if own is None else stored.frames if own else FOREIGN


def _dialog(entry: ManifestEntry) -> tuple[int, int, int]:
    """Return the columns from `DIALOG1` on."""
    if not entry.dialog:
        return 0, 0, ABSENT
    halves = np.frombuffer(hashlib.blake2b(entry.dialog.encode(), digest_size=8).digest(), "<i4").tolist()
    return *halves, UNNUMBERED if entry.turn is None else entry.turn


def _encoded(tokenizer: Tokenizer, texts: list[str]) -> Iterator[list[int] | ValueError]:
    """Yield the token ids of each text, or the error with which the tokenizer refuses it."""
    for some in in_batches(texts, _TOGETHER):
        try:
            yield from tokenizer.encode_many(list(some))
        except ValueError:
            yield from (_encoded_alone(tokenizer, text) for text in some)


def _encoded_alone(tokenizer: Tokenizer, text: str) -> list[int] | ValueError:
    try:
        return tokenizer.encode(text)
    except ValueError as error:
        return error
