"""Conversion of the published Mini-Omni (arXiv 2408.16725) to an `OmniLM`.

Reads `lit_model.pth` with `model_config.yaml`, the tokenizer of Qwen2, the encoder of Whisper-small and SNAC at 24 kHz.
"""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnikit import checkpoint
from omnikit.convert.mini_omni_names import ADAPTERS, Sizes, our_names, published_shapes, read_sizes
from omnikit.encoders.whisper_network import encoder_sizes
from omnikit.encoders.whisper_weights import read_whisper
from omnikit.errors import one_line
from omnikit.hparams import build_parts
from omnikit.hparams.yaml_tree import read_tree
from omnikit.hub import hub_file, hub_folder, is_hub_id
from omnikit.model import OmniLM
from omnikit.untrusted_files import read_json
from omnikit.untrusted_models import read_pickle

WEIGHTS, CONFIG, WHISPER = "lit_model.pth", "model_config.yaml", "small.pt"
SNAC_24KHZ = "hubertsiuzdak/snac_24khz"
NONE = "none"
_SHOWN = 3

logger = logging.getLogger(__name__)


def from_state_dict(
    state_dict: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    parts: Mapping[str, Any] | None = None,
    source: str = "state_dict",
) -> OmniLM:
    """Build a model in evaluation mode from published weights.

    Args:
        state_dict: tensors by name, as in `lit_model.pth`.
        config: the keys of `model_config.yaml`.
        parts: names and options of encoder, codec and tokenizer, such as `{"codec": "snac_24khz"}`; without them the
            model takes features, returns codes, and has the byte tokenizer.
        source: name of the weights' file, for errors.

    Raises:
        ValueError: the configuration is not supported, the weights do not fit it, or the parts do not fit them.
    """
    sizes = read_sizes(config)
    state = _checked(state_dict, sizes, source)
    model = build_parts(overrides=_merged(_settings(sizes), parts or {}))["model"]
    _check_parts(model, sizes)
    left, unknown = model.load_state_dict(our_names(state, sizes), strict=False)
    assert not unknown, unknown
    assert all(name.startswith(("encoder.", "codec.")) for name in left), left
    return model.eval()


def convert(
    ckpt_dir: str | Path, out_dir: str | Path, *, codec: str = SNAC_24KHZ, encoder: str | None = None
) -> OmniLM:
    """Convert a published folder to an omnikit checkpoint, which is complete or absent.

    Args:
        ckpt_dir: folder with `lit_model.pth`, `model_config.yaml`, the tokenizer and `small.pt`; or its hub id.
        out_dir: folder of the checkpoint, for `omnikit.load`.
        codec: folder or hub id of a SNAC (`config.json` and `pytorch_model.bin`); `none` = a model that only writes. If
            the default is not available, a warning is logged, and the model only writes.
        encoder: another file than the folder's `small.pt`, or a name of openai-whisper.

    Returns:
        The converted model.

    Raises:
        ValueError: a file is missing or does not fit; the message names it, the expected and the found value.
    """
    folder = hub_folder(str(ckpt_dir)) if is_hub_id(ckpt_dir) else Path(ckpt_dir)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    config = dict(read_tree(_existing_file(folder, CONFIG)))
    whisper = read_whisper(encoder or str(_existing_file(folder, WHISPER, "; name another by --encoder"))).encoder
    parts = {"llm.tokenizer": str(_tokenizer(folder)), **_codec(codec)}
    parts |= {"encoder": "whisper_small", **{f"encoder.{key}": n for key, n in encoder_sizes(whisper).items()}}
    file = _existing_file(folder, WEIGHTS)
    model = from_state_dict(_read_pickle(file), config, parts=parts, source=str(file))
    model.encoder.encoder.load_state_dict(whisper.state_dict())
    model.codec.load_weights()
    checkpoint.save(model, out_dir, dtype=torch.float32)
    return model


