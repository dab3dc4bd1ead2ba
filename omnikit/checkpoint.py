"""Checkpoints: a trained model as a folder of `hparams.yaml` (its parts), `model.safetensors` and tokenizer files.

A part with public weights that training has not changed is stored as their name and fingerprint in `hparams.yaml`:

    public_weights:
      encoder: {name: base, fingerprint: 50867345..}

Loading reads them from a file that it is given, from the folder in `OMNIKIT_WEIGHTS`, or through the part's library.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml.nodes import MappingNode
from torch import Tensor

from omnikit.errors import there_and_here
from omnikit.files import present_folder, whole_folder, write_text
from omnikit.hparams import check_safe, different_parts, packaged
from omnikit.hparams.name_lookup import nearest
from omnikit.hparams.safe_yaml import check_bounds, construct, tokenizer_node
from omnikit.hparams.yaml_limits import MOST_BYTES
from omnikit.hparams.yaml_tree import read_tree_text, write_tree
from omnikit.hub import hub_folder, is_hub_id
from omnikit.llms.build_modes import SKELETON_DTYPE, for_inference, skeletons
from omnikit.llms.tokenizers import SEVERAL, TOKENIZER_FILES, check_same_ids, opened_once
from omnikit.model import OmniLM
from omnikit.old_names import with_new_paths
from omnikit.public_weights import KEY as PUBLIC
from omnikit.public_weights import KINDS as PUBLIC_KINDS
from omnikit.public_weights import PublicWeights, is_public, load_public, unchanged
from omnikit.size_limits import check_memory, limited
from omnikit.skip_init import SkipInit
from omnikit.torchrun import check_device
from omnikit.untrusted_files import inside, read_text
from omnikit.weights import FILE_NAME, LORA, Stored, check_fits, load_into, save_weights, stored_tensors

HPARAMS = "hparams.yaml"
PRETRAINED = Path(packaged("pretrained"))
"""Folder of the checkpoints that come with the package, each in a folder of its name."""
SHIPPED = str(PRETRAINED / "mini")
"""Folder of the checkpoint that is used where none is named."""


def save(
    model: OmniLM,
    folder: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    weights: Stored | None = None,
    *,
    whole: bool = False,
) -> None:
    """Write a model's checkpoint to a folder, without touching unrelated files in it.

    A kill or a full disk leaves the old checkpoint or the new one, each complete.

    Args:
        model: a model that was built from a recipe and has its weights.
        dtype: type in which floating-point weights are stored.
        weights: weights by name in place of the model's own, which may be shared among processes.
        whole: also store the tensors of parts whose weights are public.

    Raises:
        ValueError: the model was not built from a recipe, so there is nothing to build it from again; it was loaded
            without its weights; or the disk is full.
    """
    if not getattr(model, "recipe", ""):
        raise ValueError("checkpoint: this model was not built from hparams (it has no `recipe`)")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("checkpoint: this model was loaded without its weights (for the engine openvino)")
    folder = Path(folder)
    weights = model.state_dict(keep_vars=True) if weights is None else weights
    public = {} if whole else _public_parts(model, weights)
    stored = {name: tensor for name, tensor in weights.items() if _part_of(name) not in public}
    _write(model, folder, dtype, stored, public)


def _write(
    model: OmniLM, folder: Path, dtype: torch.dtype, weights: Stored, public: Mapping[str, PublicWeights]
) -> None:
    """Write a checkpoint of a model's recipe and tokenizer with the given weights; see `save`."""
    with whole_folder(folder) as aside:
        write_text(aside / HPARAMS, _with_tokenizer(model.recipe, _tokenizer_file(model)) + _public_text(public))
        save_weights(model, aside, dtype, weights)
        model.llm.tokenizer.save(str(aside))
        _keep_others(folder, aside)


