"""Adds codes of a codec and features of a frozen encoder to a manifest; implements `omnikit tokenize`.

They are computed once for all trainings that use the same codec and encoder. Beside each entry, augmented copies of it
can be written: features of its recording as it might sound elsewhere, with the same texts and codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from omnikit import checkpoint
from omnikit.audio.io import waveform
from omnikit.audio.reader import Sound, Unusable, read
from omnikit.data.array_cache import fingerprint
from omnikit.data.batched import in_batches
from omnikit.data.encode_recordings import BATCH_SECONDS, FP32, HELD, PRECISIONS, code_encoder, feature_encoder
from omnikit.data.manifest_writer import AUDIO, CODES_OF
from omnikit.data.skipped import Item, Remark
from omnikit.hparams import build_part, names_of
from omnikit.interfaces import AudioEncoder, Codec, Part
from omnikit.old_names import pointer
from omnikit.option_ranges import POSITIVE
from omnikit.prepare.copies import COPY, Copies
from omnikit.prepare.expected_size import Computed, ExpectedSize, expected_size
from omnikit.prepare.rewrite_manifest import SHARD_SIZE, Columns, ManifestTransform, check_recordings, rewrite
from omnikit.prepare.shards import ManifestPart, Summary
from omnikit.prepare.written_dialogs import written_dialogs
from omnikit.torchrun import check_device, own_device

HEARD = "a1"
"""Field of the recording from which encoder features are computed, that of the question."""
FEATURES = ("features", "frames", "encoder")
"""Names of the manifest fields that store encoder features."""
THREADS = 4  # threads that load recordings


@dataclass(frozen=True)
class Parts:
    """The codec and the encoder with which recordings are encoded; None for one that is not used."""

    codec: Codec | None = None
    codec_name: str = ""
    encoder: AudioEncoder | None = None


def tokenize(
    manifest: str | Path,
    save_folder: str | Path,
    parts: Parts,
    *,
    fields: Sequence[str] = (),
    drop: Sequence[str] = (),
    copies: Copies | None = None,
    batch_seconds: float = BATCH_SECONDS,
    precision: str = FP32,
    shard_size: int = SHARD_SIZE,
    strict: bool = False,
) -> Summary:
    """Write the entries of a manifest with codes and features of their recordings as the shards of a new manifest.

    Args:
        parts: codec and encoder that are used.
        fields: fields of the recordings to encode with the codec; () = `a2`, or `a1` if the manifest has no `a2`.
        drop: fields of recordings that are omitted from the shards.
        copies: augmented copies that are written after each entry; None = none.
        batch_seconds: maximum total length in seconds, padding included, of the recordings encoded in one batch.
        precision: one of `PRECISIONS`, for features.
        shard_size, strict: see `rewrite`.

    Raises:
        ValueError: invalid options; see also `rewrite`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"--precision {precision}: choices are {', '.join(PRECISIONS)}")
    check_recordings("--fields", fields)
    check_recordings("--drop", drop)
    if fields and parts.codec is None:
        raise ValueError(f"--fields {','.join(fields)}: codes of which codec? give --codec NAME")
    if copies is not None and parts.encoder is None:
        raise ValueError(f"--copies {copies.count}: features of which encoder? give --encoder NAME, or --features")
    POSITIVE.check("batch_seconds", batch_seconds)
    step = _Tokenizing(parts, fields, drop, batch_seconds, copies, precision)
    return rewrite(manifest, save_folder, step, shard_size=shard_size, strict=strict)


def read_parts(
    settings: Mapping[str, Any], checkpoint_folder: str | None, *, features: bool = False, device: str = "cpu"
) -> Parts:
    """Return the codec and the encoder that a command line names, with their weights, in evaluation mode.

    Args:
        settings: values of `codec`, `encoder` and their dotted options, such as `codec.num_codebooks`.
        checkpoint_folder: a checkpoint whose codec and encoder are used instead; None = those in `settings`.
        features: whether features are computed, for which the checkpoint's encoder or `--encoder` is needed.
        device: device for the parts.

    Raises:
        ValueError: no part is named, one has no weights, or one cannot be built or loaded.
    """
    device = own_device(device)
    check_device(device)
    unknown = [key for key in settings if key.partition(".")[0] not in ("codec", "encoder")]
    if unknown:
        renamed = pointer(unknown[0])
        raise ValueError(
            f"--{unknown[0]}: no such option{renamed or '; parts here are --codec and --encoder, with their options'}"
        )
    if checkpoint_folder is not None:
        model = checkpoint.load(checkpoint_folder, device=device)
        name = names_of(model.recipe).get("codec")
        if name is None:
            raise ValueError(f"checkpoint {checkpoint_folder}: does not say what its codec is called; give --codec")
        return Parts(_with_codes(model.codec, name), name, model.encoder if features else None)
    if features and "encoder" not in settings:
        raise ValueError("--features: of which encoder? give --encoder NAME or --checkpoint DIR")
    codec = _trained("codec", settings, device)
    encoder = _trained("encoder", settings, device)
    if codec is None and encoder is None:
        raise ValueError("nothing to do: give --codec NAME, --encoder NAME or --checkpoint DIR")
    name = str(settings.get("codec", ""))
    return Parts(None if codec is None else _with_codes(codec, name), name, encoder)


