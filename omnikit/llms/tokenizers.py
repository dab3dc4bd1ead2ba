"""Text tokenizers: sentencepiece models, tokenizers of transformers, and UTF-8 bytes."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import sentencepiece

from omnikit.errors import one_line, unwritable
from omnikit.files import check_unicode
from omnikit.hub import hub_folder, is_hub_id
from omnikit.interfaces import Tokenizer
from omnikit.untrusted_files import LARGEST_JSON, MEBIBYTE, check_regular, read_bytes, read_json, read_text
from omnikit.untrusted_models import read_settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTES = "bytes"
"""Value of a tokenizer's path that selects the tokenizer of UTF-8 bytes, which needs no file."""
SEVERAL = "."
"""File name that a checkpoint gives for a tokenizer of several files; it means the checkpoint's folder."""
TOKENIZER_FILES = (".json", ".txt", ".model", ".jinja")
"""Suffixes of the files that transformers reads for a tokenizer."""
_SETTINGS = "tokenizer_config.json"
_PLACES = ("vocab", "merges", "init_inputs", "sp_model_kwargs")
"""Settings of tokenizers that may name files, besides those that end in `_file`."""
_MOST_BYTES = 128 * MEBIBYTE  # Gemma 3's `tokenizer.json`, one of the largest, has 33 MB
_SAMPLED_IDS = 4096
_OPENED: ContextVar[dict[tuple[str, int | None], Tokenizer] | None] = ContextVar("opened", default=None)


def open_tokenizer(path: str, vocab_size: int | None = None) -> Tokenizer:
    """Open a tokenizer by its path.

    Args:
        path: `bytes`, a folder or hub id with a tokenizer of transformers or a `tokenizer.model` of sentencepiece, or a
            sentencepiece model file.
        vocab_size: number of ids of the language model, which may have more than its tokenizer.

    Raises:
        ValueError: there is no tokenizer, or it has more ids than the language model.
    """
    known = _OPENED.get()
    if known is None:
        return _open(path, vocab_size)
    if (path, vocab_size) not in known:
        known[path, vocab_size] = _open(path, vocab_size)
    return known[path, vocab_size]


@contextmanager
def opened_once() -> Iterator[None]:
    """Share tokenizers among the models built within a `with` block; reading a large one takes as long as weights."""
    before = _OPENED.set({})
    try:
        yield
    finally:
        _OPENED.reset(before)


def _open(path: str, vocab_size: int | None) -> Tokenizer:
    if Path(path).name == BYTES:
        return ByteTokenizer(vocab_size)
    if is_hub_id(path) and not path.endswith(".model"):
        return HubTokenizer(path, vocab_size)
    tokenizer = _in_folder(Path(path)) if Path(path).is_dir() else SentencePieceTokenizer(path)
    _check_size(path, tokenizer.vocab_size, vocab_size)
    return tokenizer


