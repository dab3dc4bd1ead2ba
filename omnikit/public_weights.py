"""Public weights by name: the files that hold them here, and the fingerprint by which they are recognised.

A checkpoint may name the public weights of a part instead of storing the part's tensors, see `omnikit.checkpoint`.
Guide: docs/swap.md.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from omnikit.errors import MissingWeights
from omnikit.weights import LORA

if TYPE_CHECKING:
    from omnikit.interfaces import Part

FOLDER = "OMNIKIT_WEIGHTS"
"""Environment variable with the folder in which public weights are looked for before their library is asked."""
KEY = "public_weights"
"""Key of a checkpoint's YAML text whose mapping gives the name and fingerprint of a part's public weights, by part."""
KINDS = ("encoder", "llm", "codec")
"""Parts that may have public weights, as the model's attributes are called."""
SUFFIXES = (".pt", ".safetensors")
NAME = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?(?<!\.pt)(?<!\.safetensors)")
"""Form of a name of public weights; with one of the suffixes it would be a file."""
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_SHOWN = 12


@dataclass(frozen=True)
class PublicWeights:
    """Weights that anybody can get by their name, with the fingerprint of the tensors that a part has of them."""

    name: str  # `base` as openai-whisper calls it, or `owner/name` of the hub
    fingerprint: str  # of `fingerprint`, 64 hex digits

    def __str__(self) -> str:
        return f"{self.name} (fingerprint {self.fingerprint[:_SHOWN]})"


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a part's tensors in the order of their names: each name, shape and values, in hex.

    Floating-point values are rounded to bfloat16, so files that store the same weights in different types agree. LoRA's
    own tensors are left out.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in tensors if LORA not in name):
        tensor = tensors[name].detach().cpu()
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        values = tensor.to(torch.bfloat16).view(torch.int16) if tensor.is_floating_point() else tensor
        digest.update(values.contiguous().flatten().numpy())
    return digest.hexdigest()


def is_public(weights: str | None) -> bool:
    """Return whether the value of a `weights` option names public weights, and not a file or folder that exists here.
    """
    return weights is not None and NAME.fullmatch(weights) is not None and not Path(weights).exists()


def in_folder(name: str) -> str | None:
    """Return the path of public weights in the folder that `OMNIKIT_WEIGHTS` names; None = not there, or none is named.

    The weights `base` are `base.pt`, `base.safetensors` or a folder `base`; for `owner/name`, the owner may be left
    out.

    Raises:
        ValueError: the folder does not exist.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise ValueError(f"{FOLDER} {folder}: no such folder")
    stems = dict.fromkeys((name, name.rpartition("/")[2]))
    paths = (Path(folder) / f"{stem}{suffix}" for stem in stems for suffix in (*SUFFIXES, ""))
    return next((str(path) for path in paths if path.exists()), None)


def located(weights: str | None) -> str | None:
    """Return the path at which the value of a `weights` option is found in `OMNIKIT_WEIGHTS`, else the value itself.

    Raises:
        ValueError: see `in_folder`.
    """
    return (in_folder(weights) if is_public(weights) else None) or weights


def load_named(part: Part) -> None:
    """Let a part read the weights that its option names, and note which public ones these are.

    Raises:
        ValueError: see `Part.load_weights`.
    """
    part.load_weights()
    part.public = PublicWeights(part.weights, fingerprint(part.state_dict())) if is_public(part.weights) else None


def load_public(part: Part, kind: str, public: PublicWeights, given: str | Path | None = None) -> None:
    """Fill a part with public weights.

    Args:
        part: part to fill, in float32 or bfloat16.
        kind: name of the part, for errors.
        public: the weights that the part must get.
        given: file, folder or name to read them from; None = the folder in `OMNIKIT_WEIGHTS`, or the library that
            publishes them, from its cache or by download.

    Raises:
        ValueError: the weights are not here and cannot be fetched, cannot be read, or are others.
    """
    where, owner = (_source(kind, public.name), kind) if given is None else (str(given), f"--{kind}.weights")
    option, part.weights = part.weights, where
    try:
        part.load_weights()
    except MissingWeights as error:
        raise ValueError(_missing(kind, public.name, str(error)) if given is None else f"{owner}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from None
    finally:
        part.weights = option
    found = fingerprint(part.state_dict())
    if found != public.fingerprint:
        raise ValueError(f"{owner}: the weights of {where} have the fingerprint {found[:_SHOWN]}, needed are {public}")
    part.public = public


def unchanged(part: Part, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors of a part, by name, are still the public weights that it was filled with."""
    if part.public is None or any(LORA in name for name in tensors):
        return False
    return fingerprint(tensors) == part.public.fingerprint


def _source(kind: str, name: str) -> str:
    """Return where public weights that a checkpoint names are read, never a local path that happens to be so called."""
    if found := in_folder(name):
        return found
    local = name.partition("/")[0]
    if Path(local).exists():
        raise ValueError(
            f"{kind}: the public weights {name} could be meant or {local} in this folder; run in another folder, "
            f"set {FOLDER}, or give --{kind}.weights"
        )
    return name


def _missing(kind: str, name: str, reason: str) -> str:
    stem = name.rpartition("/")[2]
    files = f"the folder {stem}" if "/" in name else f"{stem}.pt"
    library = "the hub" if "/" in name else "openai-whisper"
    return (
        f"{kind}: the public weights {name} ({library}) are not here and cannot be fetched; put {files} into a folder "
        f"and set {FOLDER} to it, or give --{kind}.weights ({reason})"
    )
