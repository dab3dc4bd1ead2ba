"""Decoding speed of a codec in frames per second, for one stream and for several streams in a call.

    python benchmarks/codec_streams.py mel_rvq snac_24khz --streams 1 4 16

Network codecs have random weights. Several streams are timed in one call for all of them and in a call for each, which
alternate. Printed are medians.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from omnikit.bench.measure import timed
from omnikit.hparams import build_part
from omnikit.interfaces import Codec


@torch.inference_mode()
def measure(codec: Codec, count: int, repeats: int) -> tuple[float, float]:
    """Return the median seconds per frame of `count` decode streams, in one call for all and in a call for each."""
    together, apart = codec.streams(), codec.streams()
    numbers, others = ([streams.open() for _ in range(count)] for streams in (together, apart))
    frames = torch.randint(codec.codebook_size, (repeats + 3, count, codec.num_codebooks, 1))
    times = []
    for codes in frames:
        (one,) = timed(lambda codes=codes: together.push(dict(zip(numbers, codes, strict=True))), 1, codes[0].device)
        (each,) = timed(
            lambda codes=codes: [apart.push({n: c}) for n, c in zip(others, codes, strict=True)], 1, codes[0].device
        )
        times.append((one, each))
    return tuple(statistics.median(kind) for kind in zip(*times[3:], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("codecs", nargs="*", default=["mel_rvq"], help="names of codecs (default: mel_rvq)")
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 4, 16], help="numbers of streams (1 4 16)")
    parser.add_argument("--repeats", type=int, default=20, help="timed frames per stream (default: 20)")
    args = parser.parse_args()
    for name in args.codecs:
        codec = build_part("codec", name).eval()
        for count in args.streams:
            one, each = measure(codec, count, args.repeats)
            print(f"{name}, {count} streams: {1e3 * one:.1f} ms in one call ({count / one:.0f} frames/s), ", end="")
            print(f"{1e3 * each:.1f} ms in a call for each ({count / each:.0f} frames/s)")


if __name__ == "__main__":
    main()
