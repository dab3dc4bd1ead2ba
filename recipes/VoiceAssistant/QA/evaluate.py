"""Evaluates spoken question answering: share of correct answers, intelligibility of spoken answers, and speed.

    python evaluate.py hparams/eval.yaml --checkpoint DIR --data_folder DIR

This writes `qa.json`, `qa.md`, `answers_<split>_<mode>.jsonl` and some answers as WAV files.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from omnikit.api import Omni, load
from omnikit.data.manifest_reader import ManifestEntry
from omnikit.data.samples import codec_name
from omnikit.errors import bad_input_exits
from omnikit.evaluate.intelligibility import (
    NOT_JUDGED,
    SpeechSet,
    SpokenText,
    judge_all,
    keep_wavs,
    open_judge,
    rates_table,
    reference_speech,
    references,
)
from omnikit.evaluate.mos import mos_scores, mos_table, open_mos
from omnikit.evaluate.qa import (
    AnswerMode,
    QAScores,
    chosen_sources,
    count_right,
    qa_table,
    read_questions,
    some,
    write_answers,
)
from omnikit.evaluate.recipe_checks import check_evaluation
from omnikit.evaluate.speed import Speed, measure, speed_table
from omnikit.evaluate.text_normalisation import normalizer, normalizer_version
from omnikit.files import write_json, write_text
from omnikit.hparams import load_recipe
from omnikit.offline.batches import DecodedAnswer, replies, sound
from omnikit.tasks import TASKS

Answers = dict[str, dict[str, DecodedAnswer]]
"""Mapping from answer mode and id of the question to the decoded answer."""


class QAEvaluation:
    """An evaluation of a system on the questions of one or more splits, which are sources of the recipe."""

    def __init__(self, hparams: dict[str, Any], omni: Omni, device: str):
        self.hparams, self.omni, self.model = hparams, omni, omni.model
        self.folder = Path(hparams["output_folder"])
        self.folder.mkdir(parents=True, exist_ok=True)
        self.answer_modes = AnswerMode.all_of(hparams["answer_modes"])
        self.judge = open_judge(hparams["judge"], hparams["grammar_file"], hparams["judge_weights"], device)
        self.mos = open_mos(hparams["mos"], hparams["mos_source"], device)
        self.judge_normalize = normalizer(hparams["judge_normalizer"])
        sources = chosen_sources(hparams["sources"], hparams["splits"])
        self.entries = {split: self._read(split, options) for split, options in sources.items()}
        self.judged_split = hparams["judged_split"] or next(iter(self.entries))
        if self.judged_split not in self.entries:
            raise ValueError(f"--judged_split {self.judged_split}: not in splits ({', '.join(self.entries)})")

    def _read(self, split: str, options: dict[str, Any]) -> list[ManifestEntry]:
        return some(read_questions(split, options, self.hparams["cache_folder"]), self.hparams["limit"])

    def answer(self, split: str) -> tuple[dict[str, QAScores], Answers]:
        """Answer the questions of a split in every answer mode; return the scores and the answers by mode.

        The answers are also written to `answers_<split>_<mode>.jsonl`, and some spoken ones as WAV files.
        """
        shares, found = {}, {}
        normalize, entries = normalizer(self.hparams["normalizer"]), self.entries[split]
        for mode in self.answer_modes:
            given, skipped = replies(
                self.model, mode.task, entries, strategy=mode.strategy, decoding=self.hparams["decoding"],
                batch_size=self.hparams["batch_size"], title=f"{split}, {mode.name}",
            )  # fmt: skip
            language = self.hparams["language"]
            found[mode.name] = given
            shares[mode.name] = count_right(mode.task, entries, given, skipped, normalize, language)
            write_answers(self.folder / f"answers_{split}_{mode.name}.jsonl", entries, given)
            if mode.task.speaks:
                utterances = self._spoken_answers(split, given, self.hparams["keep_wavs"])
                where = self.folder / "wav" / mode.name
                keep_wavs(utterances, where, self.model.codec.sample_rate, len(utterances))
        return shares, found

    def _spoken_answers(self, split: str, given: dict[str, DecodedAnswer], limit: int) -> list[SpokenText]:
        """Return the first spoken answers with their texts, in the languages of their questions."""
        chosen = list(given.items())[:limit]
        spoken = {entry.id: entry.language or self.hparams["language"] or "" for entry in self.entries[split]}
        return [
            SpokenText(name, reply.text, sound(self.model.codec, reply.codes), spoken[name]) for name, reply in chosen
        ]

    def speech(self, found: Answers) -> dict[str, SpeechSet]:
        """Return the sets of speech to be judged, by title.

        If the recipe asks for `references`, these are recorded answers and the same after encoding and decoding by the
        codec; then the spoken answers, whose references are their own texts.
        """
        limit, speech = self.hparams["judge_limit"], {}
        if self.hparams["references"]:
            entries = self.entries[self.judged_split][:limit]
            utterances = references(entries, TASKS["A1A2"], codec_name(self.model), self.hparams["language"] or "")
            speech = reference_speech({"the codec": self.model.codec}, utterances, own="the codec")
        for mode in self.answer_modes:
            if mode.task.speaks:
                title = f"spoken answers against their own text, {mode.name.replace('_', ' ')}"
                answers = partial(self._spoken_answers, self.judged_split, found[mode.name], limit)
                speech[title] = SpeechSet(self.omni.sample_rate, answers)
        return speech

    def speed(self, found: Answers) -> dict[str, Speed | None]:
        """Return the speed of streaming answers, by each answer mode from speech to speech.

        It is measured on recorded questions that the system has answered.
        """
        answered = {name for given in found.values() for name in given}
        entries = [entry for entry in self.entries[self.judged_split] if entry.id in answered and entry.a1 is not None]
        wavs = [entry.a1.load(self.model.encoder.sample_rate) for entry in entries[: self.hparams["speed_questions"]]]
        measured = {}
        for mode in self.answer_modes:
            if mode.task.speaks and mode.task.given == "speech" and wavs:
                omni = Omni(self.model, decoding=self.hparams["decoding"], strategy=mode.strategy)
                options = {"sample_rate": omni.sample_rate, "threads": self.hparams["speed_threads"]}
                measured[mode.name] = measure(omni.stream, wavs, **options)
        return measured


def main() -> None:
    recipe = load_recipe(check=check_evaluation)
    hparams = recipe.hparams
    device = recipe.run_opts.get("device", "cpu")
    run = QAEvaluation(hparams, load(hparams["checkpoint"], device=device), device)
    shares, rates, mos, speed = {}, {}, {}, {}
    for split in run.entries:
        shares[split], found = run.answer(split)
        if split == run.judged_split:
            speech = run.speech(found)
            if run.judge is not None:
                judgements = judge_all(run.judge, speech, run.judge_normalize)
                rates = {title: each for title, (each, _) in judgements.items()}
            mos, speed = mos_scores(run.mos, speech), run.speed(found)
    about = {"checkpoint": hparams["checkpoint"] or "the shipped mini system"}
    about |= {"normalizer": normalizer_version(hparams["normalizer"]), "judge": hparams["judge"]}
    write_json(run.folder / "qa.json", {
        **about,
        "splits": {split: {mode: s.as_dict() for mode, s in modes.items()} for split, modes in shares.items()},
        "intelligibility": {name: r.as_dict() for name, r in rates.items()},
        "mos": {name: o.as_dict() for name, o in mos.items()},
        "speed": {mode: s and s.as_dict() for mode, s in speed.items()},
    })  # fmt: skip
    tables = [qa_table(shares), rates_table(rates) if rates else NOT_JUDGED]
    tables += [mos_table(mos)] if mos else []
    tables += [speed_table(speed)] if speed else []
    notes = "\n".join(f"- {key}: {value}" for key, value in about.items())
    text = "\n\n".join(["# Spoken questions", *tables, notes])
    write_text(run.folder / "qa.md", text + "\n")
    print(text)


if __name__ == "__main__":
    with bad_input_exits():
        main()
