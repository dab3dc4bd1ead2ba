"""Test that sequences that are taken out of the running batch and continued later equal those that stay in it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

import omnikit.engines.torch as torch_engine
from omnikit.engines import open_engine
from omnikit.interfaces import Engine, Parked
from omnikit.llms.transformers_lm import TransformersLM
from omnikit.model import OmniLM
from tests.unit.engines.compared import Compared, sharpen
from tests.unit.engines.slots import build
from tests.unit.llms.test_llama import numbers
from tests.unit.toy import toy_model

ENGINES = ("torch", "separate", "static", "openvino")


def open_named(name: str, model: OmniLM, folder: Path, monkeypatch) -> Engine:
    if name == "openvino":
        pytest.importorskip("openvino", reason="omnikit[openvino] is not installed")
        return open_engine(name, model, folder, weights="f32")
    if name == "separate":
        monkeypatch.setattr(torch_engine, "can_join", lambda cache: False)
    return open_engine("torch" if name == "separate" else name, model)


class Parking(Compared):
    """Slots of which sequences are parked and continued; their hidden states are compared like those of others."""

    def __init__(self, model: OmniLM, slots, seed: int = 0):
        super().__init__(model, slots, seed)
        self.parked: list[tuple[Parked, torch.Tensor]] = []

    def park(self, slot: int) -> None:
        self.parked.append((self.slots.park(slot), self.fed[slot]))
        self.fed[slot] = self.fed[-1]
        self.fed.pop()
        assert self.parked[-1][0].length == len(self.parked[-1][1])
        self.check_lengths()

    def crop_parked(self, number: int, length: int) -> None:
        parked, fed = self.parked[number]
        parked.crop(length)
        assert parked.length == length
        self.parked[number] = parked, fed[:length]

    def go_on(self, numbers: list[int | None], lengths: list[int], piece: int = 1000) -> None:
        """Admit sequences of which some continue a parked one, which stays as it is and may be continued again."""
        prompts = [self.noise(length) for length in lengths]
        before = [None if number is None else self.parked[number] for number in numbers]
        prefill = self.slots.prefill(prompts, [None if one is None else one[0] for one in before])
        assert prefill.left == sum(lengths) or len(set(lengths)) > 1  # padding may count
        while prefill.left:
            prefill.advance(piece)
        self.slots.admit(prefill)
        self.fed += [prompt if one is None else torch.cat([one[1], prompt])
                     for one, prompt in zip(before, prompts, strict=True)]  # fmt: skip
        self.check_lengths()


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("seed", range(2))
@torch.inference_mode()
def test_parked_sequences_go_on(name, seed, tmp_path, monkeypatch):
    """Check hidden states while sequences are admitted, parked, cropped, continued and released in random order."""
    model, chance = sharpen(toy_model(tts_blocks=1)), random.Random(seed)
    slots = Parking(model, open_named(name, model, tmp_path, monkeypatch).open(5), seed)
    for _ in range(50):
        count, free = len(slots.fed), 5 - len(slots.fed)
        what = chance.choice(["new", "park", "crop", "go on", "go on", "release", "copy", "advance"])
        if what == "new" and free:
            slots.admit(*(chance.randint(1, 12) for _ in range(chance.randint(1, free))), piece=chance.randint(1, 20))
        elif what == "park" and count:
            slots.park(chance.randrange(count))
        elif what == "crop" and slots.parked and name != "separate":
            number = chance.randrange(len(slots.parked))
            slots.crop_parked(number, chance.randint(1, slots.parked[number][0].length))
        elif what == "go on" and free and slots.parked:
            some = [chance.choice([None, chance.randrange(len(slots.parked))]) for _ in range(chance.randint(1, free))]
            slots.go_on(some, [chance.randint(1, 8) for _ in some], piece=chance.randint(1, 20))
        elif what == "release" and count:
            slots.release(chance.randrange(count))
        elif what == "copy" and count and free:
            slots.copy(chance.randrange(count))
        if slots.fed:
            slots.advance()
    assert slots.parked
    assert slots.worst < 1e-4


@pytest.mark.parametrize("llm", ["mistral_7b", "gemma2_2b"])
@pytest.mark.parametrize("name", ["torch", "static", "openvino"])
@torch.inference_mode()
def test_backbones_that_attend_within_a_window(name, llm, tmp_path, monkeypatch):
    """Check continued sequences of backbones some or all of whose blocks attend to eight positions only."""
    if name != "torch" and llm.startswith("gemma"):
        pytest.skip("not a backbone of this engine")
    model = sharpen(build(llm))
    slots = Parking(model, open_named(name, model, tmp_path, monkeypatch).open(4))
    slots.admit(20, 5)
    slots.advance()
    slots.park(0)
    slots.park(0)
    slots.go_on([0, None, 1], [3, 6, 11], piece=4)
    slots.advance(4)
    assert slots.worst < 1e-4
    if name != "torch":
        slots.crop_parked(0, 12)
        slots.go_on([0], [5])
        slots.advance(2)
        assert slots.worst < 1e-4
    else:
        with pytest.raises(ValueError, match="attends within a window: its cache cannot be cropped"):
            slots.crop_parked(0, 12)


@torch.inference_mode()
def test_a_cache_that_does_not_show_its_keys_cannot_be_cropped(tmp_path, monkeypatch):
    model = toy_model()
    slots = Parking(model, open_named("separate", model, tmp_path, monkeypatch).open(2))
    slots.admit(6)
    slots.park(0)
    slots.parked[0][0].crop(6)
    with pytest.raises(ValueError, match="cache cannot be cropped: it does not show its keys and values"):
        slots.parked[0][0].crop(5)


@torch.inference_mode()
def test_blocks_in_a_window_beside_others(tmp_path, monkeypatch):
    model = toy_model(tts_blocks=2)
    config = {**numbers("qwen2, some blocks in a window"), "vocab_size": 80}
    llm = TransformersLM(config=config, tokenizer="bytes").eval()
    model.llm, model.tts_adapter = llm, llm.blocks(2).eval()
    for name in ("torch", "static"):
        slots = Parking(model, open_named(name, model, tmp_path, monkeypatch).open(2))
        slots.admit(14, 3)
        slots.advance()
        slots.park(0)
        slots.go_on([0], [9], piece=2)
        slots.advance(3)
        assert slots.worst < 1e-4