def _trained(kind: str, settings: Mapping[str, Any], device: str) -> Part | None:
    options = {key.removeprefix(f"{kind}."): value for key, value in settings.items() if key.startswith(f"{kind}.")}
    if kind not in settings:
        if options:
            raise ValueError(f"--{kind}.{next(iter(options))}: an option of which {kind}? give --{kind} NAME")
        return None
    part = build_part(kind, str(settings[kind]), **options)
    if part.weights is None and part.state_dict():
        raise ValueError(f"--{kind} {settings[kind]}: has no weights of its own; give --{kind}.weights DIR")
    part.load_weights()
    return part.to(device).eval()


def _with_codes(codec: Codec, name: str) -> Codec:
    from omnikit.codecs.none import NoCodec

    if isinstance(codec, NoCodec):
        raise ValueError(f"--codec {name}: makes no codes; choose another")
    return codec


@dataclass(frozen=True)
class _Loaded:
    """The loaded recordings of a manifest entry, and notes about them."""

    wavs: dict[str, Tensor]
    """Mapping from each field to be computed (`features` or a field of codes) to the waveform [N] to encode for it."""
    notes: list[Remark]


def _has(found: _Loaded | Remark, name: str) -> bool:
    return isinstance(found, _Loaded) and name in found.wavs


