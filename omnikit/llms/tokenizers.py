"""Text tokenizers."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import sentencepiece

from omnikit.errors import one_line, unwritable
from omnikit.files import check_unicode
from omnikit.hub import hub_folder, is_hub_id
from omnikit.interfaces import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTES = "bytes"


def open_tokenizer(path: str, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer that a path means: `bytes`, a folder or hub id with a transformers tokenizer or sentencepiece's
    `tokenizer.model`, or else a sentencepiece model file.

    Args:
        path: see above.
        vocab_size: ids of the language model, which may have more than its tokenizer.

    Raises:
        ValueError: nothing of the kind there, or more ids than the language model has.
    """
    if Path(path).name == BYTES:
        return ByteTokenizer(vocab_size)
    if is_hub_id(path) and not path.endswith(".model"):
        return HubTokenizer(path, vocab_size)
    tokenizer = _in_folder(Path(path)) if Path(path).is_dir() else SentencePieceTokenizer(path)
    _check_size(path, tokenizer.vocab_size, vocab_size)
    return tokenizer


def beside(weights: str | None, otherwise: str) -> str:
    """The tokenizer that lies with a model's weights, for part files; `otherwise` where they name none:
    `tokenizer: !applyref:omnikit.llms.tokenizers.beside {weights: !ref <weights>, otherwise: bytes}`."""
    return otherwise if weights is None else weights


def _in_folder(folder: Path) -> Tokenizer:
    """transformers' own where it can read it; with a class of its own (Baichuan) it is sentencepiece's."""
    config = folder / "tokenizer_config.json"
    plain = (folder / "tokenizer.json").is_file() or (config.is_file() and "auto_map" not in config.read_text("utf-8"))
    model = folder / SentencePieceTokenizer.file_name
    return SentencePieceTokenizer(str(model)) if model.is_file() and not plain else TransformersTokenizer(str(folder))


def _check_size(path: str, found: int, expected: int | None) -> None:
    if expected is not None and found > expected:
        raise ValueError(f"llm.tokenizer: {path} has {found} ids, the language model only {expected}")


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model file.

    Raises:
        ValueError: the file is missing or no sentencepiece model.
    """

    file_name = "tokenizer.model"

    def __init__(self, path: str):
        if not Path(path).is_file():
            raise ValueError(f"llm.tokenizer: no such file: {path}")
        self.path = path
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_file=path)
        except RuntimeError as error:
            raise ValueError(f"llm.tokenizer: {path} is not a sentencepiece model") from error
        self.vocab_size = self.processor.vocab_size()

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
        """Text of the ids; those that the model has and the tokenizer does not give nothing."""
        return self.processor.decode([i for i in ids if i < self.vocab_size])

    def save(self, folder: str) -> None:
        target = Path(folder) / self.file_name
        if target.resolve() != Path(self.path).resolve():
            shutil.copyfile(self.path, target)


class TransformersTokenizer(Tokenizer):
    """A folder with a tokenizer that transformers reads.

    Raises:
        ValueError: no tokenizer there.
    """

    def __init__(self, path: str):
        self.path = path
        self.loaded = _read(Path(path))
        self.vocab_size = len(self.loaded)

    def encode(self, text: str) -> list[int]:
        check_unicode(text)
        return self.loaded.encode(text, add_special_tokens=False)

    def count(self, texts: list[str]) -> list[int]:
        return [len(ids) for ids in self.loaded(texts, add_special_tokens=False)["input_ids"]]

    def decode(self, ids: list[int]) -> str:
        """Text of the ids; those that the model has and the tokenizer does not give nothing."""
        known = [i for i in ids if i < self.vocab_size]
        return self.loaded.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def save(self, folder: str) -> None:
        try:
            self.loaded.save_pretrained(folder)
        except Exception as error:  # the tokenizers package tells of a full disk by the bare class
            if "os error" not in str(error):
                raise
            raise unwritable(folder, error) from None


class HubTokenizer(Tokenizer):
    """The tokenizer of a hub id, fetched when it is first needed, so that building a model fetches nothing.

    Args:
        path: the hub id.
        vocab_size: ids of the language model, which the tokenizer may have fewer of.

    Raises:
        ValueError: no `vocab_size`; later, that it is not to be had or does not fit.
    """

    def __init__(self, path: str, vocab_size: int | None):
        if vocab_size is None:
            raise ValueError(f"llm.config.vocab_size: needed with a tokenizer that is not here ({path})")
        self.path, self.vocab_size = path, vocab_size

    @functools.cached_property
    def loaded(self) -> Tokenizer:
        """What the hub has."""
        return open_tokenizer(str(hub_folder(self.path)), self.vocab_size)

    @property
    def file_name(self) -> str:
        """What `save` writes: a file, or several in a folder."""
        return getattr(self.loaded, "file_name", ".")

    def encode(self, text: str) -> list[int]:
        return self.loaded.encode(text)

    def count(self, texts: list[str]) -> list[int]:
        return self.loaded.count(texts)

    def decode(self, ids: list[int]) -> str:
        return self.loaded.decode(ids)

    def save(self, folder: str) -> None:
        self.loaded.save(folder)


def _read(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if (folder / "tokenizer.json").is_file():  # says everything; what the named class adds may differ by version
            return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        if (folder / "tokenizer_config.json").is_file():
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain exceptions
        message = f"llm.tokenizer: {folder} holds no tokenizer that transformers can read ({one_line(error)})"
        raise ValueError(message) from None
    raise ValueError(f"llm.tokenizer: {folder} holds neither tokenizer_config.json nor tokenizer.json")


class ByteTokenizer(Tokenizer):
    """Each byte of the UTF-8 text is a token: a stand-in that needs no file, for models without training.

    Args:
        vocab_size: ids of the language model, if it has less than 256.
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
