"""Decodes the spoken answers in a manifest to WAV files for listening.

    python decode_answers.py --manifest manifests/train --save_folder answers --ids '^identity-' --limit 20

Files that exist already are not written again.
"""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from omnikit.audio.io import save_audio, wav_name
from omnikit.data.manifest_reader import ManifestEntry, read_manifest
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.hparams import build_part
from omnikit.option_ranges import COUNT, Regex


def chosen(manifest: str, ids: str, limit: int | None) -> list[ManifestEntry]:
    """Return the first `limit` entries (None = all) with a spoken answer whose ids match a regular expression.

    Raises:
        ValueError: there is no such entry.
    """
    fitting = (entry for entry in read_manifest(manifest) if re.search(ids, entry.id) and (entry.codes or entry.a2))
    entries = list(islice(fitting, limit))
    if not entries:
        raise ValueError(f"--ids {ids}: no entry of {manifest} with such an id has a spoken answer")
    return entries


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--manifest", required=True, help="manifest file, or folder of shards")
    parser.add_argument("--save_folder", required=True, metavar="DIR", type=Path, help="folder for the WAV files")
    parser.add_argument("--codec", default="snac_24khz", help="name of the codec; default: %(default)s")
    parser.add_argument("--weights", help="weights of the codec; default: those that its part file names")
    parser.add_argument("--ids", default="", metavar="REGEX", help="decode entries whose id matches; default: all")
    parser.add_argument("--limit", type=COUNT, metavar="N", help="maximum number of entries; default: all")
    options = parser.parse_args()
    Regex().check("ids", options.ids)
    entries = chosen(options.manifest, options.ids, options.limit)
    codec = build_part("codec", options.codec, **({"weights": options.weights} if options.weights else {}))
    codec.load_weights()
    codec.eval()
    options.save_folder.mkdir(parents=True, exist_ok=True)
    for entry in tqdm(entries, desc="decode"):
        path = options.save_folder / wav_name(entry.id)
        if not path.exists():
            save_audio(path, entry.answer_wav(codec, options.codec), codec.sample_rate)


if __name__ == "__main__":
    with bad_input_exits():
        main()
