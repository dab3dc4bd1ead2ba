"""Text tokenizers."""

from __future__ import annotations

import shutil
from pathlib import Path

import sentencepiece

from omnikit.interfaces import Tokenizer


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
        ids = self.processor.encode(text)
        unknown = self.processor.unk_id()
        if unknown in ids:
            pieces = self.processor.encode(text, out_type=str)
            lacking = sorted({piece.strip("\u2581") for i, piece in zip(ids, pieces, strict=True) if i == unknown})
            known = "".join(sorted(p for p in map(self.processor.id_to_piece, range(self.vocab_size)) if len(p) == 1))
            raise ValueError(f"text {text!r}: the tokenizer lacks {', '.join(map(repr, lacking))}; it knows {known}")
        return ids

    def decode(self, ids: list[int]) -> str:
        return self.processor.decode(ids)

    def save(self, folder: str) -> None:
        target = Path(folder) / self.file_name
        if target.resolve() != Path(self.path).resolve():
            shutil.copyfile(self.path, target)
