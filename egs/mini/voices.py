"""The voices of the mini corpus, each an accent of espeak-ng with one of its variants.

Variants that are hard to understand or not natural voices (whispering, croaking, robots) are excluded. The *variants*
of test voices occur in no training voice, whatever the accent.
"""

from __future__ import annotations

import itertools


def _names(text: str) -> list[str]:
    return text.split()


ANSWER_VOICE = "en-us"
ANSWER_SPEED, ANSWER_PITCH = 160, 50
ANSWER_SPEAKER = 1

TRAIN_VARIANTS = _names(
    "Alex Alicia Andy Annie Denis Diogo Gene Gene2 Henrique Jacky Lee Marco Mario Michael Mike Nguyen Reed RicishayMax"
    " RicishayMax2 RicishayMax3 adam anika announcer antonio aunty benjamin boris caleb david ed edward edward2 f1 f2"
    " f3 f5 grandma grandpa gustave iven iven2 iven3 iven4 john kaukovalta klatt klatt2 klatt3 m1 m2 m3 m4 m6 m7 m8"
    " marcelo max michel miguel mike2 norbert pablo pedro rob robert shelby steph steph2 steph3 travis victor zac"
)
ACCENTS = _names(
    "en-us en-gb en-us en-gb-x-rp en-us en-gb-scotland en-us-nyc en-us en-gb-x-gbclan en-us en-029 en-us-nyc"
    " en-gb-x-gbcwmd"
)

TRAIN_VOICES = ["en-gb", "en-gb-scotland"] + [
    f"{accent}+{variant}" for accent, variant in zip(itertools.cycle(ACCENTS), TRAIN_VARIANTS)
]
TEST_VOICES = [
    "en-us+m5",
    "en-us+f4",
    "en-gb+Andrea",
    "en-us+paul",
    "en-gb-x-rp+belinda",
    "en-us+ian",
    "en-gb+quincy",
    "en-gb-scotland+linda",
    "en-us-nyc+Hugo",
    "en-us+sandro",
]

SPEEDS, PITCHES = (145, 158, 171, 184, 197), (30, 42, 54, 66)  # words per minute; 0..99
HELD_OUT_SPEEDS, HELD_OUT_PITCHES = (151, 178), (36, 48, 60)  # used in tests only

SPEAKERS = {ANSWER_VOICE: ANSWER_SPEAKER} | {voice: 100 + i for i, voice in enumerate(TRAIN_VOICES)}
SPEAKERS |= {voice: 900 + i for i, voice in enumerate(TEST_VOICES)}

FEMALE = _names("Alicia Andrea Annie anika aunty belinda f1 f2 f3 f4 f5 grandma linda steph steph2 steph3")


def is_female(voice: str) -> bool:
    """Return whether a voice is female by espeak-ng's description of its variant; others are taken to be male."""
    return voice.partition("+")[2] in FEMALE