def average(folders: Sequence[str | Path], target: str | Path) -> None:
    """Write a checkpoint whose weights are the means of the weights of several checkpoints of the same parts.

    Such checkpoints are of one training, or of trainings that went on from the same weights. Parts, tokenizer and
    integers are those of the first one.

    Args:
        folders: checkpoint folders, names of shipped systems or hub ids, see `existing`.
        target: folder of the new checkpoint; unrelated files in it stay.

    Raises:
        ValueError: there are fewer than two checkpoints; they differ in a part, the tokenizer or public weights; or one
            has LoRA, whose product is not averaged by averaging its factors. See also `load`.
    """
    if len(folders) < 2:
        raise ValueError(f"average: needs two checkpoints or more, got {len(folders)}")
    read = [_read(existing(folder)) for folder in folders]
    for parts in read:
        if any(LORA in name for name in parts.stored):
            raise ValueError(f"checkpoint {parts.source}: has LoRA weights, of which there is no mean")
    first, *others = read
    model = first.outline()
    for parts in others:
        _check_same_parts(parts, first, model)
        parts.outline()  # checks that its weights fit its parts
    means = {name: _mean([parts.stored[name] for parts in read]) for name in first.stored}
    dtypes = [tensor.dtype for parts in read for tensor in parts.stored.values() if tensor.is_floating_point()]
    _write(model, Path(target), reduce(torch.promote_types, dtypes), means, first.public)


def _check_same_parts(parts: _Parts, first: _Parts, model: OmniLM) -> None:
    """Check that a checkpoint can be averaged with the first one: same parts, public weights and token ids.

    Args:
        model: the model of the first one, for its tokenizer.

    Raises:
        ValueError: they differ.
    """
    other = different_parts(parts.text, first.text)
    if parts.public != first.public:
        other["public weights"] = str(parts.public), str(first.public)
    if other:
        raise ValueError(f"checkpoint {parts.source}: has other parts than {first.source}: {there_and_here(other)}")
    tokenizer = tokenizer_node(parts.nodes)
    if tokenizer is not None:
        check_same_ids(model.llm.tokenizer, tokenizer.value, f"checkpoint {parts.source}")


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    """Return the mean of tensors, computed in float32; of integers, which are not averaged, the first tensor."""
    if not tensors[0].is_floating_point():
        return tensors[0]
    total = torch.zeros_like(tensors[0], dtype=torch.float32)
    for tensor in tensors:
        total += tensor
    return total / len(tensors)


def load(
    folder: str | Path | None = None,
    device: str = "cpu",
    allow: tuple[str, ...] = (),
    skeleton: bool = False,
    dtype: torch.dtype = torch.float32,
    public_weights: Mapping[str, str | Path] | None = None,
) -> OmniLM:
    """Load a model from a checkpoint, in evaluation mode and for inference only; see `omnikit.llms.build_modes`.

    Args:
        folder: checkpoint folder, name of a shipped system or hub id, see `existing`.
        device: where the model shall run.
        allow: modules outside omnikit whose classes the checkpoint may name.
        skeleton: leave out the backbone's blocks and heads, because an engine computes them. The other weights have the
            type `omnikit.llms.build_modes.SKELETON_DTYPE`, and stay in the file where possible. A backbone with public
            weights is loaded whole.
        dtype: type of a model that is not a skeleton, see `OmniLM.to_dtype`; weights never take memory in another type,
            except public weights of a backbone in float16.
        public_weights: file, folder or name of the weights of parts that the checkpoint only names, by part; those of
            parts that are not given are found as `omnikit.public_weights.load_public` says.

    Raises:
        ValueError: the folder or a file in it is missing, refused or does not fit; there is no such device; or public
            weights are missing or others than the checkpoint names.
    """
    check_device(device)
    parts = _read(existing(folder), allow)
    _check_given(public_weights or {}, parts.public, parts.source)
    wanted = SKELETON_DTYPE if skeleton else dtype
    in_skeleton = skeleton and "llm" not in parts.public
    with SkipInit(), for_inference(), skeletons() if in_skeleton else nullcontext(), opened_once():
        parts.check_sizes(None if skeleton else wanted)
        # a fingerprint is computed in bfloat16, and values that float16 has rounded would give another one
        model = parts.build().to_dtype(torch.float32 if parts.public and wanted == torch.float16 else wanted)
    _load_public(model, parts.public, public_weights or {}, parts.source)
    model.to_dtype(wanted)
    load_into(model, parts.weights, mapped=skeleton, whole=True, without=parts.public)
    return (model if skeleton else model.to(device)).eval()


def build(folder: str | Path, allow: tuple[str, ...] = ()) -> OmniLM:
    """Build the model of a checkpoint with random weights; see `load` for the arguments and errors."""
    parts = _read(existing(folder), allow)
    with opened_once():
        parts.check_sizes()
        return parts.build()


def outline(folder: str | Path) -> OmniLM:
    """Build the model of a checkpoint on the meta device and compare its shapes with the checkpoint's weights.

    Raises:
        ValueError: the errors of `load`, except those about the values of weights, which are not read.
    """
    return _read(existing(folder)).outline()


