"""Adds synthesized recordings to the manifest entries whose texts have none; implements `omnikit synthesize`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from omnikit.data.manifest_writer import AUDIO, CODES_OF
from omnikit.data.skipped import Item, Remark
from omnikit.files import write_bytes
from omnikit.prepare.rewrite_manifest import SHARD_SIZE, Columns, ManifestTransform, check_recordings, rewrite
from omnikit.prepare.shards import Summary
from omnikit.prepare.voices import SynthesisRequest, Voice, synthesize_all

SAYS = {"a1": "t1", "a2": "t2"}
"""Mapping from the field of a recording to the field of its text."""
EMBEDDED, FILES = "embedded", "files"
"""Choices for where synthesized recordings are stored: as bytes in the shards, or as FLAC files."""


def synthesize(
    manifest: str | Path,
    save_folder: str | Path,
    voice: Voice,
    *,
    voice_name: str,
    fields: Sequence[str] = AUDIO,
    audio: str = EMBEDDED,
    shard_size: int = SHARD_SIZE,
    strict: bool = False,
) -> Summary:
    """Write the entries of a manifest with synthesized recordings of their texts as the shards of a new manifest.

    The speaker of a question is chosen by the id of its entry; all answers have the same speaker.

    Args:
        voice: voice that synthesizes the texts.
        voice_name: name of the voice, on which the shards depend.
        fields: fields of recordings (`a1`, `a2`) that are synthesized in entries with neither a recording nor codes.
        audio: `embedded`, or `files` for FLAC files in the save folder. If some entries of the manifest already have
            the recording, its form (bytes or paths) is used instead.
        shard_size, strict: see `rewrite`.

    Raises:
        ValueError: invalid options; see also `rewrite`.
    """
    check_recordings("--fields", fields)
    if audio not in (EMBEDDED, FILES):
        raise ValueError(f"--audio {audio}: no such choice (choices: {EMBEDDED}, {FILES})")
    step = _Synthesizing(voice, voice_name, fields, audio, Path(save_folder) / "audio")
    return rewrite(manifest, save_folder, step, shard_size=shard_size, strict=strict)


class _Synthesizing(ManifestTransform):
    """The transformation that adds synthesized recordings to manifest entries."""

    name = "synthesize"
    chunk = 512  # a voice that depends on its history is started afresh for each chunk

    def __init__(self, voice: Voice, voice_name: str, fields: Sequence[str], audio: str, folder: Path):
        self.voice, self.fields, self.audio, self.folder = voice, tuple(fields), audio, folder
        self.embedded: tuple[str, ...] = ()
        self.depends_on = (voice_name, voice.sample_rate, *voice.depends_on, self.fields, audio)

    def columns(self, found: Columns) -> Columns:
        recordings = [name for name in self.fields if SAYS[name] in found.names]
        new = [name for name in recordings if name not in found.names and self.audio == EMBEDDED]
        columns = found.with_more(["duration", *recordings], new)
        self.embedded = columns.embedded
        return columns

    def rows(self, items: list[Item]) -> Iterator[Item | Remark]:
        wanted = [(number, name) for number, item in enumerate(items) for name in self._lacking(item)]
        requests = [_request(items[number], name) for number, name in wanted]
        synthesized = synthesize_all(self.voice, requests) if wanted else []
        failed = set()
        for (number, name), speech in zip(wanted, synthesized, strict=True):
            item = items[number]
            if speech.data is None:
                failed.add(number)
                continue
            item[name] = speech.data if name in self.embedded else self._file(item["id"], name, speech.data)
            item.setdefault("duration", round(speech.seconds, 4))
        for number, item in enumerate(items):
            yield Remark("not synthesized", item["id"]) if number in failed else item

    def _lacking(self, item: Item) -> list[str]:
        return [n for n in self.fields if SAYS[n] in item and n not in item and CODES_OF[n] not in item]

    def _file(self, row: str, name: str, data: bytes) -> str:
        """Write the recording of an entry to a FLAC file and return the file's path."""
        path = (self.folder / f"{quote(row, safe='')}-{name}.flac").absolute()
        write_bytes(path, data)
        return str(path)


def _request(item: Item, name: str) -> SynthesisRequest:
    language = item.get("language", "")
    if name == "a2":
        return SynthesisRequest(item["t2"], None, language)
    seed = int.from_bytes(hashlib.sha256(item["id"].encode()).digest()[:8], "big")
    return SynthesisRequest(item["t1"], seed, language)
