"""Test every part in the mini system at tiny size: its recipe is resolved, it trains for a step and answers a question.

The quick tests take parts of each kind once, with mini parts around it; the long ones all, and combine them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from omnikit.data.collate import Batch, collate
from omnikit.encoders.none import NoEncoder
from omnikit.generate import Decoder, Decoding, Question
from omnikit.hparams import KINDS, build_part, build_parts, choices, pick, resolve
from omnikit.hparams.include import read_recipe
from omnikit.hparams.overrides import PICK
from omnikit.hparams.yaml_tree import has_tag, read_tree, read_tree_text, tag_of, walk
from omnikit.interfaces import count_parameters
from omnikit.losses import label_weights, stream_losses
from omnikit.model import OmniLM
from omnikit.sampling import Sampling
from omnikit.tasks import TASKS, make_sample

ROOT = Path(__file__).parents[2]
MINI = sorted((ROOT / "egs" / "mini" / "hparams").rglob("*.yaml"))
FILES = [*sorted((ROOT / "recipes").rglob("hparams/*.yaml")), *MINI]
PARTS = [(kind, name) for kind in KINDS for name in choices(kind)]
OFTEN = {
    "encoder": ("hubert_base", "mini", "none", "wavlm_base_plus", "whisper_small"),
    "llm": ("gemma_2b", "llama", "mini", "phi2", "qwen2_0.5b"),
    "codec": ("dac_24khz", "mel_rvq", "mimi", "none", "snac_24khz", "snac_mini"),
}
"""Parts that quick tests train, of the kinds in which many parts have the same network at another size."""
SOME_LONG = [
    pytest.param(kind, name, marks=[pytest.mark.long] * (name not in OFTEN.get(kind, (name,))))
    for kind, name in PARTS
]
TRAINED = ["adapter", "llm", "tts_adapter", "new_text_embeddings", "new_audio_embeddings"]
FAST = 15_000_000
"""Number of parameters that each part of tiny size has to stay below, so that training it in a test is fast."""


# resolving


def needed(path: Path) -> dict[str, str]:
    """Return a placeholder value for each key whose value a recipe requires from the user."""
    return {key: "given" for key, node in walk(read_recipe(path)) if tag_of(node) == "!PLACEHOLDER"}


def resolved(path: Path, settings: dict) -> dict:
    return read_tree_text(resolve(str(path), {**needed(path), **settings})[1], str(path))


def picked(path: Path) -> dict[str, str]:
    """Return a mapping from each key by which a recipe chooses a part by name to the kind of that part."""
    return {key: node["part"] for key, node in read_recipe(path).items() if has_tag(node, PICK)}


def recipe_of(overrides: Path) -> Path | None:
    """Return the recipe that a YAML file of overrides is for, by its first lines; None if the file itself is a recipe.
    """
    text = overrides.read_text(encoding="utf-8").partition("\n\n")[0]
    after = re.search(r"Overrides after \.\./(\w+\.yaml)", text)
    if after:
        return recipe_of(overrides.parents[1] / after[1])
    script = re.search(r"For (recipes/\S+)/evaluate\.py", text)
    path = re.search(r"Overrides of (recipes/\S+\.yaml)", text)
    return ROOT / path[1] if path else ROOT / script[1] / "hparams" / "eval.yaml" if script else None


RECIPES = [path for path in FILES if recipe_of(path) is None]
OVERRIDES = [path for path in FILES if recipe_of(path) is not None]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.long) for kind in KINDS])
def test_every_recipe_takes_every_part(path, kind):
    for key in [key for key, own in picked(path).items() if own == kind]:
        for name in choices(kind):
            assert tag_of(resolved(path, {key: name})[key]) == tag_of(pick(kind, name))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_takes_the_last_part_of_each_kind(path):
    swaps = {key: choices(kind)[-1] for key, kind in picked(path).items()}
    found = resolved(path, swaps)
    assert {key: tag_of(found[key]) for key in swaps} == {
        key: tag_of(pick(kind, swaps[key])) for key, kind in picked(path).items()
    }


@pytest.mark.parametrize("path", OVERRIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_overrides_fit_their_recipe(path):
    assert resolved(recipe_of(path), dict(read_tree(path)))


def test_every_override_file_says_what_it_is_for():
    """YAML files of the mini system that do not name a recipe to override are recipes, since they choose a part."""
    alone = set(MINI) & set(RECIPES)
    assert alone
    assert all("encoder" in read_recipe(path) or "codec" in read_recipe(path) for path in alone)
    assert set(MINI) - alone


@pytest.mark.parametrize(("kind", "name"), SOME_LONG, ids=["-".join(pair) for pair in PARTS])
def test_a_system_with_it_is_described_at_true_size(kind, name):
    with torch.device("meta"):
        model = build_parts({kind: name}, {"pretrained": False})["model"]
    assert model.layout.num_streams == 1 + len(model.pattern.carries)
    assert count_parameters(model) > 0


# training


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=["-".join(pair) for pair in PARTS])
def test_it_can_be_built_small_enough_to_test(kind, name):
    options = {"size": "tiny"} if "size" in pick(kind, name) else {}
    with torch.device("meta"):
        part = build_part(kind, name, **options)
    if isinstance(part, torch.nn.Module):
        assert count_parameters(part) < FAST


def system(names: dict[str, str], **options) -> OmniLM:
    torch.manual_seed(0)
    settings = {"size": "tiny", "pretrained": False, "model.tts_blocks": 1, **options}
    return build_parts(names, settings)["model"].eval()


def hear(model: OmniLM) -> list[Tensor]:
    """Return the encoder features [T, D] of two recordings."""
    rate = model.encoder.sample_rate
    lengths = torch.tensor([rate, int(0.6 * rate)])
    if isinstance(model.encoder, NoEncoder):
        return [torch.randn(int(n / rate * model.encoder.frame_rate), model.encoder.dim) for n in lengths]
    wav = 0.1 * torch.randn(2, rate) * (torch.arange(rate) < lengths[:, None])
    with torch.no_grad():
        features, frames = model.encoder(wav, lengths)
    assert features.shape[2] == model.encoder.dim
    assert frames[0] > frames[1] > 0
    return [row[:n] for row, n in zip(features, frames, strict=True)]


def batch_of(model: OmniLM, features: list[Tensor]) -> Batch:
    """Return a training batch with a sample each of speech recognition, speech synthesis and spoken question answering.
    """
    text = model.llm.tokenizer.encode("two plus three is five")
    codes = torch.randint(0, model.codec.codebook_size, (model.codec.num_codebooks, 3))
    given = {"A1T1": features[0], "A1A2": features[1], "T1A1": None}
    samples = [
        make_sample(
            TASKS[task], model.layout, model.pattern, question=text, answer=text, codes=codes,
            audio_frames=None if heard is None else model.num_speech_positions(len(heard)),
        )
        for task, heard in given.items()
    ]  # fmt: skip
    return collate(samples, list(given.values()), model.layout, model.encoder.dim)


def loss_of(model: OmniLM, batch: Batch) -> Tensor:
    speech = batch.speech(*model.adapter(batch.features, batch.lengths))
    weights = label_weights(batch.step_labels, torch.ones(model.layout.num_streams))
    loss, losses = stream_losses(model, model(batch.steps, speech), batch, weights)
    assert losses.sums.isfinite().all() and losses.counts.any(dim=0).all()
    return loss


def train_one_step(model: OmniLM, batch: Batch) -> None:
    """Train a model for one small step, and check that every trained part gets a gradient and that the loss falls."""
    model.freeze_all_but(TRAINED)
    model.eval()  # the same network before and after: no dropout
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    before = loss_of(model, batch)
    before.backward()
    for part in TRAINED:
        grads = [p.grad for p in model.parts()[part].parameters() if p.grad is not None]
        assert any((grad != 0).any() for grad in grads), f"{part} learns nothing"
        assert all(grad.isfinite().all() for grad in grads)
    optimizer.step()
    with torch.no_grad():
        assert loss_of(model, batch) < before


def ask(model: OmniLM, features: Tensor, strategy: str = "parallel") -> None:
    """Generate a greedy answer, and check that its codes are in the codebook and its text in the vocabulary."""
    greedy = Decoding(Sampling(temperature=0.0), Sampling(temperature=0.0), max_steps=model.pattern.num_steps(3))
    question = [Question(features=features)]
    decoder = Decoder(model, decoding=greedy, strategy=build_part("strategy", strategy))
    answer = decoder.answers(TASKS["A1A2"], question)[0]
    model.codec.check_codes(answer.codes[None])
    assert answer.codes.shape[1] > 0
    assert isinstance(model.llm.tokenizer.decode(answer.text), str)


def check(names: dict[str, str], **options) -> None:
    strategy = names.pop("strategy", "parallel")
    model = system(names, **options)
    features = hear(model)
    train_one_step(model, batch_of(model, features))
    ask(model, features[1], strategy)


@pytest.mark.parametrize(("kind", "name"), SOME_LONG, ids=["-".join(pair) for pair in PARTS])
def test_each_part_trains_and_answers(kind, name):
    check({kind: name})


@pytest.mark.long
@pytest.mark.parametrize("codec", choices("codec"))
@pytest.mark.parametrize("encoder", choices("encoder"))
def test_encoders_and_codecs(encoder, codec):
    check({"encoder": encoder, "codec": codec})


@pytest.mark.long
@pytest.mark.parametrize("strategy", choices("strategy"))
@pytest.mark.parametrize("pattern", choices("pattern"))
@pytest.mark.parametrize("llm", choices("llm"))
def test_backbones_patterns_and_strategies(llm, pattern, strategy):
    check({"llm": llm, "pattern": pattern, "strategy": strategy})


@pytest.mark.long
@pytest.mark.parametrize("encoder", choices("encoder"))
@pytest.mark.parametrize("adapter", choices("adapter"))
def test_adapters_and_strides(adapter, encoder):
    strides = (1, 2, 3, 7) if "stride" in pick("adapter", adapter) else (None,)
    for stride in strides:
        check({"adapter": adapter, "encoder": encoder}, **({"adapter.stride": stride} if stride else {}))
