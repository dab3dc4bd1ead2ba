"""A trained model as a folder: `hparams.yaml` (its parts), `model.safetensors`, the tokenizer's files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml.nodes import MappingNode

from omnikit.files import present_folder, whole_folder, write_text
from omnikit.hparams import check_safe, different_parts, packaged
from omnikit.hparams.safe_yaml import check_bounds, construct, tokenizer_node
from omnikit.hparams.yaml_limits import MOST_BYTES
from omnikit.hparams.yaml_tree import read_tree_text, write_tree
from omnikit.hub import hub_folder, is_hub_id
from omnikit.llms.build_modes import SKELETON_DTYPE, for_inference, skeletons
from omnikit.llms.tokenizers import SEVERAL, TOKENIZER_FILES, opened_once
from omnikit.model import OmniLM
from omnikit.old_names import with_new_paths
from omnikit.size_limits import check_memory, limited
from omnikit.skip_init import SkipInit
from omnikit.torchrun import check_device
from omnikit.untrusted_files import inside, read_text
from omnikit.weights import FILE_NAME, Stored, check_fits, load_into, save_weights, stored_tensors

HPARAMS = "hparams.yaml"
SHIPPED = packaged("pretrained/mini")
"""The mini system that comes with the package."""


def save(model: OmniLM, folder: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write `folder` anew; other files in it are kept. A kill or a full disk leaves the old checkpoint or the new one,
    whole.

    Raises:
        ValueError: the model was not built from hparams, so there is nothing to build it from again; it was loaded
            without its weights; or the disk is full.
    """
    if not getattr(model, "recipe", ""):
        raise ValueError("checkpoint: this model was not built from hparams (it has no `recipe`)")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("checkpoint: this model was loaded without its weights (for the engine openvino)")
    folder = Path(folder)
    with whole_folder(folder) as aside:
        write_text(aside / HPARAMS, _with_tokenizer(model.recipe, _tokenizer_file(model)))
        save_weights(model, aside, dtype)
        model.llm.tokenizer.save(str(aside))
        _keep_others(folder, aside)


def load(
    folder: str | Path | None = None,
    device: str = "cpu",
    allow: tuple[str, ...] = (),
    skeleton: bool = False,
    dtype: torch.dtype = torch.float32,
) -> OmniLM:
    """Build a saved model, in evaluation mode and for inference alone, see `omnikit.llms.build_modes`.

    Args:
        folder: or a hub id; `None` = the mini system that comes with the package.
        device: where it shall run.
        allow: modules of one's own whose classes the checkpoint may name.
        skeleton: leave the backbone's blocks and heads out: an engine computes them. The rest is in the type of
            `omnikit.llms.build_modes`, and what can stays in the file.
        dtype: of a model that is not a skeleton, see `OmniLM.to_dtype`; weights never take memory in another one.

    Raises:
        ValueError: no such folder, a piece of it is missing, refused or does not fit, or no such device.
    """
    check_device(device)
    parts = _read(existing(SHIPPED if folder is None else folder), allow)
    wanted = SKELETON_DTYPE if skeleton else dtype
    with SkipInit(), for_inference(), skeletons() if skeleton else nullcontext(), opened_once():
        parts.check_sizes(None if skeleton else wanted)
        model = parts.build().to_dtype(wanted)
    load_into(model, parts.weights, mapped=skeleton, whole=True)
    return (model if skeleton else model.to(device)).eval()


def build(folder: str | Path, allow: tuple[str, ...] = ()) -> OmniLM:
    """The model of a checkpoint with random weights; see `load`."""
    parts = _read(existing(folder), allow)
    with opened_once():
        parts.check_sizes()
        return parts.build()


def outline(folder: str | Path) -> OmniLM:
    """The model of a checkpoint on the meta device, without weights, but compared with those of the checkpoint.

    Raises:
        ValueError: see `load`; values of weights are not looked at.
    """
    return _read(existing(folder)).outline()


