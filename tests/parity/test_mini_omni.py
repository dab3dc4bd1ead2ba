"""Test that omnikit computes the same outputs as the published Mini-Omni code.

They are compared with stored outputs of the published code, and at other sizes with a slow implementation. Training
that starts from the published weights is tested, too.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from omnikit.convert.mini_omni import from_state_dict
from omnikit.engines import COMPILED, ENGINES, OPENVINO, open_engine
from omnikit.engines.static import find_compiler
from omnikit.generate import Decoder, Decoding, Question
from omnikit.losses import step_loss
from omnikit.model import AdaptedSpeech, OmniLM
from omnikit.strategies import BATCH_PARALLEL, PARALLEL
from omnikit.tasks import TASKS, make_prompt, make_sample
from tests.parity import published
from tests.unit.scripted import emitted

FOLDER = Path(os.environ.get("OMNIKIT_GOLDEN") or Path(__file__).parent / "golden")
CASES = sorted(FOLDER.glob("*.json"))
TOLERANCE = 1e-4


@functools.lru_cache(maxsize=4)
def read(path: Path) -> SimpleNamespace:
    """Return a stored reference case: its outputs of the published code, and the model built from the case's weights.
    """
    figures, arrays = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    model = from_state_dict(published.weights(figures["config"]), figures["config"])
    return SimpleNamespace(
        figures=figures,
        arrays={name: torch.tensor(arrays[name]) for name in arrays},
        model=model,
        text=figures["text_tokens"],
        features=torch.tensor(arrays["whisper_features"]),
    )


def parts_of(kind: str) -> list:
    """Return a (case file, name) pair for each stored forward pass or each stored generation of the published code."""
    found = []
    for path in CASES:
        figures = json.loads(path.read_text())
        names = figures["generate"] if kind == "generate" else [n[8:] for n in figures if n.startswith("forward/")]
        found += [pytest.param(path, name, id=f"{path.stem}-{name}") for name in names]
    return found


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()


def published_order(steps: torch.Tensor) -> torch.Tensor:
    """Reorder the streams of a sequence from omnikit's order, text first, to the published one, text last."""
    return torch.cat([steps[1:], steps[:1]])


def shared_ids(model: OmniLM, steps: torch.Tensor) -> torch.Tensor:
    return published_order(steps + torch.tensor(model.layout.offsets)[:, None])


def speech_of(model: OmniLM, features: torch.Tensor) -> AdaptedSpeech:
    length = torch.tensor([len(features)])
    return AdaptedSpeech(model.adapter(features[None], length)[0], length, torch.tensor([1]))


def logits_of(model: OmniLM, steps: torch.Tensor, features: torch.Tensor | None):
    """Return the audio logits [S - 1, L, V] and the text logits [L, V] that a model computes for a sequence of steps.
    """
    with torch.inference_mode():
        hidden = model(steps[None], None if features is None else speech_of(model, features))
        return torch.stack(model.audio_logits(hidden.audio))[:, 0], model.text_logits(hidden.text)[0]


def test_there_are_cases():
    assert CASES, f"no *.json in {FOLDER}"


