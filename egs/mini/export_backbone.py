"""Exports the backbone of a checkpoint as a reusable pretrained part: weights, tokenizer and model card.

    python export_backbone.py --checkpoint results/backbone --output_folder pretrained/llm
"""

from __future__ import annotations

import json
from pathlib import Path

from omnikit import checkpoint
from omnikit.errors import ArgumentParser, bad_input_exits
from omnikit.files import write_text
from omnikit.interfaces import count_parameters
from omnikit.train.brain import LOG
from omnikit.weights import save_weights

CARD = """# Mini backbone

A Qwen2 of transformers ({parameters:,} parameters; 4 blocks, width 256) with a sentencepiece vocabulary of {vocabulary}
pieces, pre-trained from random weights through the whole model: text in the text stream, pads in the audio streams. The
text is that of `egs/mini/make_text.py`: the known questions of the closed domain with their answers, dialogs, and
sentences to repeat, without held-out sums and follow-ups, and without the sentences of the dev and test splits.

Trained by `egs/mini/run.sh --from-scratch --stage 4 --stop_stage 5`: {steps} optimiser steps, one run. At its end, on
the written questions of the validation set: cross-entropy {loss:.3f} nats per token, {wrong:.1f} % of the decoded
answers wrong.
"""


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint folder of the backbone's training")
    parser.add_argument("--output_folder", type=Path, required=True, help="folder for weights, tokenizer and card")
    arguments = parser.parse_args()
    model = checkpoint.load(arguments.checkpoint)
    last = json.loads((arguments.checkpoint / LOG).read_text(encoding="utf-8").splitlines()[-1])
    save_weights(model.llm, arguments.output_folder)
    model.llm.tokenizer.save(str(arguments.output_folder))
    card = CARD.format(
        parameters=count_parameters(model.llm),
        vocabulary=model.llm.vocab_size,
        steps=last["step"],
        loss=last["valid"]["text"],
        wrong=last["valid"]["wrong T1T2"],
    )
    write_text(arguments.output_folder / "README.md", card)
    print(f"saved to {arguments.output_folder}")


if __name__ == "__main__":
    with bad_input_exits():
        main()
