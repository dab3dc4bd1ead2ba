"""Test published language models as baselines at a tiny size: prompts, ends and batches."""

from __future__ import annotations

import json

import pytest
import torch

from omnikit.evaluate.baseline_llms import BaselineLLM
from tests.unit.tiny_models import write_llm


@pytest.fixture(scope="module")
def chat_llm(tmp_path_factory) -> BaselineLLM:
    return BaselineLLM(write_llm(tmp_path_factory.mktemp("chat")), max_tokens=24)


@pytest.fixture(scope="module")
def plain_llm(tmp_path_factory) -> BaselineLLM:
    return BaselineLLM(write_llm(tmp_path_factory.mktemp("plain"), template=None), max_tokens=24)


def best_ids(llm: BaselineLLM, prompt: list[int]) -> list[int]:
    """Return the ids of a greedy answer by computing the whole sequence for each of them, without a cache."""
    ids = list(prompt)
    for _ in range(llm.max_tokens):
        with torch.inference_mode():
            ids.append(int(llm.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_questions_are_put_into_the_chat_template(chat_llm):
    ids = chat_llm.prompt("What is it?")
    assert chat_llm.tokenizer.decode(ids) == "<|user|>What is it?<|end|><|assistant|>"
    assert ids[-1] == chat_llm.tokenizer.convert_tokens_to_ids("<|assistant|>")


def test_a_batch_is_answered_like_each_prompt(chat_llm, monkeypatch):
    prompts = [chat_llm.prompt(text) for text in ("One", "What is three plus two?", "")]
    expected = [best_ids(chat_llm, prompt) for prompt in prompts]
    end = expected[1][5]  # an id that ends the second answer before its limit
    monkeypatch.setattr(chat_llm, "ends", [end])
    monkeypatch.setattr(chat_llm.model.generation_config, "eos_token_id", [end])
    found = chat_llm.answer(prompts)
    for answer, ids in zip(found, expected, strict=True):
        ended = end in ids
        assert answer.text == chat_llm._text(ids[: ids.index(end)] if ended else ids)
        assert answer.truncated is not ended
    assert not found[1].truncated
    assert [chat_llm.answer([prompt])[0] for prompt in prompts] == found


def test_without_a_template_the_answer_is_one_line(plain_llm):
    prompt = plain_llm.prompt("Who?")
    assert plain_llm.tokenizer.decode(prompt) == "Question: Who?\nAnswer:"
    line = plain_llm.tokenizer("a b\nc")["input_ids"]
    assert plain_llm._written(line).text == "a b" and not plain_llm._written(line).truncated
    assert plain_llm._written(line[:2]).truncated
    ended = plain_llm._line_ended(2)(torch.tensor([[0, 0, *line], [0, 0, *line[::-1]]]), None)
    assert ended.tolist() == [True, True]
    text = plain_llm._text(best_ids(plain_llm, prompt)).partition("\n")[0].strip()
    assert plain_llm.answer([prompt])[0].text == text


def test_ends_are_those_of_tokenizer_and_publisher(tmp_path):
    folder = write_llm(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9], "temperature": 0.1}))
    llm = BaselineLLM(folder)
    assert llm.ends == [7, 9, llm.tokenizer.eos_token_id]


def test_what_is_no_language_model(tmp_path, chat_llm):
    with pytest.raises(ValueError, match="--baseline_llm none: no such folder"):
        BaselineLLM("none")
    with pytest.raises(ValueError, match=r"holds neither tokenizer_config\.json nor tokenizer\.json"):
        BaselineLLM(str(tmp_path))
    with pytest.raises(ValueError, match="need more than 128 positions"):
        chat_llm.prompt("a" * 120)
    with pytest.raises(ValueError, match=r"its chat template fails \(no such role\)"):
        BaselineLLM(write_llm(tmp_path, template="{{ raise_exception('no such role') }}"))
