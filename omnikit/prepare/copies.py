"""Augmented copies of manifest entries: their names, and the fields that they share with their entry."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from omnikit.data.augment import SeededAugment, named_augment
from omnikit.data.copy_names import copy_name, is_copy
from omnikit.data.live_features import augmented
from omnikit.data.manifest_writer import AUDIO
from omnikit.data.skipped import Item
from omnikit.hparams import choices
from omnikit.hparams.named_parts import AUGMENT
from omnikit.interfaces import AudioEncoder
from omnikit.option_ranges import COUNT, SEED

COPY = "copy"
"""Key of an item that is a copy, which holds a `CopyOf` until the item is written."""
_COMPUTED = ("features", "frames", "encoder", "duration")


@dataclass(frozen=True)
class CopyOf:
    """The manifest entry that a copy is made of, and the number of the copy from 1."""

    origin: str  # id of the entry
    dialog: str
    number: int


@dataclass(frozen=True)
class Copies:
    """A number of augmented copies of each entry, whose random changes depend on a seed.

    Args:
        count: number of copies of each entry.
        augment: effects that change the recordings, and the seed.

    Raises:
        ValueError: the number or the seed is out of range.
    """

    count: int
    augment: SeededAugment

    def __post_init__(self) -> None:
        COUNT.check("copies", self.count)
        SEED.check("seed", self.augment.seed)

    @property
    def depends_on(self) -> tuple[object, ...]:
        """Values on which copies depend besides their entries."""
        return self.count, self.augment.augment.fingerprint, self.augment.seed

    def of(self, item: Item, written: Collection[str] = ()) -> list[Item]:
        """Return the copies of a manifest item, without features and duration if these are to be computed.

        An item without a recording of the question has copies if it is a turn of a conversation with other
        recordings, whose copies stay whole, and no copies otherwise.

        Args:
            written: names of the dialogs without any recording of a question, of which copies would be duplicates.

        Raises:
            ValueError: the item has the name of a copy, or stored features but no recording to augment.
        """
        if is_copy(item["id"]):
            raise ValueError(f"entry {item['id']}: is a copy already; make all copies (--copies) of the first manifest")
        if AUDIO[0] not in item and "features" in item:
            raise ValueError(
                f"entry {item['id']}: has features, but no recording (a1) to augment; make copies (--copies) of the "
                "manifest that has the recordings"
            )
        if AUDIO[0] in item:
            new = {name: value for name, value in item.items() if name not in _COMPUTED}
        elif item.get("dialog") and item["dialog"] not in written:
            new = item
        else:
            return []
        return [self._copy(item, new, number) for number in range(1, self.count + 1)]

    def _copy(self, item: Item, new: Item, number: int) -> Item:
        dialog = item.get("dialog", "")
        names = {name: copy_name(item[name], number) for name in ("id", "dialog") if item.get(name)}
        return {**new, **names, COPY: CopyOf(item["id"], dialog, number)}

    def augmented(self, copy: CopyOf, wav: Tensor, encoder: AudioEncoder) -> Tensor:
        """Return the waveform [N'] of a copy, given that of its entry at the encoder's sample rate [N]."""
        return augmented(wav, encoder, copy.origin, copy.dialog, self.augment, copy.number)


def read_copies(count: int | None, augment: str | None, seed: int) -> Copies | None:
    """Return the copies that the flags `--copies`, `--augment` and `--seed` name; None without them.

    Raises:
        ValueError: one of `--copies` and `--augment` is missing, or a value is refused.
    """
    if count is None and augment is None:
        return None
    if count is None:
        raise ValueError(f"--augment {augment}: how many copies? give --copies N")
    if augment is None:
        raise ValueError(
            f"--copies {count}: of which kind? give --augment NAME (choices: {', '.join(choices(AUGMENT))})"
        )
    return Copies(count, SeededAugment(named_augment(augment), seed))
