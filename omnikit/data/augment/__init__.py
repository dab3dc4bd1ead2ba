"""Data augmentation: random changes of training waveforms, as of rooms, telephones and microphones.

Presets are files in `hparams/augment/`; `named_augment` builds one by its name.
"""

from __future__ import annotations

from omnikit.data.augment.chain import Augment, SeededAugment
from omnikit.data.augment.effect import Effect
from omnikit.data.augment.level import Clipping, Level
from omnikit.data.augment.lossy import LossyFormat, Telephone
from omnikit.data.augment.noise import Noise
from omnikit.data.augment.preset import named_augment
from omnikit.data.augment.room import Room
from omnikit.data.augment.spec_mask import SpecMask
from omnikit.data.augment.speed import Silence, SpeedChange

__all__ = [
    "Augment",
    "Clipping",
    "Effect",
    "Level",
    "LossyFormat",
    "Noise",
    "Room",
    "SeededAugment",
    "Silence",
    "SpecMask",
    "SpeedChange",
    "Telephone",
    "named_augment",
]