@dataclass(frozen=True)
class _Parts:
    """The checked YAML text of a checkpoint, and the path of the file that holds its weights."""

    source: str  # path of the YAML file, for errors
    text: str  # its text, with the complete path of the tokenizer
    nodes: MappingNode  # the nodes of that text
    weights: Path
    public: dict[str, PublicWeights]  # by part
    allow: tuple[str, ...]

    @cached_property
    def stored(self) -> Stored:
        """Stored weights of the checkpoint by name, as tensors whose values stay in the file until they are used."""
        return stored_tensors(self.weights)

    def build(self) -> OmniLM:
        """Build the checkpoint's model with random weights, unless it is much larger than its stored weights."""
        weights = self.stored.values()
        try:
            # sizes of parts with public weights are not bounded by stored ones; `check_sizes` compares with the memory
            with limited(weights, math.inf if self.public else 0):
                model = construct(self.nodes, self.source).get("model")
        except ValueError as error:
            raise ValueError(f"{self.source}: {error}" if self.source not in str(error) else str(error)) from None
        if not isinstance(model, OmniLM):
            raise ValueError(f"{self.source}: names no model (`model: !new:omnikit.model.OmniLM`)")
        model.recipe = self.text
        for kind, public in self.public.items():
            getattr(model, kind).public = public
        return model

    def outline(self) -> OmniLM:
        """Build the checkpoint's model on the meta device, without memory, unless its stored weights do not fit it."""
        stored = self.stored  # read first, because it takes several times as long within the meta device's context
        with SkipInit(), torch.device("meta"):
            model = self.build()
        check_fits(model, stored, self.weights, without=self.public)
        return model

    def check_sizes(self, dtype: torch.dtype | None = None) -> None:
        """Refuse a model whose sizes in the YAML text do not fit its stored weights, before memory is allocated for it.

        Classes of modules in `allow` may need real tensors, so they are not tried on the meta device.

        Args:
            dtype: type of a model that has to fit this machine's memory; None = memory is not checked, unless a part
                has public weights.
        """
        if self.allow:
            return
        model = self.outline()
        dtype = torch.float32 if self.public and dtype is None else dtype
        if dtype is not None:
            buffers = sum(tensor.numel() * tensor.itemsize for tensor in model.buffers())
            weights = sum(tensor.numel() for tensor in model.parameters()) * dtype.itemsize
            check_memory(buffers + weights, self.source)


def restore(model: OmniLM, folder: str | Path) -> None:
    """Load the weights of a checkpoint, such as the previous stage's, into a model that has the same parts.

    Public weights that the checkpoint names are read from the file or folder in the part's own option `weights`, if it
    gives one, else as `load` finds them.

    Raises:
        ValueError: the checkpoint was trained with other parts, which the message names, or with another tokenizer,
            whose ids stand for other texts. Or public weights are missing or others than the checkpoint names.
    """
    folder = existing(folder)
    trained, source = _hparams(folder), str(folder / HPARAMS)
    root = check_bounds(trained, source)
    trained, public = _split_public(trained, source)
    if other := different_parts(trained, model.recipe):
        raise ValueError(f"checkpoint {folder} was trained with other parts: {there_and_here(other)}")
    tokenizer = tokenizer_node(root)
    if tokenizer is not None:
        check_same_ids(model.llm.tokenizer, str(_tokenizer_of(folder, tokenizer.value)), f"checkpoint {folder}")
    own = {kind: getattr(model, kind).weights for kind in public}
    _load_public(model, public, {kind: path for kind, path in own.items() if path and not is_public(path)}, source)
    load_into(model, _checked_file(folder, FILE_NAME), without=public)


def read_parts(folder: str | Path, allow: tuple[str, ...] = ()) -> str:
    """Return the checked YAML text of a checkpoint's parts, with the complete path of its tokenizer.

    Raises:
        ValueError: a file is missing, or the text holds something that is refused in a checkpoint.
    """
    return _read(existing(folder), allow).text


def _read(folder: Path, allow: tuple[str, ...] = ()) -> _Parts:
    """Read and check the files of a checkpoint folder."""
    text, source = _hparams(folder), str(folder / HPARAMS)
    weights = _checked_file(folder, FILE_NAME)
    nodes = check_safe(text, source, allow)
    tokenizer = tokenizer_node(nodes)
    if tokenizer is not None:
        tokenizer.value = str(_tokenizer_of(folder, tokenizer.value))
        text = _with_tokenizer(text, tokenizer.value, source)
    text, public = _split_public(text, source)
    return _Parts(source, text, nodes, weights, public, allow)


