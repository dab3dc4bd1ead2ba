"""Reference implementation of generation in the slowest, most obvious way, to compare omnikit's generation with.

It computes one answer at a time, all sequences and positions anew at each step, and spells out the rules for each
stream.
"""

from __future__ import annotations

import torch

from omnikit.generate import Decoding, Question
from omnikit.model import AdaptedSpeech, OmniLM
from omnikit.sampling import Sampling, noise_keys, sample, sampling_numbers
from omnikit.strategies import PARALLEL, Strategy
from omnikit.tasks import AUDIO_START, TASKS, make_prompt

NEVER = float("-inf")


class PlainRules:
    """Simple implementation of the token rules in `omnikit.generate.token_rules`, for a single answer."""

    def __init__(self, model: OmniLM, task: str, question: Question, decoding: Decoding, seed: int = 0):
        self.layout, self.pattern, self.task, self.decoding = model.layout, model.pattern, TASKS[task], decoding
        self.given = [*question.text, self.layout.text.eot] if self.task.text_forced else None
        self.seed, self.emitted = seed, []
        self.text_over, self.end_frame = False, None
        self.over = [False] * len(self.layout.audio)
        self.leader = self.pattern.first.index(min(self.pattern.first))

    def next(self, text_logits: torch.Tensor, audio_logits: list[torch.Tensor]) -> list[int]:
        """Choose the next tokens [S] of an answer from the logits [V] of each stream."""
        step = len(self.emitted)
        tokens = [self._text(text_logits, step), *self.layout.pads().tolist()[1:]]
        if self.task.speaks:
            others = [stream for stream in range(len(audio_logits)) if stream != self.leader]
            for stream in [self.leader, *others]:
                tokens[1 + stream] = self._audio(audio_logits[stream].clone(), stream, step)
        self.emitted.append(tokens)
        return tokens

    @property
    def finished(self) -> bool:
        last = self.pattern.first.index(max(self.pattern.first))
        return self.over[last] if self.task.speaks else self.text_over

    def _text(self, logits: torch.Tensor, step: int) -> int:
        eot, pad = self.layout.text.eot, self.layout.text.pad
        if self.given is not None:
            return self.given[step] if step < len(self.given) else pad
        if self.text_over:
            return pad
        logits = logits.clone()
        if step < self.decoding.min_steps:
            logits[eot] = NEVER
        if self.decoding.constrain:
            logits[eot + 1 :] = NEVER
        token = self._sample(logits, 0, step, self.decoding.text)
        self.text_over = token == eot and self._counts(step)
        return token

    def _audio(self, logits: torch.Tensor, stream: int, step: int) -> int:
        ids = self.layout.audio[stream]
        if step < self.decoding.min_steps:
            logits[ids.eoa] = NEVER
        frame = (step - self.pattern.first[stream]) // self.pattern.stride
        if self.decoding.constrain:
            book = self.pattern.codebook_at(step)[stream]
            if book < 0 or self.over[stream]:
                return ids.pad
            codes = self.layout.code_ids(stream, book)
            if stream != self.leader and codes.start == 0 and self.end_frame == frame:
                self.over[stream] = True
                return ids.eoa
            allowed = [*codes, *([ids.eoa] if stream == self.leader and codes.start == 0 and frame > 0 else [])]
            kept = torch.full_like(logits, NEVER)
            kept[allowed] = logits[allowed]
            logits = kept
        token = self._sample(logits, 1 + stream, step, self.decoding.audio)
        if token == ids.eoa and self._counts(step):
            if stream == self.leader and self.end_frame is None:
                self.end_frame = frame
            self.over[stream] = True
        return token

    def _counts(self, step: int) -> bool:
        return self.decoding.constrain or step > 0

    def _sample(self, logits: torch.Tensor, stream: int, step: int, how: Sampling) -> int:
        seen = torch.zeros_like(logits, dtype=torch.bool)
        for tokens in self.emitted:
            seen[tokens[stream]] = True
        key = noise_keys(torch.tensor([self.seed]), torch.tensor([step]), torch.tensor([stream]))[0]
        options = {"keys": key if how.draws else None, "seen": seen[None], "cut": how.cuts}
        return int(sample(logits.float()[None], torch.tensor([sampling_numbers(how)]), **options))


def plainly(
    model: OmniLM,
    task: str,
    question: Question,
    decoding: Decoding,
    strategy: Strategy = PARALLEL,
    seed: int = 0,
    before: torch.Tensor | None = None,
) -> tuple[list[list[int]], list[list[torch.Tensor]]]:
    """Generate one answer, and return its tokens [L][S] and the logits [V] of each stream at each step.

    `before` are the embeddings [P, D] of a conversation that the prompt follows.
    """
    rules, layout = PlainRules(model, task, question, decoding, seed), model.layout
    strategy = strategy.for_task(TASKS[task])
    speech = None
    if TASKS[task].given == "speech":
        features, lengths = model.adapter(question.features[None], torch.tensor([len(question.features)]))
        rows = len(strategy.text_only)
        speech = AdaptedSpeech(features.expand(rows, -1, -1), lengths.expand(rows), torch.full((rows,), AUDIO_START))
    frames = None if speech is None else int(speech.lengths[0])
    prompts = [make_prompt(each, layout, text=question.text, audio_frames=frames).steps
               for each in strategy.sequence_tasks(TASKS[task])]  # fmt: skip
    logits = []
    for _ in range(decoding.max_steps):
        with torch.no_grad():
            embeddings = model.embed(torch.stack(prompts), speech)
            if before is not None:
                embeddings = torch.cat([before.expand(len(prompts), -1, -1), embeddings], dim=1)
            hidden = model.hidden(embeddings)
            text = model.text_logits(hidden.text[strategy.text_from, -1:])[0]
            audio = [each[0] for each in model.audio_logits(hidden.audio[strategy.audio_from, -1:])]
        tokens = rules.next(text, audio)
        if rules.finished:
            return rules.emitted[:-1], logits
        logits.append([text, *audio])
        for row, quiet in enumerate(strategy.text_only):
            fed = [tokens[0], *layout.pads().tolist()[1:]] if quiet else tokens
            prompts[row] = torch.cat([prompts[row], torch.tensor(fed)[:, None]], dim=1)
    return rules.emitted, logits
