"""Test that parts with nothing but what their contracts require work for manifests, samples, training and generation.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from rewriting import sound
from torch import nn

from omnikit.api import Omni
from omnikit.audio.io import load_audio
from omnikit.data.collate import Batch
from omnikit.data.manifest_writer import ManifestWriter
from omnikit.data.samples import Samples, collate_items, make_dataset
from omnikit.data.sources import read_sources
from omnikit.generate import Decoder, Decoding, Question
from omnikit.interfaces import Adapter, AudioEncoder, Backbone, Codec, Engine, Pattern, Prefill, Slots, Tokenizer
from omnikit.model import OmniLM
from omnikit.sampling import Sampling
from omnikit.strategies import BATCH_PARALLEL, PARALLEL
from omnikit.streaming import MODES, DecodeStream
from omnikit.tasks import TASKS
from omnikit.tokens import IGNORE
from tests.unit.contracts.own_parts import (
    NotPromised,
    OwnAdapter,
    OwnBackbone,
    OwnCodec,
    OwnEncoder,
    OwnEngine,
    OwnPattern,
    OwnPrefill,
    OwnSlots,
    OwnStream,
    OwnTokenizer,
    Strict,
)
from tests.unit.qa_brain import brain_of, losses_of

CONTRACTS = {
    AudioEncoder: OwnEncoder,
    Adapter: OwnAdapter,
    Tokenizer: OwnTokenizer,
    Backbone: OwnBackbone,
    Codec: OwnCodec,
    DecodeStream: OwnStream,
    Pattern: OwnPattern,
    Engine: OwnEngine,
    Slots: OwnSlots,
    Prefill: OwnPrefill,
}
SECONDS = {"0": (0.05, 0.03), "1": (0.08, 0.02)}
"""Mapping from id of a manifest entry to the durations of its question and its answer, in seconds."""
TRAINED = ["adapter", "llm", "tts_adapter", "new_text_embeddings", "new_audio_embeddings"]


def own_model() -> OmniLM:
    torch.manual_seed(0)
    return OmniLM(
        encoder=OwnEncoder(), adapter=OwnAdapter, llm=OwnBackbone(), codec=OwnCodec(), pattern=OwnPattern, tts_blocks=1
    ).eval()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    rows = []
    for name, (question, answer) in SECONDS.items():
        row = {"id": name, "duration": question, "t1": f"what {name}", "t2": f"so {name}"}
        for field, seconds, seed in (("a1", question, 1), ("a2", answer, 2)):
            row[field] = f"{name}-{field}.wav"
            (folder / row[field]).write_bytes(sound(seconds, seed + int(name)))
        rows.append(row)
    with ManifestWriter(folder / "m.csv", list(rows[0])) as writer:
        writer.write(rows)
    return folder / "m.csv"


def samples(model: OmniLM, manifest: Path, tasks: list[str]) -> tuple[Samples, list[int]]:
    """Return the samples of a manifest for some tasks, and their lengths as computed before the samples are built."""
    mix = dict.fromkeys(tasks, 1.0)
    sources = {"own": {"manifest": manifest, "tasks": tasks}}
    read = read_sources(sources, model, tasks=mix, cache_folder=manifest.parent / "cache")
    dataset = make_dataset(model, read, mix)
    return dataset, dataset.lengths.tolist()


def batch_of(model: OmniLM, manifest: Path, tasks: list[str]) -> Batch:
    dataset, _ = samples(model, manifest, tasks)
    return collate_items(model)([dataset[i] for i in range(len(dataset))])


def train(model: OmniLM, batch: Batch, steps: int) -> list[float]:
    """Train a model, check that every trained part gets a gradient, and return the loss before each optimiser step."""
    model.freeze_all_but(TRAINED)
    brain, found = brain_of(model), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(steps):
        loss, _ = losses_of(brain, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    for name in TRAINED:
        assert any((p.grad != 0).any() for p in model.parts()[name].parameters() if p.grad is not None), name
    model.eval()
    return found


# the parts themselves


def required(contract: type) -> set[str]:
    """Return the members that a part's contract requires: its abstract methods, and its attributes without a default.
    """
    annotated = {name for kind in contract.__mro__ for name in inspect.get_annotations(kind)} - {*vars(nn.Module())}
    return {name for name in annotated if not hasattr(contract, name)} | contract.__abstractmethods__


def built(contract: type) -> Strict:
    if contract is DecodeStream:
        return OwnCodec().stream()
    arguments = {
        Adapter: {"dim_in": 2, "dim_out": 2}, Pattern: {"num_codebooks": 3}, Engine: {"model": None},
        Slots: {"model": None, "capacity": 2}, Prefill: {"prompts": []},
    }  # fmt: skip
    return CONTRACTS[contract](**arguments.get(contract, {}))


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_a_part_has_what_its_contract_requires_and_no_more(contract):
    part = built(contract)
    held = {*vars(type(part)), *vars(part), *vars(part).get("_modules", ())} - {*vars(nn.Module())}
    assert {name for name in held if not name.startswith("_")} == required(contract)
    with pytest.raises(NotPromised, match=f"{type(part).__name__}.size"):
        getattr(part, "size", None)


# on the way through the toolkit


def test_samples_have_the_lengths_that_were_measured(manifest):
    model = own_model()
    dataset, lengths = samples(model, manifest, list(TASKS))
    assert len(dataset) == len(SECONDS) * len(TASKS)
    assert [item["sample"].steps.shape[1] for item in dataset] == lengths


def test_labels_hold_the_codes_where_the_pattern_says(manifest):
    model = own_model()
    dataset, _ = samples(model, manifest, ["A1A2"])
    codes = model.codec.encode(load_audio(manifest.parent / "0-a2.wav", model.codec.sample_rate)[None])
    labels = dataset[0]["sample"].labels[1:]
    labels = labels[:, (labels != IGNORE).any(dim=0)]
    names = [{ids.pad: ".", ids.eoa: "|"} for ids in model.layout.audio]
    drawn = [[name.get(label, label) for label in row] for row, name in zip(labels.tolist(), names, strict=True)]
    size, frames = model.codec.codebook_size, codes[0].T.tolist()
    assert drawn[0] == [".", *(label for a in frames for label in (a[2], size + a[0])), "|", "."]
    assert drawn[1] == [".", *(label for a in frames for label in (".", a[1])), ".", "|"]


def test_a_training_step_lowers_the_loss(manifest):
    model = own_model()
    before, after = train(model, batch_of(model, manifest, list(TASKS)), 2)
    assert after < before


@pytest.fixture(scope="module")
def trained(manifest) -> OmniLM:
    """Return a model that was trained until it reproduces its two manifest entries."""
    model = own_model()
    assert train(model, batch_of(model, manifest, list(TASKS)), 250)[-1] < 0.02
    return model


@pytest.mark.parametrize("strategy", [PARALLEL, BATCH_PARALLEL], ids=["parallel", "batch_parallel"])
@pytest.mark.parametrize("constrain", [True, False])
def test_what_was_learned_is_generated(trained, manifest, strategy, constrain):
    omni = Omni(trained, strategy=strategy, decoding=Decoding(constrain=constrain, max_steps=100))
    codec = trained.codec
    for name in SECONDS:
        question = manifest.parent / f"{name}-a1.wav"
        wavs = [load_audio(file, codec.sample_rate)[None] for file in (question, manifest.parent / f"{name}-a2.wav")]
        asked, answered = (codec.decode(codec.encode(wav))[0] for wav in wavs)
        assert omni.transcribe(question) == f"what {name}"
        assert omni.chat(f"what {name}") == f"so {name}"
        for reply, wav in ((omni.ask(question), answered), (omni.answer(f"what {name}"), answered)):
            assert reply.text == f"so {name}" and reply.end == "end"
            assert torch.allclose(reply.wav, wav, atol=1e-6)
        assert torch.allclose(omni.speak(f"what {name}").wav, asked, atol=1e-6)


@pytest.mark.parametrize("strategy", [PARALLEL, BATCH_PARALLEL], ids=["parallel", "batch_parallel"])
def test_an_engine_answers_as_the_model_does(trained, strategy):
    """Check that an engine without a KV cache gives the same sampled answers as `TorchEngine`, with few slots."""
    decoding = Decoding(text=Sampling(1.0), audio=Sampling(1.0), max_steps=30)
    questions = [Question(text=list(f"what {n % 3}".encode())) for n in range(7)]
    found = [
        Decoder(trained, engine, strategy=strategy, decoding=decoding, capacity=3).answers(
            TASKS["T1A2"], questions, seed=3
        )
        for engine in (None, OwnEngine(trained))
    ]
    for own, usual in zip(*found, strict=True):
        assert (own.text, own.end) == (usual.text, usual.end) and torch.equal(own.codes, usual.codes)


@pytest.mark.parametrize("mode", MODES)
def test_chunks_are_the_whole_answer(trained, manifest, mode):
    omni, question = Omni(trained), manifest.parent / "0-a1.wav"
    chunks, reply = list(omni.stream(question, mode=mode)), omni.ask(question)
    assert sum(len(chunk.wav) > 0 for chunk in chunks) > 1
    assert torch.allclose(torch.cat([chunk.wav for chunk in chunks]), reply.wav, atol=1e-6)
    assert "".join(chunk.text for chunk in chunks) == reply.text