@dataclass(frozen=True)
class _Parts:
    """A checkpoint's YAML text, checked, and the weights that belong to it."""

    source: str  # the YAML file
    text: str  # with the complete path of the tokenizer
    nodes: MappingNode  # of the text
    weights: Path
    allow: tuple[str, ...]

    @cached_property
    def stored(self) -> Stored:
        """The weights by name; their values stay in the file."""
        return stored_tensors(self.weights)

    def build(self) -> OmniLM:
        """The model with random weights, as large as its weights are at most."""
        weights = self.stored.values()
        try:
            with limited(weights):
                model = construct(self.nodes, self.source).get("model")
        except ValueError as error:
            raise ValueError(f"{self.source}: {error}" if self.source not in str(error) else str(error)) from None
        if not isinstance(model, OmniLM):
            raise ValueError(f"{self.source}: names no model (`model: !new:omnikit.model.OmniLM`)")
        model.recipe = self.text
        return model

    def outline(self) -> OmniLM:
        """The model on the meta device, where it takes no memory; its weights fit it."""
        stored = self.stored  # read before: within the meta device's context it takes several times as long
        with SkipInit(), torch.device("meta"):
            model = self.build()
        check_fits(model, stored, self.weights)
        return model

    def check_sizes(self, dtype: torch.dtype | None = None) -> None:
        """Compare the sizes in the text with those of the weights before memory is taken for them. Classes of one's own
        (`allow`) may need real tensors, so they are not tried out on the meta device.

        Args:
            dtype: of the model that shall fit this machine's memory; `None` = that is not asked.
        """
        if self.allow:
            return
        model = self.outline()
        if dtype is not None:
            check_memory(sum(tensor.numel() for tensor in model.parameters()) * dtype.itemsize, self.source)


def restore(model: OmniLM, folder: str | Path) -> None:
    """Take over the weights of a checkpoint, such as those of the stage before.

    Raises:
        ValueError: the checkpoint was trained with other parts; the message names them.
    """
    folder = existing(folder)
    trained = _hparams(folder)
    check_bounds(trained, str(folder / HPARAMS))
    differences = different_parts(trained, model.recipe)
    other = [f"{part} is {there} there and {here} here" for part, (there, here) in differences.items()]
    if other:
        raise ValueError(f"checkpoint {folder} was trained with other parts: {'; '.join(other)}")
    load_into(model, _piece(folder, FILE_NAME))


def read_parts(folder: str | Path, allow: tuple[str, ...] = ()) -> str:
    """The YAML text of a checkpoint's parts, checked, its tokenizer's path complete.

    Raises:
        ValueError: a piece is missing, or the text holds what a checkpoint may not.
    """
    return _read(existing(folder), allow).text


def _read(folder: Path, allow: tuple[str, ...] = ()) -> _Parts:
    """The pieces of a checkpoint, each a file of its folder."""
    text, source = _hparams(folder), str(folder / HPARAMS)
    weights = _piece(folder, FILE_NAME)
    nodes = check_safe(text, source, allow)
    tokenizer = tokenizer_node(nodes)
    if tokenizer is not None:
        tokenizer.value = str(_tokenizer_of(folder, tokenizer.value))
        text = _with_tokenizer(text, tokenizer.value, source)
    return _Parts(source, text, nodes, weights, allow)


def _hparams(folder: Path) -> str:
    return with_new_paths(read_text(_piece(folder, HPARAMS), MOST_BYTES))


def _tokenizer_of(folder: Path, name: str) -> Path:
    """The file that a checkpoint's YAML names, or the folder itself where the tokenizer has several."""
    if name != SEVERAL:
        return _piece(folder, name)
    for file in folder.iterdir():
        if file.suffix in TOKENIZER_FILES and not file.is_dir():
            _piece(folder, file.name)
    return folder


def weights_of(folder: str | Path | None) -> Path:
    """The file with a checkpoint's weights; see `load`.

    Raises:
        ValueError: there is no such folder, or none in it.
    """
    return _piece(existing(SHIPPED if folder is None else folder), FILE_NAME)


def existing(folder: str | Path) -> Path:
    """The folder, or what a kill has left of it, or its copy from the hub.

    Raises:
        ValueError: the hub does not give it.
    """
    folder = Path(folder)
    if (present := present_folder(folder)).is_dir():
        return present
    try:
        return hub_folder(str(folder)) if is_hub_id(folder) else folder
    except ValueError as error:
        raise ValueError(f"checkpoint {error}") from None


def _piece(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise ValueError(f"checkpoint {folder}: no such folder")
    try:
        return inside(folder, name)
    except ValueError as error:
        raise ValueError(f"checkpoint {error}") from None


def _with_tokenizer(text: str, path: str, source: str = HPARAMS) -> str:
    tree: Any = read_tree_text(text, source)
    if isinstance(tree.get("llm"), Mapping) and "tokenizer" in tree["llm"]:
        tree["llm"]["tokenizer"] = path
    return write_tree(tree)


def _tokenizer_file(model: OmniLM) -> str:
    """What the tokenizer writes: a file, or several that are found by their folder."""
    return getattr(model.llm.tokenizer, "file_name", SEVERAL)


def _keep_others(folder: Path, aside: Path) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        if not (aside / path.name).exists():
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, aside / path.name)