class _Tokenizing(ManifestTransform):
    """The transformation that adds codes and encoder features of their recordings to manifest entries.

    Codes are computed of the recordings in `fields`, features of the question's recording. Codes of another codec and
    features of another encoder are replaced, also in other fields. An augmented copy follows its entry, has the codes
    computed for it, and has no recording of the question, of which only the entry itself holds the features.
    """

    name = "tokenize"
    chunk = 256  # recordings of a chunk are in memory and are sorted by length
    computed = (*CODES_OF.values(), "codec", *FEATURES, "duration")

    def __init__(
        self,
        parts: Parts,
        fields: Sequence[str],
        drop: Sequence[str],
        batch_seconds: float,
        copies: Copies | None,
        precision: str,
    ):
        self.copies, self.chunk = copies, self.chunk // (1 if copies is None else 1 + copies.count) or 1
        self.codec_name, self.drop, self.fields = parts.codec_name, tuple(drop), tuple(fields)
        self.codes = None if parts.codec is None else code_encoder(parts.codec, batch_seconds)
        self.features = None if parts.encoder is None else feature_encoder(parts.encoder, batch_seconds, precision)
        self.encoder_name = "" if parts.encoder is None else fingerprint(parts.encoder)
        codec_made_by = "" if parts.codec is None else fingerprint(parts.codec, self.codec_name)
        self.depends_on = (codec_made_by, self.encoder_name, self.fields, self.drop, batch_seconds)
        self.depends_on += () if copies is None else copies.depends_on
        self.depends_on += () if precision == FP32 else (precision,)
        self.recordings = AUDIO if self.codes else (HEARD,)
        self.written: frozenset[str] = frozenset()

    def columns(self, found: Columns) -> Columns:
        missing = [name for name in self.fields if name not in found.names and CODES_OF[name] not in found.names]
        if missing and found.names:
            raise ValueError(f"--fields {missing[0]}: the manifest has none; it has {', '.join(found.names)}")
        if self.codes is None:
            self.fields = ()
        elif not self.fields:
            self.fields = ("a2",) if {"a2", CODES_OF["a2"]} & set(found.names) else ("a1",)
        coded = [CODES_OF[name] for name in self.fields]
        new = [*coded, *(["codec"] if coded else []), *(FEATURES if self.features else ())]
        return found.with_more(["duration", *new]).without(self.drop)

    def survey(self, manifest: Path) -> tuple[str, ...]:
        self.written = frozenset() if self.copies is None else frozenset(written_dialogs(manifest))
        return tuple(sorted(self.written))

    def expected_size(self, found: Columns, new: Columns, parts: Sequence[ManifestPart]) -> ExpectedSize:
        computed = []
        if self.codes is not None:
            codec = self.codes.part
            rate = 2 * codec.num_codebooks * codec.frame_rate
            computed += [Computed(CODES_OF[name], name, rate, "codec", self.codec_name) for name in self.fields]
        if self.features is not None:
            encoder = self.features.part
            rate = 2 * encoder.dim * encoder.frame_rate
            computed.append(Computed("features", HEARD, rate, "encoder", self.encoder_name))
        size = expected_size(parts, found.names, new.names, computed)
        if self.copies is None:
            return size
        once = expected_size(parts, found.names, new.without([HEARD]).names, computed)
        return replace(size, size=size.size + self.copies.count * once.size)

    def expanded(self, item: Item) -> list[Item]:
        return [item] if self.copies is None else [item, *self.copies.of(item, self.written)]

    def reads(self, item: Item) -> list[str]:
        return [name for name in dict.fromkeys(self._to_make(item).values()) if name in item]

    def rows(self, items: list[Item]) -> Iterator[Item | Remark]:
        codes: dict[str, Item] = {}
        with ThreadPoolExecutor(THREADS) as pool:
            for some, loaded in self._portions(items, pool):
                yield from self._encoded(some, loaded, codes)

    def _portions(
        self, items: list[Item], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[list[Item], list[_Loaded | Remark]]]:
        """Yield entries with their loaded recordings, in groups of about `HELD` audio samples at most."""
        some: list[Item] = []
        loaded: list[_Loaded | Remark] = []
        for few in in_batches(items, 2 * THREADS):
            some += few
            loaded += pool.map(self._load, few)
            held = sum(len(wav) for found in loaded if isinstance(found, _Loaded) for wav in found.wavs.values())
            if held > HELD:
                yield some, loaded
                some, loaded = [], []
        if some:
            yield some, loaded

    def _encoded(
        self, items: list[Item], loaded: list[_Loaded | Remark], codes: dict[str, Item]
    ) -> Iterator[Item | Remark]:
        """Yield entries with the codes and features of their recordings, in order, or remarks for skipped ones.

        Args:
            codes: fields of codes of the entries so far, by id; copies of an entry get them, and the entries found here
                are added. An entry that was skipped has no copies.
        """
        refused = self._fill(items, loaded)
        for number, (item, found) in enumerate(zip(items, loaded, strict=True)):
            copy = item.pop(COPY, None)
            if copy is not None and copy.origin not in codes:
                continue
            if isinstance(found, Remark):
                yield found
            elif number in refused:
                yield Remark("refused", item["id"])
            elif copy is not None:
                yield self._without_dropped(item | codes[copy.origin], HEARD)
            else:
                codes[item["id"]] = {name: item[name] for name in (*CODES_OF.values(), "codec") if name in item}
                yield from found.notes
                if not found.wavs and not self._holds_any(item):
                    yield Remark("no recording", item["id"])
                yield self._without_dropped(item)

    def _without_dropped(self, item: Item, *others: str) -> Item:
        return {name: value for name, value in item.items() if name not in (*self.drop, *others)}

    def _load(self, item: Item) -> _Loaded | Remark:
        """Return the loaded recordings of an entry that are to be encoded, or a remark if one cannot be read."""
        sources = self._to_make(item)
        if any(source not in item for source in sources.values()):
            return Remark("foreign", item["id"])
        try:
            sounds = {source: _read(item[source], item["id"]) for source in dict.fromkeys(sources.values())}
        except Unusable as error:
            return Remark(error.reason, item["id"], str(error))
        wavs = {}
        for target, source in sources.items():
            making = self.features if target == "features" else self.codes
            wavs[target], seconds = waveform(sounds[source], making.part.sample_rate), sounds[source].seconds
            if COPY in item:
                wavs[target] = self.copies.augmented(item[COPY], wavs[target], making.part)
                seconds = len(wavs[target]) / making.part.sample_rate
            item.setdefault("duration", round(seconds, 4))
        return _Loaded(wavs, [Remark(note, item["id"]) for sound in sounds.values() for note in sound.notes])

    def _to_make(self, item: Item) -> dict[str, str]:
        """Return a mapping from each field of codes or features that is to be computed to the field of its recording.

        It includes codes and features of another codec or encoder whose recording the entry lacks. A copy gets its
        entry's codes.
        """
        made = {}
        for source in AUDIO if self.codes and COPY not in item else ():
            target = CODES_OF[source]
            other = target in item and item.get("codec") != self.codec_name
            if other or (source in self.fields and source in item and target not in item):
                made[target] = source
        if self.features:
            other = "features" in item and item.get("encoder") != self.encoder_name
            if other or (HEARD in item and "features" not in item):
                made["features"] = HEARD
        return made

    def _holds_any(self, item: Item) -> bool:
        return any(CODES_OF[name] in item for name in self.fields) or (self.features is not None and "features" in item)

    def _fill(self, items: list[Item], loaded: list[_Loaded | Remark]) -> set[int]:
        """Store the codes and features of loaded waveforms in the items.

        Returns:
            Indices of the items with a recording that the codec or the encoder refuses.
        """
        refused = set()
        for field in (*CODES_OF.values(), "features"):
            wavs = [(n, found.wavs[field]) for n, found in enumerate(loaded) if _has(found, field)]
            making = self.features if field == "features" else self.codes
            for number, array in making(wavs) if wavs else ():
                if array is None or not array.numel():
                    refused.add(number)
                elif field == "features":
                    stored = array.numpy().astype("<f2").tobytes()
                    items[number] |= {field: stored, "frames": len(array), "encoder": self.encoder_name}
                else:
                    items[number] |= {field: array.numpy(), "codec": self.codec_name}
        return refused


def _read(source: str | bytes, row: str) -> Sound:
    return read(source, f"entry {row}" if isinstance(source, bytes) else source)
