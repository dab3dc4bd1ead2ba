"""Evaluates conversations: share of correct answers to follow-up questions, with and without the turns before them.

    python evaluate_dialogs.py hparams/eval_dialogs.yaml --checkpoint DIR --data_folder DIR

This writes `dialogs.json`, `dialogs.md`, `dialogs_<split>_<mode>.jsonl` and some dialogs as WAV files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnikit.api import Omni, load
from omnikit.audio.io import save_audio, wav_name
from omnikit.data.skipped import Skipped
from omnikit.data.sources import read_entries
from omnikit.errors import bad_input_exits, writing
from omnikit.evaluate.conversation import Interview, InterviewAnswers, InterviewPlan, conversations, plan_of, recording
from omnikit.evaluate.conversation_scores import ConversationScores, conversation_table, score, write_dialogs
from omnikit.evaluate.dialogs import Dialog, group_dialogs
from omnikit.evaluate.qa import AnswerMode, chosen_sources, read_questions, some
from omnikit.evaluate.recipe_checks import check_evaluation
from omnikit.evaluate.text_normalisation import normalizer, normalizer_version
from omnikit.files import make_folder, write_json, write_text
from omnikit.hparams import load_recipe


class DialogEvaluation:
    """An evaluation of a system on the dialogs of one or more splits, which are sources of the recipe."""

    def __init__(self, hparams: dict[str, Any], omni: Omni):
        self.hparams, self.omni = hparams, omni
        self.folder = Path(hparams["output_folder"])
        self.normalize = normalizer(hparams["normalizer"])
        self.modes = AnswerMode.all_of(hparams["answer_modes"])
        self.unread: dict[str, Skipped] = {}
        sources = chosen_sources(hparams["sources"], hparams["splits"])
        self.training = self._read_training(hparams["training"])
        self.dialogs = {split: self._read(split, options) for split, options in sources.items()}
        make_folder(self.folder)

    def _read(self, split: str, options: dict[str, Any]) -> list[Dialog]:
        dialogs, self.unread[split] = group_dialogs(read_questions(split, options, self.hparams["cache_folder"]))
        if not dialogs:
            raise ValueError(f"manifest {options['manifest']}: has no dialogs; skipped: {self.unread[split]}")
        return some(dialogs, self.hparams["limit"])

    def _read_training(self, manifest: str | None) -> list[Dialog] | None:
        if manifest is None:
            return None
        dialogs, skipped = group_dialogs(read_entries("training", {"manifest": manifest}, self.hparams["cache_folder"]))
        if not dialogs:
            raise ValueError(f"--training {manifest}: has no dialogs; skipped: {skipped}")
        return dialogs

    def converse(self, split: str) -> dict[str, ConversationScores]:
        """Ask the questions of a split's dialogs in every answer mode, and return the scores by mode.

        The answers are also written to `dialogs_<split>_<mode>.jsonl`, and some dialogs as WAV files.
        """
        found = {}
        for mode in self.modes:
            plan = plan_of(self.hparams, mode.task)
            answers = self._ask(split, mode, plan)
            answers.skipped.update(self.unread[split])
            found[mode.name] = score(self.dialogs[split], answers, plan, self.normalize, self.training)
            path = self.folder / f"dialogs_{split}_{mode.name}.jsonl"
            write_dialogs(path, self.dialogs[split], answers, plan, self.normalize)
            if mode.task.speaks:
                self._keep(split, mode, answers, plan)
        return found

    def _ask(self, split: str, mode: AnswerMode, plan: InterviewPlan) -> InterviewAnswers:
        together = self.hparams["batch_size"]
        omni = Omni(
            self.omni.model, decoding=self.hparams["decoding"], strategy=mode.strategy,
            engine=self.omni.decoder.engine, capacity=together * len(mode.strategy.text_only),
        )  # fmt: skip
        kept = {dialog.name for dialog in self._kept(split)}
        try:
            interview = Interview(conversations(omni), omni.model.encoder.sample_rate, plan, kept)
            return interview.run(self.dialogs[split], together=together, title=f"{split}, {mode.name}")
        finally:
            omni.close()

    def _kept(self, split: str) -> list[Dialog]:
        return self.dialogs[split][: self.hparams["keep_wavs"]]

    def _keep(self, split: str, mode: AnswerMode, answers: InterviewAnswers, plan: InterviewPlan) -> None:
        folder = self.folder / "wav" / split / mode.name
        with writing(folder):
            make_folder(folder)
        for dialog in self._kept(split):
            wav = recording(dialog, answers.history, plan, self.omni.sample_rate)
            if wav.numel():
                save_audio(folder / wav_name(dialog.name), wav, self.omni.sample_rate)


def main() -> None:
    recipe = load_recipe(check=check_evaluation)
    hparams = recipe.hparams
    run = DialogEvaluation(hparams, load(hparams["checkpoint"], device=recipe.run_opts.get("device", "cpu")))
    found = {split: run.converse(split) for split in run.dialogs}
    about = {"checkpoint": hparams["checkpoint"] or "the shipped mini system"}
    about |= {"normalizer": normalizer_version(hparams["normalizer"])}
    about |= {key: hparams[key] for key in ("follow_ups", "typed", "crop", "training")}
    splits = {split: {mode: scores.as_dict() for mode, scores in modes.items()} for split, modes in found.items()}
    write_json(run.folder / "dialogs.json", {**about, "splits": splits})
    notes = "\n".join(f"- {key}: {value}" for key, value in about.items())
    text = "\n\n".join(["# Conversations", conversation_table(found), notes])
    write_text(run.folder / "dialogs.md", text + "\n")
    print(text)


if __name__ == "__main__":
    with bad_input_exits():
        main()
