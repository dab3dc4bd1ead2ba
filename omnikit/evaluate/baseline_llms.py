"""Published language models of text as baselines: each question gets the model's greedy answer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from omnikit.errors import one_line
from omnikit.hub import hub_folder, is_hub_id
from omnikit.llms.pretrained import read_causal_lm
from omnikit.llms.tokenizers import read_chat_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_PROMPT = "Question: {question}\nAnswer:"
"""Prompt of a model whose tokenizer has no chat template; its answer is one line."""
PAD = 0
"""Id before shorter prompts of a batch and after shorter answers; a tokenizer's own may be beyond the embeddings."""
MAX_TOKENS = 256
"""Default of the maximum number of tokens of an answer."""


@dataclass(frozen=True)
class WrittenAnswer:
    """The answer of a language model to one question."""

    text: str
    truncated: bool
    """Whether the answer was ended by the maximum number of tokens."""


class BaselineLLM:
    """A causal language model of transformers that answers questions, with its chat template if it has one.

    Answers are greedy: sampling options and penalties that the model's publisher recommends are not used.

    Args:
        weights: folder as written by `save_pretrained`, or hub id.
        device: device that it runs on. On the CPU it computes in float32, on others in the type that it is stored in.
        max_tokens: maximum number of tokens of an answer.

    Raises:
        ValueError: there is no such model, it has no tokenizer that transformers can read, or its chat template fails.
    """

    def __init__(self, weights: str, device: str = "cpu", max_tokens: int = MAX_TOKENS):
        folder = hub_folder(weights) if is_hub_id(weights) else Path(weights)
        if not folder.is_dir():
            raise ValueError(f"--baseline_llm {weights}: no such folder, and no hub id (owner/name)")
        self.weights, self.device, self.max_tokens = weights, device, max_tokens
        self.tokenizer = read_chat_tokenizer(folder)
        self.tokenizer.padding_side = "left"
        model = read_causal_lm(folder)
        self.model = (model.float() if torch.device(device).type == "cpu" else model).to(device).eval()
        self.ends = _ends(self.model, self.tokenizer)
        self._set_greedy()
        if self.has_chat_template:
            self._chat("?")

    def _set_greedy(self) -> None:
        from transformers import GenerationConfig

        self.model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=self.max_tokens, eos_token_id=self.ends or None, pad_token_id=PAD
        )

    @property
    def has_chat_template(self) -> bool:
        """Whether questions are put into the chat template of the model's publisher, instead of `PLAIN_PROMPT`."""
        return bool(self.tokenizer.chat_template)

    def prompt(self, question: str, before: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Return the ids of the prompt of a question.

        Args:
            question: text of the question.
            before: questions and answers of the conversation before it.

        Raises:
            ValueError: the prompt and the longest answer have more positions than the model.
        """
        if self.has_chat_template:
            ids = self.tokenizer(self._chat(question, before), add_special_tokens=False)["input_ids"]
        else:
            told = "".join(f"{PLAIN_PROMPT.format(question=asked)} {answer}\n" for asked, answer in before)
            ids = self.tokenizer(told + PLAIN_PROMPT.format(question=question))["input_ids"]
        most = getattr(self.model.config, "max_position_embeddings", None)
        if most is not None and len(ids) + self.max_tokens > most:
            raise ValueError(
                f"a prompt of {len(ids)} and an answer of {self.max_tokens} tokens need more than {most} positions"
            )
        return list(ids)

    def _chat(self, question: str, before: Sequence[tuple[str, str]] = ()) -> str:
        said = [*(text for pair in before for text in pair), question]
        roles = itertools.cycle(("user", "assistant"))
        messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates are programs, and raise what they like
            raise ValueError(f"--baseline_llm {self.weights}: its chat template fails ({one_line(error)})") from None

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Sequence[int]]) -> list[WrittenAnswer]:
        """Return the answers to prompts, which are computed in one batch.

        Args:
            prompts: ids of each prompt, see `prompt`.
        """
        longest = max(map(len, prompts))
        ids = torch.tensor([[PAD] * (longest - len(each)) + list(each) for each in prompts], device=self.device)
        mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts], device=self.device)
        options = {} if self.has_chat_template else {"stopping_criteria": [self._line_ended(longest)]}
        found = self.model.generate(input_ids=ids, attention_mask=mask, **options)
        return [self._written(each[longest:].tolist()) for each in found]

    def _written(self, ids: list[int]) -> WrittenAnswer:
        end = next((i for i, token in enumerate(ids) if token in self.ends), None)
        text = self._text(ids[:end])
        if self.has_chat_template:
            return WrittenAnswer(text, truncated=end is None)
        line, ended, _ = text.partition("\n")
        return WrittenAnswer(line.strip(), truncated=end is None and not ended)

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

    def _line_ended(self, start: int) -> Callable[..., Tensor]:
        """Return the stopping criterion of transformers that an answer, which begins at a position, has a whole line.
        """

        def ended(ids: Tensor, _scores: Tensor, **_: object) -> Tensor:
            decoded = self.tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)
            return torch.tensor(["\n" in text.lstrip() for text in decoded], device=ids.device)

        return ended


def _ends(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end an answer: those of the published generation settings and of the tokenizer."""
    published = getattr(model.generation_config, "eos_token_id", None)
    published = published if isinstance(published, list) else [published]
    return sorted({i for i in (*published, tokenizer.eos_token_id) if i is not None})
