"""Names of version 0.1 that have changed, and their present equivalents.

A checkpoint saved by version 0.1 loads through these tables, and is saved again with the present names. Options, keys
of recipes and modules have no alias: an error about an unknown name points to the new one. Nothing else in omnikit
knows an old name. All of this will be removed in version 1.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

WEIGHTS = {
    "text_rows": "new_text_embeddings",
    "audio_rows": "new_audio_embeddings",
}
"""Mapping from old to present names of the modules of an `OmniLM`, with which the names of its weights begin."""
OPTIONS = {
    "batch_steps": "max_batch_length",
    "longest_sample": "max_sample_length",
    "loader_workers": "num_workers",
    "effective_batch": "effective_batch_size",
    "batches_per_epoch": "steps_per_epoch",
    "peak_rate": "peak_lr",
    "lowest_rate": "min_lr",
    "start_from": "initial_weights",
    "check_cache": "verify_cache",
    "head_steps": "head_only_steps",
    "ways": "answer_modes",
    "shard_rows": "shard_size",
}
"""Mapping from old to present names of command-line flags and of recipes' keys."""
SOURCE_OPTIONS = {
    "hold_out": "without_held_out",
    "held_out": "only_held_out",
}
"""Mapping from old to present names of the options of a recipe's sources, the manifests that it trains on."""
MODULES = {
    "audio": "audio.io",
    "reader": "audio.reader",
    "containers": "audio.containers",
    "mp3": "audio.mp3",
    "libsndfile": "audio.libsndfile",
    "undrawn": "skip_init",
    "key_values": "kv_cache",
    "hashing": "counter_rng",
    "foreign": "untrusted_models",
    "untrusted": "untrusted_files",
    "limits": "size_limits",
    "sizes": "part_sizes",
    "ranges": "option_ranges",
    "bench": "bench.measure",
    "bench_table": "bench.table",
    "batch": "offline.batch_inference",
    "data.mix": "data.step_sampler",
    "data.rows": "data.manifest_reader",
    "data.manifest": "data.manifest_writer",
    "data.entries": "data.text_manifest",
    "data.tables": "data.parquet_manifest",
    "data.forms": "data.field_values",
    "data.columns": "data.manifest_columns",
    "data.content": "data.content_digest",
    "data.ledger": "data.digest_ledger",
    "data.database": "data.sqlite",
    "data.earlier": "prepare.reuse",
    "data.rewrite": "prepare.rewrite_manifest",
    "data.shards": "prepare.shards",
    "data.prepare": "data.encode_recordings",
    "data.store": "data.array_cache",
    "data.recordings": "data.recording_check",
    "data.chunks": "data.batched",
    "data.folders": "data.find_files",
    "data.phones": "train.phoneme_dataset",
    "data.noise": "data.augment.noise",
    "data.many": "offline.single_or_many",
    "data.corpus": "prepare.corpus",
    "data.upstream": "prepare.corpus_readers",
    "data.tokenize": "prepare.tokenize",
    "data.synthesize": "prepare.synthesize",
    "data.voices": "prepare.voices",
    "data.espeak": "prepare.espeak",
    "evaluate.batches": "offline.batches",
    "evaluate.judge": "evaluate.asr_judges",
    "evaluate.baselines": "evaluate.baseline_recognisers",
    "evaluate.checks": "evaluate.recipe_checks",
    "evaluate.run": "evaluate.asr_command",
    "evaluate.tables": "evaluate.result_tables",
    "evaluate.text": "evaluate.text_normalisation",
    "train.effective": "data.step_plan",
    "train.start": "train.initial_weights",
    "train.encoder": "train.ctc_pretraining",
    "train.guarded": "train.robust_brain",
    "train.curves": "train.plot_curves",
    "train.sums": "train.checksums",
    "train.stopping": "train.stop_signals",
    "train.progress": "train.epoch_progress",
    "train.checks": "train.recipe_checks",
    "train.validate": "train.validation",
    "codecs.published": "codecs.pretrained",
    "codecs.attention": "codecs.streaming_attention",
    "codecs.causal": "codecs.streaming_causal",
    "codecs.centred": "codecs.streaming_centred",
    "codecs.joined": "codecs.joined_streams",
    "codecs.residual": "codecs.transformers_residual",
    "llms.published": "llms.pretrained",
    "llms.modes": "llms.build_modes",
    "llms.trunks": "llms.transformers_trunk",
    "llms.llama_numbers": "llms.llama_config",
    "encoders.speech_files": "encoders.transformers_speech_weights",
    "encoders.transformers_files": "encoders.transformers_checkpoints",
    "encoders.whisper_files": "encoders.whisper_weights",
    "encoders.whisper_transformers": "encoders.whisper_transformers_weights",
    "engines.recorded": "cuda_graphs",
    "generate.loop": "generate.running_batch",
    "generate.frames": "generate.detokenize",
    "generate.rules": "generate.token_rules",
    "generate.sound": "generate.sound_decoder",
    "generate.records": "generate.types",
    "hparams.bounds": "hparams.yaml_limits",
    "hparams.flags": "hparams.part_flags",
    "hparams.lookup": "hparams.name_lookup",
    "hparams.parts": "hparams.named_parts",
    "hparams.safe": "hparams.safe_yaml",
    "hparams.tree": "hparams.yaml_tree",
}
"""Mapping from old to present paths of the package's modules, without the leading `omnikit.`."""
CLASSES = {
    "data.step_sampler.TaskMix": "data.step_sampler.StepSampler",
    "offline.batches.Reply": "offline.batches.DecodedAnswer",
    "train.robust_brain.GuardedBrain": "train.robust_brain.RobustBrain",
}
"""Mapping from old to present names of classes that a recipe may name, with the present paths of their modules."""
_PATH = re.compile(r"omnikit(?:\.\w+)+")
_CLASS_TAG = re.compile(r"(!(?:new|name):)(omnikit(?:\.\w+)+)")