def _settings(sizes: Sizes) -> dict[str, Any]:
    """Return the published architecture as settings of omnikit's part files."""
    adapter = ADAPTERS[sizes.asr_adapter]
    llm = {
        "model_type": "qwen2" if sizes.add_qkv_bias else "llama", "vocab_size": sizes.text_vocab,
        "hidden_size": sizes.n_embd, "head_dim": sizes.head_size, "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.n_layer, "num_attention_heads": sizes.n_head,
        "num_key_value_heads": sizes.n_query_groups, "max_position_embeddings": sizes.block_size,
        "rope_theta": sizes.rope_base, "rms_norm_eps": sizes.norm_eps, "tie_word_embeddings": False,
    }  # fmt: skip
    return {
        "encoder": NONE, "encoder.dim": sizes.whisper_adapter_dim,
        "adapter": adapter, **({"adapter.hidden": sizes.intermediate_size} if adapter == "gated_mlp" else {}),
        "llm": "qwen2_0.5b", **{f"llm.config.{key}": value for key, value in llm.items()},
        "llm.tokenizer": "bytes", "llm.weights": None,
        "codec": NONE, "codec.num_codebooks": sizes.num_codebooks, "codec.codebook_size": sizes.codebook_size,
        "pattern": "delayed", "model.tts_blocks": sizes.tts_blocks,
    }  # fmt: skip


def _merged(defaults: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default settings overridden by `parts`; default options of a part that is replaced are dropped."""
    kept = {key: value for key, value in defaults.items() if key.partition(".")[0] not in parts}
    return {**kept, **parts}


def _checked(state: Mapping[str, Tensor], sizes: Sizes, source: str) -> Mapping[str, Tensor]:
    """Return the published weights, refusing those that do not fit the configuration.

    If embeddings and head are tied, the head is a copy of the embeddings.
    """
    if sizes.tie_word_embeddings and "transformer.wte.weight" in state:
        state = {**state, "lm_head.weight": state["transformer.wte.weight"]}
    shapes = published_shapes(sizes)
    lacking = [name for name in shapes if name not in state]
    unknown = [name for name in state if name not in shapes]
    other = [
        f"{name} is {list(state[name].shape)}, expected {list(shape)}"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    kinds = (("lacks ", lacking), ("has the unknown ", unknown), ("", other))
    problems = [words + _some(names) for words, names in kinds if names]
    if problems:
        raise ValueError(f"{source} does not fit {CONFIG}: {'; '.join(problems)}")
    return state


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _check_parts(model: OmniLM, sizes: Sizes) -> None:
    pairs = (
        ("encoder", "whisper_adapter_dim", sizes.whisper_adapter_dim, model.encoder.dim),
        ("codec", "codebooks", sizes.num_codebooks, model.codec.num_codebooks),
        ("codec", "codes per codebook", sizes.codebook_size, model.codec.codebook_size),
    )
    for part, what, expected, found in pairs:
        if expected != found:
            raise ValueError(f"{part} does not fit {CONFIG}: {what} expected {expected}, found {found}")


def _codec(name: str) -> dict[str, Any]:
    """Return the settings of the codec in a folder or hub repository; none for the name `none`."""
    if name == NONE:
        return {}
    if is_hub_id(name):
        try:
            file = hub_file(name, "config.json")
        except ValueError as error:
            if name != SNAC_24KHZ:
                raise ValueError(f"--codec {error}") from None
            logger.warning("no codec, so this checkpoint will only write: %s; convert with --codec FOLDER", error)
            return {}
    else:
        file = _existing_file(Path(name), "config.json", f" (--codec {name})")
    try:
        options = dict(read_json(file))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: not the configuration of a SNAC ({error})") from None
    return {"codec": "snac_24khz", **{f"codec.{key}": value for key, value in options.items()}, "codec.weights": name}


def _tokenizer(folder: Path) -> Path:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ValueError(f"{folder}: tokenizer.json is missing")
    return folder


def _existing_file(folder: Path, name: str, more: str = "") -> Path:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder{more}")
    if not (folder / name).is_file():
        raise ValueError(f"{folder}: {name} is missing{more}")
    return folder / name


def _read_pickle(file: Path) -> Mapping[str, Tensor]:
    """Read the tensors of a file of `torch.save`; nothing in the file is run."""
    try:
        # a file in torch's current format is mapped, not read, so that it does not fill the memory beside the model
        state = read_pickle(file, mapped=zipfile.is_zipfile(file))
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file}: not a file of tensors ({one_line(error)})") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file}: must be a mapping of names to tensors")
    return state