def vocabulary_of(tokenizer: Tokenizer) -> str:
    """Return the size of a tokenizer's vocabulary and a digest of the texts of ids sampled from all of it."""
    tokenizer = tokenizer.loaded if isinstance(tokenizer, HubTokenizer) else tokenizer  # names differ, files decide
    digest = hashlib.sha256(str(tokenizer.vocab_size).encode())
    for i in range(0, tokenizer.vocab_size, max(1, tokenizer.vocab_size // _SAMPLED_IDS)):
        digest.update(tokenizer.decode([i]).encode(errors="surrogatepass") + b"\0")
    return f"{tokenizer.vocab_size} ids, {digest.hexdigest()[:8]}"


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Return a hash (32 hex digits) of what determines the ids of a text: the tokenizer's class, vocabulary and files.

    The files are those that `Tokenizer.save` writes.
    """
    tokenizer = tokenizer.loaded if isinstance(tokenizer, HubTokenizer) else tokenizer
    digest = hashlib.sha256(f"{type(tokenizer).__qualname__} {vocabulary_of(tokenizer)}".encode())
    with TemporaryDirectory(prefix="omnikit-tokenizer-") as folder:
        tokenizer.save(folder)
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:32]


def check_same_ids(tokenizer: Tokenizer, path: str, weights: str) -> None:
    """Check that weights fit a tokenizer, by the one that was saved with them.

    With another one of the same size all shapes fit, but ids stand for other texts, and the weights are worth nothing.

    Args:
        tokenizer: tokenizer of the model that takes the weights.
        path: path of the tokenizer with which they were trained, see `open_tokenizer`.
        weights: the weights' name in the error.

    Raises:
        ValueError: the ids of the two tokenizers stand for different texts.
    """
    if isinstance(tokenizer, ByteTokenizer) and Path(path).name == BYTES:
        return  # their ids are bytes, however many of them a model takes
    there, here = vocabulary_of(open_tokenizer(path)), vocabulary_of(tokenizer)
    if there != here:
        sizes = f"{there}; here {here}"
        raise ValueError(f"{weights}: trained with another tokenizer ({sizes}); use --llm.tokenizer {path}")


def beside(weights: str | None, otherwise: str) -> str:
    """Return the path of the tokenizer that belongs to a model's weights, for part files.

    Used as `tokenizer: !applyref:omnikit.llms.tokenizers.beside {weights: !ref <weights>, otherwise: bytes}`.

    Args:
        weights: folder or hub id of the weights, which holds the tokenizer, too.
        otherwise: path that is returned if `weights` is None.
    """
    return otherwise if weights is None else weights


def _in_folder(folder: Path) -> Tokenizer:
    """Open the tokenizer in a folder by transformers if it can read it without foreign code, else by sentencepiece."""
    config = folder / _SETTINGS
    plain = (folder / "tokenizer.json").exists() or (
        config.exists() and "auto_map" not in read_text(config, LARGEST_JSON)
    )
    model = folder / SentencePieceTokenizer.file_name
    return SentencePieceTokenizer(str(model)) if model.is_file() and not plain else TransformersTokenizer(str(folder))


def _check_size(path: str, found: int, expected: int | None) -> None:
    if expected is not None and found > expected:
        raise ValueError(f"llm.tokenizer: {path} has {found} ids, the language model only {expected}")


class SentencePieceTokenizer(Tokenizer):
    """A tokenizer read from a sentencepiece model file.

    Raises:
        ValueError: the file is missing or no sentencepiece model.
    """

    file_name = "tokenizer.model"

    def __init__(self, path: str):
        if not Path(path).exists():
            raise ValueError(f"llm.tokenizer: no such file: {path}")
        self.path = path
        content = read_bytes(path, _MOST_BYTES)
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise ValueError(f"llm.tokenizer: {path} is not a sentencepiece model") from error
        self.vocab_size = self.processor.vocab_size() if content else 0
        if not self.vocab_size:
            raise ValueError(f"llm.tokenizer: {path} is not a sentencepiece model: it has no ids")

    def encode(self, text: str) -> list[int]:
        check_unicode(text)
        ids = self.processor.encode(text)
        unknown = self.processor.unk_id()
        if unknown in ids:
            pieces = self.processor.encode(text, out_type=str)
            lacking = sorted({piece.strip("\u2581") for i, piece in zip(ids, pieces, strict=True) if i == unknown})
            known = "".join(sorted(p for p in map(self.processor.id_to_piece, range(self.vocab_size)) if len(p) == 1))
            raise ValueError(f"text {text!r}: the tokenizer lacks {', '.join(map(repr, lacking))}; it knows {known}")
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; ids of the model that the tokenizer does not have are skipped."""
        return self.processor.decode([i for i in ids if i < self.vocab_size])

    def save(self, folder: str) -> None:
        target = Path(folder) / self.file_name
        if target.resolve() != Path(self.path).resolve():
            shutil.copyfile(self.path, target)


class TransformersTokenizer(Tokenizer):
    """A tokenizer read by transformers from a folder.

    Text that spells a special token (`<|im_end|>`, `</s>`) is split like any other text and never becomes that token.
    Special are the added tokens that the tokenizer's file marks so; other added tokens (runs of spaces, a word or
    `<laugh>` that somebody added) are ordinary vocabulary.

    Raises:
        ValueError: the folder holds no tokenizer.
    """

    def __init__(self, path: str):
        self.path = path
        self.loaded = _read(Path(path))
        self.vocab_size = 1 + max(self.loaded.get_vocab().values(), default=-1)
        added = self.loaded.added_tokens_decoder if self.loaded.is_fast else {}  # slow ones never match special tokens
        self._special = {i: token.content for i, token in added.items() if token.special}

    def encode(self, text: str) -> list[int]:
        return self.encode_many([text])[0]

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        for text in texts:
            check_unicode(text)
        found = self.loaded(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [self._spelled(text, ids) for text, ids in zip(texts, found, strict=True)]

    def _spelled(self, text: str, ids: list[int]) -> list[int]:
        """Replace the ids of special tokens that the text spells by the ids of their characters.

        Models that look up whole words (Unigram, WordLevel) find special tokens even if these are not matched
        beforehand. The unknown token of other text stays.
        """
        spelled = {i for i in self._special.keys() & set(ids) if self._special[i] in text}
        if not spelled:
            return ids
        model = self.loaded.backend_tokenizer.model
        letters = {i: [piece.id for char in self._special[i] for piece in model.tokenize(char)] for i in spelled}
        return [piece for i in ids for piece in letters.get(i, [i])]

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; special tokens and ids that the tokenizer does not have are skipped."""
        known = [i for i in ids if i < self.vocab_size]
        return self.loaded.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def save(self, folder: str) -> None:
        try:
            self.loaded.save_pretrained(folder)
        except Exception as error:  # the tokenizers package reports a full disk as a plain `Exception`
            if "os error" not in str(error):
                raise
            raise unwritable(folder, error) from None


class HubTokenizer(Tokenizer):
    """A tokenizer on the model hub, downloaded on first use, so that building a model downloads nothing.

    Args:
        path: hub id of the tokenizer.
        vocab_size: number of ids of the language model, which may have more than its tokenizer.

    Raises:
        ValueError: no `vocab_size`; on first use also a tokenizer that cannot be downloaded or does not fit.
    """

    def __init__(self, path: str, vocab_size: int | None):
        if vocab_size is None:
            raise ValueError(f"llm.config.vocab_size: needed with a tokenizer that is not here ({path})")
        self.path, self.vocab_size = path, vocab_size

    @functools.cached_property
    def loaded(self) -> Tokenizer:
        """Tokenizer that belongs to the hub id, downloaded on first access."""
        return open_tokenizer(str(hub_folder(self.path)), self.vocab_size)

    @property
    def file_name(self) -> str:
        """Name of the file that `save` writes, or `SEVERAL` if it writes more than one."""
        return getattr(self.loaded, "file_name", SEVERAL)

    def encode(self, text: str) -> list[int]:
        return self.loaded.encode(text)

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        return self.loaded.encode_many(texts)

    def decode(self, ids: list[int]) -> str:
        return self.loaded.decode(ids)

    def save(self, folder: str) -> None:
        self.loaded.save(folder)


def read_chat_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read a tokenizer of transformers with its settings, which are special tokens and the chat template, if any.

    Raises:
        ValueError: the folder holds no tokenizer.
    """
    return _read(folder, with_settings=True)


def _read(folder: Path, *, with_settings: bool = False) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    whole, config = folder / "tokenizer.json", folder / _SETTINGS
    try:
        # it is complete; what the class named in the settings adds may differ by version
        if whole.exists() and not (with_settings and config.exists()):
            check_regular(whole, _MOST_BYTES)
            return PreTrainedTokenizerFast(tokenizer_file=str(whole))
        if config.exists():
            private = _private_copy(folder)
            loaded = read_settings(AutoTokenizer, private.name)
            loaded.omnikit_folder = private  # kept as long as the tokenizer, whose `save` may copy files from there
            return loaded
    except BaseException as error:
        # the tokenizers library raises plain exceptions, and a panic in its Rust code is not an `Exception`
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        message = f"llm.tokenizer: {folder} holds no tokenizer that transformers can read ({one_line(error)})"
        raise ValueError(message) from None
    raise ValueError(f"llm.tokenizer: {folder} holds neither tokenizer_config.json nor tokenizer.json")


def _private_copy(folder: Path) -> TemporaryDirectory:
    """Copy a tokenizer's own files to a temporary folder that holds nothing else.

    transformers passes settings to the tokenizer's class as they are, so a setting that names a file would have it
    read, wherever it is; and it follows links of chat templates in a subfolder.
    """
    private = TemporaryDirectory(prefix="omnikit-tokenizer-")
    for file in folder.iterdir():
        if file.suffix in TOKENIZER_FILES and not file.is_dir():
            (Path(private.name) / file.name).write_bytes(read_bytes(file, _MOST_BYTES))
    settings = read_json(folder / _SETTINGS)
    if not isinstance(settings, dict):
        raise ValueError(f"{_SETTINGS} is no object")
    kept = {key: value for key, value in settings.items() if key not in _PLACES and not key.endswith("_file")}
    (Path(private.name) / _SETTINGS).write_text(json.dumps(kept), encoding="utf-8")
    return private


class ByteTokenizer(Tokenizer):
    """A tokenizer whose tokens are the bytes of UTF-8 text; it needs no file, for models without training.

    Args:
        vocab_size: number of ids of the language model, if that is less than 256.
    """

    file_name = BYTES

    def __init__(self, vocab_size: int | None = None):
        self.vocab_size = min(256, vocab_size or 256)

    def encode(self, text: str) -> list[int]:
        lacking = sorted({char for char in text if max(char.encode()) >= self.vocab_size})
        if lacking:
            raise ValueError(f"text {text!r}: {', '.join(map(repr, lacking))} has bytes beyond {self.vocab_size - 1}")
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def save(self, folder: str) -> None:
        (Path(folder) / self.file_name).write_text("Each byte of the UTF-8 text is a token.\n", encoding="utf-8")