@pytest.mark.parametrize(("path", "task"), parts_of("forward"))
def test_forward(path: Path, task: str):
    case = read(path)
    theirs, model = case.figures[f"forward/{task}"], case.model
    prompt = make_prompt(TASKS[task], model.layout, text=case.text, audio_frames=len(case.features))
    assert shared_ids(model, prompt.steps).tolist() == theirs["prompt"]
    audio, text = logits_of(model, prompt.steps, case.features if TASKS[task].given == "speech" else None)
    assert text.argmax(dim=-1).tolist() == theirs["text_argmax"]
    assert audio.argmax(dim=-1).tolist() == theirs["audio_argmax"]
    ours = {
        "audio_last": audio[:, -1], "audio_mid": audio[:, audio.shape[1] // 2],
        "text_last_sample": text[-1, ::97], "text_first_sample": text[0, ::97],
    }  # fmt: skip
    stored = [name for name in ours if f"forward/{task}/{name}" in case.arrays]
    assert "audio_last" in stored
    for name in stored:
        close(ours[name], case.arrays[f"forward/{task}/{name}"])


def with_engines(cases: list) -> list:
    """Return test parameters that combine each stored case with each engine.

    The engine `compiled` takes half a minute per case, so its cases are long tests.
    """
    return [
        pytest.param(*case.values, engine, id=f"{case.id}-{engine}", marks=[pytest.mark.long] * (engine == COMPILED))
        for case in cases
        for engine in ENGINES
    ]


@pytest.mark.parametrize(("path", "name", "engine"), with_engines(parts_of("generate")))
def test_generated_tokens(path: Path, name: str, engine: str, tmp_path: Path):
    case = read(path)
    theirs = torch.tensor(case.figures["generate"][name])
    task, _, batch = name.partition("-")
    question = Question(features=case.features) if TASKS[task].given == "speech" else Question(text=case.text)
    if engine == OPENVINO:
        pytest.importorskip("openvino", reason="omnikit[openvino] is not installed")
    if engine == COMPILED and find_compiler() is None:
        pytest.skip("needs a C++ compiler")
    decoder = Decoder(
        case.model,
        open_engine(engine, case.model, tmp_path, **({"weights": "f32"} if engine == OPENVINO else {})),
        decoding=Decoding(constrain=False, max_steps=theirs.shape[-1]),
        strategy=BATCH_PARALLEL if batch else PARALLEL,
    )
    ours = torch.tensor(emitted(decoder, task, [question])[0])
    assert (published_order(ours) if theirs.dim() == 2 else ours[0]).tolist() == theirs.tolist()


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_undoing_the_delay(path: Path):
    case = read(path)
    if "snac_flat_from_A1A2" not in case.figures:
        pytest.skip("the case holds no such list")
    steps = torch.tensor(case.figures["generate"]["A1A2"])[:-1]
    codes = case.model.layout.to_codes(steps, case.model.pattern.codebooks(steps.shape[1]))
    frames = case.model.pattern.deinterleave(codes[None])[0]
    assert frames.T.flatten().tolist() == case.figures["snac_flat_from_A1A2"]


TINY = {
    "block_size": 64, "n_layer": 2, "n_embd": 24, "n_head": 4, "n_query_groups": 2, "head_size": 6,
    "intermediate_size": 20, "padded_vocab_size": 340, "norm_eps": 1e-6, "rope_base": 1000000, "add_qkv_bias": True,
    "text_vocab_size": 100, "audio_vocab_size": 80, "cat_audio_vocab_size": 240, "whisper_adapter_dim": 10,
    "post_adapter": False, "asr_adapter": "llamamlp", "tie_word_embeddings": False, "bias": False,
}  # fmt: skip
OTHERS = {
    "as released": {},
    "linear adapter": {"asr_adapter": "mlp"},
    "TTS adapter": {"post_adapter": True, "post_adapter_layers": 1},
    "rope base and eps": {"rope_base": 500, "norm_eps": 0.3},
    "wide heads": {"head_size": 10},
    "one group": {"n_query_groups": 1},
    "a group per head": {"n_query_groups": 4},
    "no bias": {"add_qkv_bias": False},
    "tied": {"tie_word_embeddings": True},
    "padded": {"padded_vocab_size": 352},
    "two codebooks": {"cat_audio_vocab_size": 160, "padded_vocab_size": 260},
}


def tiny(**changes) -> tuple[dict, dict]:
    """Return a tiny Mini-Omni configuration and weights for it."""
    config = TINY | changes
    state = published.weights(config)
    if config["tie_word_embeddings"]:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    return config, state


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("task", ["A1A2", "T1T2"])
def test_slow_twin(changes: dict, task: str):
    config, state = tiny(**changes)
    model = from_state_dict(state, config)
    features = torch.randn(5, 10, generator=torch.Generator().manual_seed(0))
    features = features if TASKS[task].given == "speech" else None
    steps = make_prompt(TASKS[task], model.layout, text=[3, 1, 4, 1, 5], audio_frames=5).steps
    audio, text = logits_of(model, steps, features)
    their_audio, their_text = published.forward(state, config, shared_ids(model, steps), features)
    close(audio, their_audio)
    close(text, their_text)


def test_the_twin_knows_the_stored_figures():
    """The slow implementation gives the stored outputs of the published code, so comparisons with it are meaningful."""
    case, config = read(CASES[0]), read(CASES[0]).figures["config"]
    name = next(name for name in case.figures if name.startswith("forward/"))
    encoded = case.features if TASKS[name.removeprefix("forward/")].given == "speech" else None
    prompt = torch.tensor(case.figures[name]["prompt"])
    audio, text = published.forward(published.weights(config), config, prompt, encoded)
    close(audio[:, -1], case.arrays[f"{name}/audio_last"])
    assert text.argmax(dim=-1).tolist() == case.figures[name]["text_argmax"]


@pytest.mark.parametrize("changes", [{}, {"post_adapter": True, "post_adapter_layers": 1}], ids=["released", "TTS"])
def test_training_on_leaves_a_frozen_backbone_as_it_was(changes: dict):
    """Training with a frozen backbone, as in stage 1, changes new embeddings and adapters, and no bit of the backbone.
    """
    config, state = tiny(**changes)
    model = from_state_dict(state, config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.freeze_all_but(["adapter", "tts_adapter", "new_text_embeddings", "new_audio_embeddings"])
    codes = torch.randint(0, 16, (3, 4), generator=torch.Generator().manual_seed(1))
    sample = make_sample(TASKS["A1A2"], model.layout, model.pattern, audio_frames=5, answer=[2, 7], codes=codes)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    hidden = model(sample.steps[None], speech_of(model, torch.randn(5, 10)))
    step_loss(model, hidden, sample.labels[None]).backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not {name for name in changed if name.startswith("llm.")}
    learned = {
        "new_audio_embeddings.embed.weight",
        "new_audio_embeddings.head.weight",
        "new_text_embeddings.head.weight",
        "adapter.proj.weight",
    }
    assert learned <= changed
    assert bool(changes) == any(name.startswith("tts_adapter.") for name in changed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary_percentage": 0.25}, "rotary_percentage is 0.25; only 1.0 is supported"),
        ({"asr_adapter": "conv"}, "asr_adapter is conv .choices: llamamlp, mlp"),
        ({"n_embd": None}, "n_embd is missing"),
        ({"n_layer": 3}, r"state_dict does not fit model_config.yaml: lacks transformer.h.2.* and \d+ more"),
        ({"n_layer": 1}, "has the unknown transformer.h.1"),
        ({"intermediate_size": 21}, r"fc_1.weight is \[20, 10\], expected \[21, 10\]"),
        ({"padded_vocab_size": 300}, "padded_vocab_size 300 is less than"),
    ],
)
def test_other_checkpoints_are_refused(changes: dict, message: str):
    _, state = tiny()
    with pytest.raises(ValueError, match=message):
        from_state_dict(state, TINY | changes)


def test_parts_of_another_size_are_refused():
    config, state = tiny()
    with pytest.raises(ValueError, match=r"codec does not fit model_config.yaml: codebooks expected 3, found 7"):
        from_state_dict(state, config, parts={"codec": "snac_mini"})
