"""A toy model whose heads prefer the tokens that a test prescribes."""

from __future__ import annotations

import torch

from omnikit.generate import Decoder, Decoding, Question, read_frames
from omnikit.strategies import PARALLEL, Strategy
from omnikit.tasks import TASKS
from tests.unit.toy import toy_model

FREE = Decoding(constrain=False, max_steps=20)
SAFE = Decoding(max_steps=20)
WORD = 7


def emitted(decoder: Decoder, task: str, questions: list[Question], **asked) -> list[list[list[int]]]:
    """Return the tokens [S][L] generated for each of several questions, which are submitted at once."""
    requests = [decoder.request(TASKS[task], question, **asked) for question in questions]
    batch = decoder.batch(max(decoder.capacity, 2 * len(questions)))
    for request in requests:
        batch.submit(request)
    batch.run()
    for request in requests:
        request.wait(0)
    return [list(map(list, zip(*request.steps, strict=True))) for request in requests]


class Script:
    """A toy model whose heads prefer prescribed tokens, and which records its inputs.

    `fed` [step][slot][stream] are the tokens that were fed before each call of a head, `calls` the shapes [B, S, L] of
    all inputs, and `texts` the number of calls of the text head.

    Args:
        text, audio: the best id at each step, for text and for each audio stream; the last one is repeated.
        pattern, options: pattern of the toy model and its options.
    """

    def __init__(self, monkeypatch, text: list, audio: list[list], pattern: str = "delayed", **options):
        self.model = toy_model(pattern, **options)
        self.text, self.audio, self.fed = self._ids(0, text), [self._ids(1 + s, a) for s, a in enumerate(audio)], []
        self.calls, self.texts = [], 0
        # only the heads' outputs are replaced, so that the network keeps its parameters
        monkeypatch.setattr(self.model, "text_logits", self._text_logits)
        monkeypatch.setattr(self.model, "audio_logits", self._audio_logits)
        embed = self.model.embed

        def watched(steps, speech=None):
            self.calls.append(steps.shape)
            if steps.shape[2] == 1:  # a decode step, not a prefill
                self.fed.append(steps[..., -1].tolist())
            return embed(steps, speech)

        monkeypatch.setattr(self.model, "embed", watched)

    def _ids(self, stream: int, words: list) -> list[int]:
        layout = self.model.layout
        names = layout.text if stream == 0 else layout.audio[stream - 1]
        return [getattr(names, word) if isinstance(word, str) else word for word in words]

    def _at(self, stream: int, words: list[int], batch: int) -> torch.Tensor:
        logits = torch.zeros(batch, self.model.layout.sizes[stream])
        logits[:, words[min(len(self.fed) - 1, len(words) - 1)]] = 1.0
        return logits

    def _text_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.texts += 1
        return self._at(0, self.text, len(hidden))

    def _audio_logits(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        return [self._at(1 + s, words, len(hidden)) for s, words in enumerate(self.audio)]

    def run(
        self, task: str, decoding: Decoding, strategy: Strategy = PARALLEL, questions: list[Question] | None = None
    ) -> list[list[int]]:
        """Run the scripted model on one or more questions, and return the tokens [S][L] generated for the first."""
        given = [Question(text=[3])] if TASKS[task].given == "text" else [Question(features=torch.zeros(4, 12))]
        self.restart()
        return emitted(Decoder(self.model, decoding=decoding, strategy=strategy), task, questions or given)[0]

    def restart(self) -> None:
        self.fed.clear()
        self.calls.clear()
        self.texts = 0

    def codes(self, tokens: list[list[int]]) -> list[list[int]]:
        """Return the codes [K][T] that the generated tokens [S][L] of an answer represent."""
        return read_frames(self.model, torch.tensor(tokens[1:])).codes.tolist()

    @property
    def pads(self) -> list[int]:
        return self.model.layout.pads().tolist()