def _hparams(folder: Path) -> str:
    return with_new_paths(read_text(_checked_file(folder, HPARAMS), MOST_BYTES))


def _tokenizer_of(folder: Path, name: str) -> Path:
    """Return the tokenizer file that a checkpoint's YAML names, or the folder if the tokenizer has several files."""
    if name != SEVERAL:
        return _checked_file(folder, name)
    for file in folder.iterdir():
        if file.suffix in TOKENIZER_FILES and not file.is_dir():
            _checked_file(folder, file.name)
    return folder


def weights_of(folder: str | Path | None) -> Path:
    """Return the file with a checkpoint's weights; None = that of the mini system.

    Raises:
        ValueError: the folder does not exist, or there is no such file in it.
    """
    return _checked_file(existing(folder), FILE_NAME)


def shipped_systems() -> list[str]:
    """Return the names of the checkpoints that come with the package."""
    return sorted(file.parent.name for file in PRETRAINED.glob(f"*/{HPARAMS}"))


def existing(folder: str | Path | None) -> Path:
    """Return the local folder of a checkpoint that users name; None = the mini system that comes with the package.

    A folder of that name is used first, or its former version after a kill; then a system that comes with the package,
    such as `mini_whisper`; then a copy from the hub for an `owner/name`.

    Raises:
        ValueError: there is no such folder and no such shipped system, or the hub cannot provide it.
    """
    if folder is None:
        return Path(SHIPPED)
    folder = Path(folder)
    if (present := present_folder(folder)).is_dir():
        return present
    if str(folder) in (shipped := shipped_systems()):
        return PRETRAINED / folder
    if str(folder) == folder.name:
        raise ValueError(f"checkpoint {folder}: no such folder or shipped system{nearest(folder, shipped)}")
    try:
        return hub_folder(str(folder)) if is_hub_id(folder) else folder
    except ValueError as error:
        raise ValueError(f"checkpoint {error}") from None


def _checked_file(folder: Path, name: str) -> Path:
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


def _public_parts(model: OmniLM, weights: Stored) -> dict[str, PublicWeights]:
    """Return the public weights of those parts whose tensors in `weights` are still these, by part."""
    found = {}
    for kind in PUBLIC_KINDS:
        part = getattr(model, kind)
        if model.frozen and kind not in model.frozen:  # trained, so there is no need to compare
            continue
        if unchanged(part, {name.partition(".")[2]: each for name, each in weights.items() if _part_of(name) == kind}):
            found[kind] = part.public
    return found


def _part_of(name: str) -> str:
    return name.partition(".")[0]


def _public_text(public: Mapping[str, PublicWeights]) -> str:
    """Return the YAML text of public weights by part, which stands at the end of a checkpoint's text."""
    lines = [f'  {kind}: {{name: "{each.name}", fingerprint: "{each.fingerprint}"}}\n' for kind, each in public.items()]
    return "".join([f"{PUBLIC}:\n", *lines]) if public else ""


def _split_public(text: str, source: str) -> tuple[str, dict[str, PublicWeights]]:
    """Return a checked YAML text without the public weights that it names, and these by part."""
    if PUBLIC not in text:  # parsing would add to every start
        return text, {}
    tree: Any = read_tree_text(text, source)
    if PUBLIC not in tree:
        return text, {}
    public = {str(kind): PublicWeights(**entry) for kind, entry in tree.pop(PUBLIC).items()}
    return write_tree(tree), public


def _check_given(given: Mapping[str, str | Path], public: Mapping[str, PublicWeights], source: str) -> None:
    for kind, path in given.items():
        if kind not in public:
            names = ", ".join(public) or "no part"
            raise ValueError(f"--{kind}.weights {path}: {source} names public weights of {names}, so it cannot be used")


def _load_public(
    model: OmniLM, public: Mapping[str, PublicWeights], given: Mapping[str, str | Path], source: str
) -> None:
    for kind, each in public.items():
        try:
            load_public(getattr(model, kind), kind, each, given.get(kind))
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None


def _tokenizer_file(model: OmniLM) -> str:
    """Return the name of the file that a tokenizer is saved to, or `SEVERAL` if it has more than one file."""
    return getattr(model.llm.tokenizer, "file_name", SEVERAL)


def _keep_others(folder: Path, aside: Path) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        if not (aside / path.name).exists():
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, aside / path.name)
