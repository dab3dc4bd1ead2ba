"""`omnikit synthesize`: texts of a manifest that have no recording get one from a voice."""

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
"""Recording -> what it says."""
EMBEDDED, FILES = "embedded", "files"


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
    """Write a manifest's rows with recordings of their texts as shards that are a manifest again.

    Questions are said by speakers that follow from their rows' ids, answers by one.

    Args:
        voice_name: for what the shards were made by.
        fields: recordings that are made where there is neither one nor codes.
        audio: `embedded`, or `files`: flac files in the save folder. A manifest that has the recording in some of its
            rows goes on with what it has.
        shard_size, strict: see `rewrite`.

    Raises:
        ValueError: bad options; see `rewrite`.
    """
    check_recordings("--fields", fields)
    if audio not in (EMBEDDED, FILES):
        raise ValueError(f"--audio {audio}: no such choice (choices: {EMBEDDED}, {FILES})")
    step = _Synthesizing(voice, voice_name, fields, audio, Path(save_folder) / "audio")
    return rewrite(manifest, save_folder, step, shard_size=shard_size, strict=strict)


class _Synthesizing(ManifestTransform):
    name = "synthesize"
    chunk = 512  # a voice that remembers begins anew with each

    def __init__(self, voice: Voice, voice_name: str, fields: Sequence[str], audio: str, folder: Path):
        self.voice, self.fields, self.audio, self.folder = voice, tuple(fields), audio, folder
        self.embedded: tuple[str, ...] = ()
        self.depends_on = (voice_name, voice.sample_rate, *voice.depends_on, self.fields, audio)

    def columns(self, found: Columns) -> Columns:
        said = [name for name in self.fields if SAYS[name] in found.names]
        new = [name for name in said if name not in found.names and self.audio == EMBEDDED]
        columns = found.with_more(["duration", *said], new)
        self.embedded = columns.embedded
        return columns

    def rows(self, items: list[Item]) -> Iterator[Item | Remark]:
        wanted = [(number, name) for number, item in enumerate(items) for name in self._lacking(item)]
        said = synthesize_all(self.voice, [_request(items[number], name) for number, name in wanted]) if wanted else []
        not_said = set()
        for (number, name), speech in zip(wanted, said, strict=True):
            item = items[number]
            if speech.data is None:
                not_said.add(number)
                continue
            item[name] = speech.data if name in self.embedded else self._file(item["id"], name, speech.data)
            item.setdefault("duration", round(speech.seconds, 4))
        for number, item in enumerate(items):
            yield Remark("not synthesized", item["id"]) if number in not_said else item

    def _lacking(self, item: Item) -> list[str]:
        return [n for n in self.fields if SAYS[n] in item and n not in item and CODES_OF[n] not in item]

    def _file(self, row: str, name: str, data: bytes) -> str:
        """Where a flac file was written."""
        path = (self.folder / f"{quote(row, safe='')}-{name}.flac").absolute()
        write_bytes(path, data)
        return str(path)


def _request(item: Item, name: str) -> SynthesisRequest:
    language = item.get("language", "")
    if name == "a2":
        return SynthesisRequest(item["t2"], None, language)
    seed = int.from_bytes(hashlib.sha256(item["id"].encode()).digest()[:8], "big")
    return SynthesisRequest(item["t1"], seed, language)
