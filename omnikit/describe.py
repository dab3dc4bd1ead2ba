"""Human-readable description of a model: its parts, widths, streams, ids and sizes; works on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from omnikit.checkpoint import existing, outline, read_parts
from omnikit.hparams import KINDS, build_parts, names_of
from omnikit.hparams.yaml_tree import dotted_name, read_tree_text
from omnikit.interfaces import count_parameters
from omnikit.model import OmniLM
from omnikit.skip_init import SkipInit


def describe_parts(settings: Mapping[str, Any]) -> str:
    """Describe the model built from parts by name and their options, without reading weights.

    Args:
        settings: dotted key -> value, such as `{"codec": "snac_mini", "encoder.width": 64, "pretrained": False}`.

    Raises:
        ValueError: a name or an option is unknown.
    """
    with SkipInit(), torch.device("meta"):
        return describe(build_parts(overrides=settings)["model"])


def describe_checkpoint(folder: str | Path | None) -> str:
    """Describe the model of a checkpoint; see `omnikit.checkpoint.existing` for its name.

    Raises:
        ValueError: a file of the folder is missing or refused.
    """
    folder = existing(folder)
    return f"checkpoint  {folder}\n\n" + describe(outline(folder))


def parts_of(folder: str | Path) -> dict[str, str]:
    """Return the name of each part of a checkpoint by kind, or its class if it was saved without names.

    Raises:
        ValueError: a file of the folder is missing or refused.
    """
    text = read_parts(folder)
    tree, names = read_tree_text(text, str(folder)), names_of(text)
    return {kind: names.get(kind, dotted_name(tree[kind])) for kind in KINDS if kind in tree}


def describe(model: OmniLM) -> str:
    """Return a table of a model's parts, followed by its streams, ids and parameter counts."""
    names = names_of(model.recipe)
    rows = [("part", "name", "class", "parameters", "numbers")]
    for part, module in model.parts().items():
        rows.append((part, names.get(part, ""), _class(module), f"{count_parameters(module):,}", _numbers(module)))
    rows += [("pattern", names.get("pattern", ""), _class(model.pattern), "", _pattern(model))]
    rows += [("all", "", "", f"{count_parameters(model):,}", "")]
    return _table(rows) + "\n\n" + "\n".join([*_ids(model), *_sizes(model), _tokenizer(model), *_public(model)])


def _class(part: object) -> str:
    return f"{type(part).__module__.removeprefix('omnikit.')}.{type(part).__name__}"


_NUMBERS = (
    ("dim", "{} wide"),
    ("vocab_size", "{} ids"),
    ("stride", "{} frames per position"),
    ("num_codebooks", "{} codebooks"),
    ("codebook_size", "of {} codes"),
    ("frame_rate", "{:g} frames/s"),
    ("sample_rate", "{} Hz"),
    ("lookahead", "{} samples behind when streaming"),
)


def _numbers(part: object) -> str:
    known = [(getattr(part, name, None), words) for name, words in _NUMBERS]
    return ", ".join(words.format(value) for value, words in known if isinstance(value, int | float))


def _pattern(model: OmniLM) -> str:
    return f"{len(model.pattern.carries)} audio streams, {model.pattern.max_delay} steps until all have begun"


def _ids(model: OmniLM) -> list[str]:
    layout = model.layout
    audio = sorted(set(layout.sizes[1:]))
    return [
        f"streams     {layout.num_streams}: 1 text, {layout.num_streams - 1} audio",
        f"text ids    {layout.sizes[0]}: {layout.text_vocab} of the backbone, {layout.num_text_specials} special",
        f"audio ids   {', '.join(map(str, audio))} per stream",
        f"ids in all  {layout.total}",
    ]


def _sizes(model: OmniLM) -> list[str]:
    """Return lines of text with a model's parameter counts by purpose; tied heads are counted with the embeddings."""
    known, new = model.llm, (model.new_text_embeddings, model.new_audio_embeddings)
    embeddings, heads = (sum(count_parameters(getattr(rows, side)) for rows in new) for side in ("embed", "head"))
    speaking = [part for name, part in model.parts().items() if name not in ("encoder", "codec")]
    return [
        f"backbone    {count_parameters(known):,} parameters, its head with it",
        f"new ids     {embeddings:,} parameters in embeddings, {heads:,} in heads",
        f"trained     {sum(map(count_parameters, speaking)):,} parameters, all but encoder and codec",
    ]


def _tokenizer(model: OmniLM) -> str:
    tokenizer = model.llm.tokenizer
    return f"tokenizer   {_class(tokenizer)}, {getattr(tokenizer, 'path', 'no file')}"


def _public(model: OmniLM) -> list[str]:
    """Return a line of text for each part whose public weights a checkpoint names instead of storing them."""
    public = {kind: getattr(part, "public", None) for kind, part in model.parts().items()}
    return [f"weights     {kind}: {each}, not in the checkpoint" for kind, each in public.items() if each is not None]


def _table(rows: list[tuple[str, ...]]) -> str:
    columns = list(zip(*rows, strict=True))
    columns = [_padded(column, right=column[0] == "parameters") for column in columns]
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def _padded(column: tuple[str, ...], right: bool) -> list[str]:
    width = max(map(len, column))
    return [cell.rjust(width) if right else cell.ljust(width) for cell in column]
