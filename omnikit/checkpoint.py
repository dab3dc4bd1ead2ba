"""A trained model as a folder: `hparams.yaml` (its parts), `model.safetensors`, the tokenizer's files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from omnikit.errors import writing
from omnikit.files import aside_of, read_text, write_text
from omnikit.hparams import check_safe, different_parts, packaged, safe_load
from omnikit.hparams.tree import read_tree_text, write_tree
from omnikit.hub import hub_folder, is_hub_id
from omnikit.llms.skeleton import DTYPE, skeletons
from omnikit.model import OmniLM
from omnikit.torchrun import check_device
from omnikit.undrawn import Undrawn
from omnikit.weights import FILE_NAME, load_into, save_weights

HPARAMS = "hparams.yaml"
SHIPPED = packaged("pretrained/mini")
"""The mini system that comes with the package."""


def save(model: OmniLM, folder: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write `folder` anew; other files in it are kept. A kill or a full disk leaves the old checkpoint or the new one,
    whole.

    Raises:
        ValueError: the model was not built from hparams, so there is nothing to build it from again; or the disk is
            full.
    """
    if not getattr(model, "recipe", ""):
        raise ValueError("checkpoint: this model was not built from hparams (it has no `recipe`)")
    folder = Path(folder)
    aside = aside_of(folder)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _recover(folder)
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir()
            write_text(aside / HPARAMS, _with_tokenizer(model.recipe, _tokenizer_file(model)))
            save_weights(model, aside, dtype)
            model.llm.tokenizer.save(str(aside))
            _keep_others(folder, aside)
            _replace(folder, aside)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def load(
    folder: str | Path | None = None,
    device: str = "cpu",
    allow: tuple[str, ...] = (),
    skeleton: bool = False,
    dtype: torch.dtype = torch.float32,
) -> OmniLM:
    """Build a saved model, in evaluation mode.

    Args:
        folder: or a hub id; `None` = the mini system that comes with the package.
        device: where it shall run.
        allow: modules of one's own whose classes the checkpoint may name.
        skeleton: leave the backbone's blocks and heads out: an engine computes them. The rest is in the type of
            `omnikit.llms.skeleton`, and what can stays in the file.
        dtype: of a model that is not a skeleton, see `OmniLM.to_dtype`; weights never take memory in another one.

    Raises:
        ValueError: no such folder, a piece of it is missing, refused or does not fit, or no such device.
    """
    check_device(device)
    folder = weights_of(folder).parent
    _piece(folder, HPARAMS)
    with Undrawn(), skeletons() if skeleton else nullcontext():
        model = build(folder, allow).to_dtype(DTYPE if skeleton else dtype)
    load_into(model, folder, mapped=skeleton, whole=True)
    return (model if skeleton else model.to(device)).eval()


def build(folder: str | Path, allow: tuple[str, ...] = ()) -> OmniLM:
    """The model of a checkpoint with random weights; see `load`."""
    text = read_parts(folder, allow)
    source = str(Path(folder) / HPARAMS)
    model = safe_load(text, source, allow).get("model")
    if not isinstance(model, OmniLM):
        raise ValueError(f"{source}: names no model (`model: !new:omnikit.model.OmniLM`)")
    model.recipe = text
    return model


def restore(model: OmniLM, folder: str | Path) -> None:
    """Take over the weights of a checkpoint, such as those of the stage before.

    Raises:
        ValueError: the checkpoint was trained with other parts; the message names them.
    """
    folder = existing(folder)
    trained = read_text(_piece(folder, HPARAMS))
    differences = different_parts(trained, model.recipe)
    other = [f"{part} is {there} there and {here} here" for part, (there, here) in differences.items()]
    if other:
        raise ValueError(f"checkpoint {folder} was trained with other parts: {'; '.join(other)}")
    load_into(model, folder)


def read_parts(folder: str | Path, allow: tuple[str, ...] = ()) -> str:
    """The YAML text of a checkpoint's parts, checked, its tokenizer's path complete.

    Raises:
        ValueError: a piece is missing, or the text holds what a checkpoint may not.
    """
    folder = existing(folder)
    file = _piece(folder, HPARAMS)
    text = read_text(file)
    check_safe(text, str(file), allow)
    llm = read_tree_text(text, str(file)).get("llm")
    tokenizer = llm.get("tokenizer") if isinstance(llm, Mapping) else None
    if not isinstance(tokenizer, str):
        return text
    return _with_tokenizer(text, str(_piece(folder, Path(tokenizer).name)))


def weights_of(folder: str | Path | None) -> Path:
    """The file with a checkpoint's weights; see `load`.

    Raises:
        ValueError: there is no such folder, or none in it.
    """
    return _piece(existing(SHIPPED if folder is None else folder), FILE_NAME)


def existing(folder: str | Path) -> Path:
    """The folder, or what a kill has left of it in `_replace`, or its copy from the hub.

    Raises:
        ValueError: the hub does not give it.
    """
    folder = Path(folder)
    if folder.is_dir() or _old(folder).is_dir():
        return folder if folder.is_dir() else _old(folder)
    try:
        return hub_folder(str(folder)) if is_hub_id(folder) else folder
    except ValueError as error:
        raise ValueError(f"checkpoint {error}") from None


def _piece(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise ValueError(f"checkpoint {folder}: no such folder")
    if not (folder / name).exists():
        raise ValueError(f"checkpoint {folder}: {name} is missing")
    return folder / name


def _with_tokenizer(text: str, path: str) -> str:
    tree: Any = read_tree_text(text, HPARAMS)
    if isinstance(tree.get("llm"), Mapping) and "tokenizer" in tree["llm"]:
        tree["llm"]["tokenizer"] = path
    return write_tree(tree)


def _tokenizer_file(model: OmniLM) -> str:
    """What the tokenizer writes: a file, or several that are found by their folder."""
    return getattr(model.llm.tokenizer, "file_name", ".")


def _keep_others(folder: Path, aside: Path) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        if not (aside / path.name).exists():
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, aside / path.name)


def _replace(folder: Path, aside: Path) -> None:
    """Folders cannot be exchanged in one step everywhere: a kill in between leaves `<folder>.old`."""
    old = _old(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    os.rename(aside, folder)
    shutil.rmtree(old, ignore_errors=True)


def _recover(folder: Path) -> None:
    if not folder.exists() and _old(folder).is_dir():
        os.rename(_old(folder), folder)


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")
