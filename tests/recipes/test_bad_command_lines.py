"""Tests that bad command lines of every command and script give a one-line error and exit status 2, and write no file.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

ASR, QA, TTS = (
    f"recipes/{name}/evaluate.py hparams/eval.yaml --data_folder . --output_folder OUT"
    for name in ("LibriSpeech/ASR", "VoiceAssistant/QA", "LibriTTS/TTS")
)
DIALOGS = QA.replace("evaluate.py hparams/eval", "evaluate_dialogs.py hparams/eval_dialogs")
STAGE = "recipes/VoiceAssistant/QA/train.py hparams/stage1.yaml SYSTEM --data_folder . --output_folder OUT"
ENCODER = "recipes/FSDD/ASR/train_encoder.py hparams/encoder.yaml --data_folder . --held_out x --output_folder OUT"
CODEC = "egs/mini/train_codec.py hparams/codec_mel_rvq.yaml --data_folder . --output_folder OUT"
PREPARE = "recipes/LJSpeech/prepare.py --data_folder . --save_folder OUT"
DECODE = "recipes/VoiceAssistant/decode_answers.py --manifest HERE/m.csv --save_folder OUT"
TOKENIZE = "omnikit tokenize HERE/m.csv --save_folder OUT --codec mel_rvq --codec.weights MEL_RVQ"
SAY = "omnikit synthesize HERE/m.csv --save_folder OUT"

CASES = {
    # command line: the expected error; HERE is a folder with q.wav, m.csv, file.txt, bad.* (not UTF-8), folder.wav/
    "omnikit ask HERE/none.wav": "HERE/none.wav: no such file",
    "omnikit ask HERE/file.txt/q.wav": "HERE/file.txt/q.wav",
    "omnikit ask LONG.wav": "File name too long",
    "omnikit ask HERE/q.wav -o HERE/folder.wav": "HERE/folder.wav: is a folder",
    "omnikit ask HERE/q.wav -o HERE/file.txt/a.wav": "HERE/file.txt/a.wav: no such folder",
    "omnikit ask HERE/q.wav -o HERE/LONG.wav": "File name too long",
    "omnikit ask HERE/q.wav -o ''": "cannot write a file without an ending",
    "omnikit ask HERE/q.wav --device cuda:77": "--device cuda:77: not available here",
    "omnikit ask HERE/q.wav --device ''": "--device : not available here",
    "omnikit ask HERE/q.wav --max_steps 0": "max_steps: 0; it must be 1 or more",
    "omnikit ask HERE/q.wav --max_steps 99999999999": "max_steps: 99999999999; it must be at most",
    "omnikit ask HERE/q.wav --time_limit nan": "time_limit: nan; it must be a finite number",
    "omnikit ask HERE/q.wav --time_limit inf": "time_limit: inf; it must be a finite number",
    "omnikit ask HERE/q.wav --batch_size 0": "--batch_size 0: must be 1 or more",
    "omnikit ask HERE/q.wav --codec.num_codebooks 99999999999": "--codec.num_codebooks 99999999999: must be at most",
    "omnikit ask HERE/q.wav --llm.config.hidden_size -5": "--llm.config.hidden_size -5: must be 0 or more",
    "omnikit ask HERE/q.wav --llm.config.num_attention_heads 3": "num_attention_heads 3: must be a multiple of",
    "omnikit ask HERE/q.wav --codec.n_mels 100000": "--codec.n_mels 100000: must be from 1 to 320",
    "omnikit ask HERE/q.wav --codec HERE/bad.yaml": "HERE/bad.yaml: not a text in UTF-8",
    "omnikit ask HERE/q.wav --checkpoint HERE/file.txt/x": "checkpoint HERE/file.txt/x: no such folder",
    "omnikit transcribe HERE/m.csv -o HERE/file.txt/x": "HERE/file.txt/x: cannot be written (Not a directory)",
    "omnikit transcribe HERE/m.csv -o HERE/file.txt": "HERE/file.txt: cannot be written (Not a directory)",
    "omnikit speak HERE/bad.txt -o OUT": "HERE/bad.txt: not a text in UTF-8",
    "omnikit speak one -o HERE/folder.wav": "HERE/folder.wav: is a folder",
    "omnikit chat SURROGATE": r"text '\udcff': not UTF-8",
    "omnikit bench --seconds 1e9": "--seconds 1000000000: must be at most 30",
    "omnikit bench --seconds nan": "--seconds nan: must be a finite number",
    "omnikit bench --streams 999999999": "--streams 999999999: must be at most",
    "omnikit bench --threads 99999999": "--threads 99999999: must be at most",
    "omnikit info --codec 5": "--codec 5: must be a text",
    "omnikit info --codec.weights.x 3": "--codec.weights: is a single value",
    "omnikit info --llm.config.hidden_size 0": "--llm.config.hidden_size 0: must be 1 or more",
    "omnikit info --encoder.layers 9999": "--encoder.layers 9999: must be at most 1024",
    "omnikit info --codec snac_mini --codec.encoder_rates x": "--codec.encoder_rates x: must be a list",
    "omnikit info --codec snac_mini --codec.encoder_rates [4,4]": "--codec.encoder_rates [4, 4]: their product",
    "omnikit info --llm.lora.dropout 7": "--llm.lora.dropout 7: must be at most 1",
    "omnikit convert mini_omni HERE/none OUT": "HERE/none: no such folder",
    f"{TOKENIZE} --batch_seconds nan": "--batch_seconds nan: must be a finite number",
    f"{TOKENIZE} --shard_size 0": "--shard_size 0: must be 1 or more",
    f"{TOKENIZE} --device cuda:77": "--device cuda:77: not available here",
    f"{TOKENIZE} --save_folder HERE/file.txt/x": "HERE/file.txt/x",
    f"{SAY} --shard_size -1": "--shard_size -1: must be 1 or more",
    f"{SAY} --save_folder HERE/LONG": "File name too long",
    f"{STAGE} --device cuda:77": "--device cuda:77: not available here",
    f"{STAGE} --llm.config.hidden_size -5": "--llm.config.hidden_size -5: must be 0 or more",
    f"{STAGE} --codec.num_codebooks 99999999999": "--codec.num_codebooks 99999999999: must be at most",
    f"{STAGE} --epochs.limit 0 --warmup_steps -5": "--warmup_steps -5: must be 0 or more",
    f"{STAGE} --nonfinite_patience 0": "--nonfinite_patience 0: must be 1 or more",
    f"{STAGE} --ckpt_interval_minutes nan": "--ckpt_interval_minutes nan: must be a finite number",
    f"{STAGE} --epochs.limit 0": "--epochs.limit 0: must be 1 or more",
    f"{STAGE} --epochs.limit 1.5": "--epochs.limit 1.5: must be a whole number",
    f"{STAGE} --opt_class.lr 1": "--opt_class.lr 1: has no effect, the schedule sets the rate; use --peak_lr",
    f"{STAGE} --opt_class.betas 3": "--opt_class.betas 3: must be a list",
    f"{STAGE} --opt_class.weight_decay -1": "--opt_class.weight_decay -1: must be 0 or more",
    f"{STAGE} --max_batch_length -1": "--max_batch_length -1: must be 0 or more",
    f"{STAGE} --max_batch_length 0": "--max_batch_length 0: must be 1 or more",
    f"{STAGE} --steps_per_epoch 0": "--steps_per_epoch 0: must be 1 or more",
    f"{STAGE} --stream_weights.text -1": "--stream_weights.text -1: must be 0 or more",
    f"{STAGE} --stream_weights.audio .nan": "--stream_weights.audio nan: must be a finite number",
    f"{STAGE} --stream_weights.text 0 --stream_weights.audio 0": "--stream_weights: all are 0",
    f"{STAGE} --num_workers -1": "--num_workers -1: must be 0 or more",
    f"{STAGE} --seed x": "--seed x: must be a whole number",
    f"{STAGE} --seed -1": "--seed -1: must be 0 or more",
    f"{STAGE} --peak_lr nan": "--peak_lr nan: must be a finite number",
    f"{STAGE} --max_sample_length 0": "--max_sample_length 0: must be 1 or more, or null",
    f"{STAGE} --trainable adapter": "--trainable adapter: must be a list, such as [adapter]",
    f"{STAGE} --trainable []": "--trainable []: names no part",
    f"{STAGE} --valid_sources null": "--valid_sources null: must be a mapping; set single keys by --valid_sources.KEY",
    f"{STAGE} --sources.libritts_100 3": "--sources.libritts_100 3: has options of its own",
    f"{STAGE} --tasks.A1T1 0 --tasks.T1A1 0": "--tasks: all weights are 0",
    f"{STAGE} --sources.asr.limit 0": "--sources.asr.limit 0: must be 1 or more, or null",
    f"{STAGE} --sources.asr.manifest 5": "--sources.asr.manifest 5: must be a text",
    f"{STAGE} --valid_sources.asr.decode -1": "--valid_sources.asr.decode -1: must be 0 or more",
    f"{STAGE} --cache_folder 5": "--cache_folder 5: must be a text",
    f"{STAGE} --grad_accumulation_factor 0": "--grad_accumulation_factor 0: must be 1 or more",
    f"{STAGE} --loss_normalization streams": "--loss_normalization streams: no such choice (choices: labels, tasks)",
    f"{STAGE} --log_steps 0": "--log_steps 0: must be 1 or more",
    f"{STAGE} --max_grad_norm nan": "--max_grad_norm nan: must be a finite number",
    f"{STAGE} HERE/bad.yaml": "HERE/bad.yaml: not a text in UTF-8",
    f"{ENCODER} --steps 0": "--steps 0: must be 1 or more",
    f"{ENCODER} --batch_seconds nan": "--batch_seconds nan: must be a finite number",
    f"{CODEC} --rounds 0": "--rounds 0: must be 1 or more",
    f"{CODEC} --device cuda:77": "--device cuda:77: not available here",
    f"{ASR} --batch_size 1.5": "--batch_size 1.5: must be a whole number",
    f"{ASR} --splits dev-clean": "--splits dev-clean: must be a list, such as [dev-clean]",
    f"{ASR} --decoding.text.temperature 1e-45": "temperature: 1e-45; it must be 0 (greedy), or 0.001 or more",
    f"{ASR} --decoding.text.temperature .nan": "temperature nan: must be a finite number",
    f"{ASR} --decoding.text.top_p 1.5": "top_p: 1.5; it must be at most 1",
    f"{ASR} --decoding.text.top_k 1.5": "top_k: 1.5; it must be a whole number",
    f"{ASR} --decoding.text.repetition_penalty .nan": "repetition_penalty: nan; it must be a finite number",
    f"{ASR} --groups [5]": "--groups 5: must be a list of [{name: .., ids: ..}]",
    f"{ASR} --groups \"[{{name: a, ids: '('}}]\"": "--groups.ids (: is no regular expression",
    f"{ASR} --device cuda:77": "--device cuda:77: not available here",
    f"{QA} --speed_threads 0": "--speed_threads 0: must be 1 or more",
    f"{QA} --judge_limit -1": "--judge_limit -1: must be 0 or more",
    f"{DIALOGS} --crop [2]": "--crop 2: must be at most 1",
    f"{DIALOGS} --crop 0.5": "--crop 0.5: must be a list",
    f"{DIALOGS} --crop [0.5,-1]": "--crop -1: must be 0 or more",
    f"{DIALOGS} --training 3": "--training 3: must be a text or null",
    f"{DIALOGS} --follow_ups [": "--follow_ups",
    f"{DIALOGS} --about_answer '[{{question: again}}]'": "must be a list of [{question: .., answer: ..}]",
    f"{DIALOGS} --sources.voiceassistant.manifest HERE/m.csv": "only_held_out: 500; the manifest has 1 entries",
    f"{TTS} --keep_wavs -1": "--keep_wavs -1: must be 0 or more",
    f"{TTS} --ids (": "--ids (: is no regular expression",
    f"{TTS} --codecs [5]": "--codecs 5: must be a list of [{name: ..}]",
    f"{PREPARE} --max_seconds nan": "--max_seconds: nan: must be a finite number",
    "recipes/LJSpeech/prepare.py --data_folder .": "--save_folder",
    "recipes/FSDD/ASR/run.py": "--data_folder",
    f"{DECODE} --limit 0": "--limit: 0: must be 1 or more",
    f"{DECODE} --ids (": "--ids (: is no regular expression",
    "recipes/Ablation/run.py hparams/mini.yaml --device cuda:77": "--device cuda:77: not available here",
    "egs/mini/make_corpus.py --data_folder OUT --workers 0": "--workers: 0: must be 1 or more",
    "egs/mini/report.py --results HERE/none": "--results HERE/none: no such folder",
    "egs/mini/write_grammar.py HERE/file.txt/x": "HERE/file.txt/x: cannot be written (Not a directory)",
    "egs/swap/swap.py --steps 0 --output_folder OUT": "--steps: 0: must be 1 or more",
    "benchmarks/augment.py --recordings 0": "--recordings: 0: must be 1 or more",
    "benchmarks/precision.py --limit x": "--limit: x: must be a whole number",
    "benchmarks/startup.py --pairs 0": "--pairs: 0: must be 1 or more",
}


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    soundfile.write(folder / "q.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 16000)
    (folder / "m.csv").write_text(f"ID,t1,t2,a1\na,one two,three,{folder}/q.wav\n")
    (folder / "file.txt").write_text("x")
    for name in ("bad.txt", "bad.yaml"):
        (folder / name).write_bytes(b"a: \xff\n")
    (folder / "folder.wav").mkdir()
    return folder


def test_there_are_enough():
    assert len(CASES) >= 80


@pytest.mark.parametrize("typed", CASES)
def test_one_line_and_status_2(run_here, here, tmp_path, typed):
    root = Path(__file__).parents[2]
    names = {
        "HERE": here, "OUT": tmp_path / "out", "LONG": "n" * 300, "SURROGATE": "\udcff",
        "SYSTEM": root / "egs" / "mini" / "hparams" / "system.yaml", "MEL_RVQ": root / "egs/mini/pretrained/mel_rvq",
    }  # fmt: skip

    def filled(text: str) -> str:
        for name, value in names.items():
            text = text.replace(name, str(value))
        return text

    before = sorted(here.iterdir())
    status, out, err = run_here(*map(filled, shlex.split(typed)))
    assert status == 2, err
    line = err.rpartition("\r")[2]
    assert line.startswith("error: ") and line.count("\n") == 1 and not out
    assert filled(CASES[typed]) in line
    assert sorted(here.iterdir()) == before and not list(tmp_path.iterdir())