def new_path(path: str) -> str:
    """Return the present dotted path of a module, class or function of omnikit, the same one if it has not changed."""
    if not _PATH.fullmatch(path):
        return path
    names = path.split(".")[1:]
    for length in range(len(names), 0, -1):
        module = ".".join(names[:length])
        if module in MODULES.values():  # such as audio.io, where audio itself is an old name
            break
        if module in MODULES:
            names[:length] = MODULES[module].split(".")
            break
    inner = ".".join(names)
    return f"omnikit.{CLASSES.get(inner, inner)}"


def with_new_paths(text: str) -> str:
    """Return the YAML text of a checkpoint with the present paths of the classes that it names."""
    return _CLASS_TAG.sub(lambda found: found[1] + new_path(found[2]), text)


def new_weight(name: str) -> str:
    """Return the present name of a weight in a checkpoint that version 0.1 may have saved."""
    first, dot, rest = name.partition(".")
    return WEIGHTS.get(first, first) + dot + rest


def pointer(name: object, known: Iterable[object] | None = None) -> str:
    """Return the end of an error about an unknown name, `; it is called .. now`, or nothing if the name never existed.

    Args:
        name: an option, a key, a dotted path or a part of a model.
        known: names that exist in this place; None = not checked.
    """
    old = str(name)
    new = OPTIONS.get(old) or SOURCE_OPTIONS.get(old) or WEIGHTS.get(old) or new_path(old)
    return f"; it is called {new} now" if new != old and (known is None or new in known) else ""


def refuse_old_keys(tree: Mapping[str, Any], old: Mapping[str, str] = OPTIONS, prefix: str = "") -> None:
    """Refuse keys of a recipe that have been renamed.

    Args:
        tree: the recipe, or the options of one of its sources.
        old: mapping from old to present keys.
        prefix: text that stands before the key in the message.

    Raises:
        ValueError: the tree has an old key and not the present one.
    """
    for key, new in old.items():
        if key in tree and new not in tree:
            raise ValueError(f"--{prefix}{key}: no such option; it is called {new} now")
