#!/usr/bin/env bash
# The whole pipeline of the mini systems. Each step writes its result to disk; a killed step resumes when run again.
#
#   run.sh                           steps 6-13 from the shipped base parts
#   run.sh --ears whisper_base       the same with Whisper base as the encoder, frozen: the system mini_whisper
#   run.sh --from-scratch            all steps, all parts from random weights
#   run.sh --from DIR                a trained system goes on learning (continue.yaml) in place of steps 7 to 9
#   run.sh --stage 9 --stop_stage 10 some steps (with --from-scratch: of all steps)
#   run.sh --device cuda             on a GPU (default: cpu)
#
#    1 corpus     speech by espeak-ng, texts, manifests      8 stage 2    the backbone learns to answer
#    2 encoder    CTC pre-training on phonemes               9 stage 3    all parts but the encoder, speech output
#    3 codecs     mel_rvq and snac_mini                     10 ASR        WER of test-clean and test-other
#    4 tokenizer  sentencepiece                             11 QA, TTS    correct answers, WER of generated speech
#    5 backbone   text pre-training                         12 dialogs    correct answers to follow-up questions
#    6 features   the encoder's, of all training speech     13 report     report.html with a spoken conversation
#    7 stage 1    the adapters learn ASR and TTS
#
# Step 9 ends with an annealing stage of the speech output (without --speed demo), which is shorter with --from. What it
# has trained is evaluated. --from takes the folder of a trained system, or the name of a shipped one, and --results DIR
# without the stages of another run.
#
# Whisper's weights: --whisper_weights FILE (base.pt), or the folder OMNIKIT_WEIGHTS with that file in it, or
# openai-whisper's own download. --copies N: how many augmented copies of the recordings to recognise are encoded beside
# them; if any, one copy of the questions, too, and none of the dialogs. N is 2 with --ears whisper_base, which takes
# 10 GB, and 0 with --ears mini.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
stage='' stop_stage=13 seed=1234 speed=full scale=1.0 codec=mel_rvq precision=auto
device=cpu scratch=false ears=mini whisper_weights='' copies='' from=''
data=$here/data results='' base=$here/pretrained
PYTHON=${PYTHON:-python}

usage() { sed -n '2,26s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
stop() { echo "run.sh: $1" >&2; exit 2; }

while [ $# -gt 0 ]; do
  case $1 in
    --from-scratch) scratch=true ;;
    --stage | --stop_stage | --seed | --speed | --scale | --codec | --precision | --device | --data | --results | --ears |\
      --whisper_weights | --copies | --from)
      [ $# -ge 2 ] || stop "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift ;;
    -h | --help) usage; exit ;;
    *) stop "unknown option $1 (choices: --from-scratch, --from DIR, --ears mini|whisper_base, --whisper_weights FILE,\
 --copies N, --stage N, --stop_stage N, --seed N, --speed full|demo, --scale N, --codec mel_rvq|snac_mini, --precision auto|fp32|bf16,\
 --device cpu|cuda, --data DIR, --results DIR)" ;;
  esac
  shift
done
case $speed in full | demo) ;; *) stop "--speed $speed (choices: full, demo)" ;; esac
case $ears in
  mini)
    [ -z "$whisper_weights" ] || stop "--whisper_weights $whisper_weights: needs --ears whisper_base"
    results=${results:-$here/results} copies=${copies:-0} ;;
  whisper_base) results=${results:-$here/results/whisper_base} copies=${copies:-2} ;;
  *) stop "--ears $ears (choices: mini, whisper_base)" ;;
esac
if [ -n "$whisper_weights" ] && [ ! -f "$whisper_weights" ]; then
  stop "--whisper_weights $whisper_weights: no such file"
fi
if $scratch && [ -n "$from" ]; then stop "--from $from: cannot be used with --from-scratch"; fi
if [ -d "$from" ]; then from=$(cd "$from" && pwd); fi
case $copies in *[!0-9]*) stop "--copies $copies (choices: 0, 1, 2 ..)" ;; esac
case $precision in
  fp32 | bf16) ;;
  auto)
    precision=fp32 # without these instructions bf16 is slower on a CPU
    if [ "$device" = cpu ] && grep -qsE 'amx_bf16|avx512_bf16' /proc/cpuinfo; then precision=bf16; fi ;;
  *) stop "--precision $precision (choices: auto, fp32, bf16)" ;;
esac
if [ "$device" != cpu ]; then # check the device before hours of work
  refusal=$("$PYTHON" -c 'import sys, torch; torch.ones(1, device=sys.argv[1]).item()' "$device" 2>&1) \
    || stop "--device $device: cannot be used (${refusal##*$'\n'}; choices: cpu, and cuda where there is a GPU)"
fi
if $scratch; then base=$results/pretrained; fi
stage=${stage:-$($scratch && echo 1 || echo 6)}
if ! $scratch && [ ! -f "$data/corpus/READY" ]; then stage=1; fi
mkdir -p "$data" "$results"
data=$(cd "$data" && pwd) results=$(cd "$results" && pwd)
if [ -n "$from" ] && [ -d "$results/stage3" ]; then
  stop "--from $from: $results has the stages of another run; choose another --results"
elif [ -z "$from" ] && [ -d "$results/continue" ] && [ "$stage" -le 9 ] && [ "$stop_stage" -ge 7 ]; then
  stop "--results $results: has a training with --from; name it again, or choose another folder"
fi
encoded=$results/features
# The encoder in all steps that build it; steps that load a checkpoint of it find Whisper's weights as omnikit does.
if [ "$ears" = mini ]; then
  encoder=(--encoder mini --encoder.weights "$base/encoder")
else
  encoder=(--encoder whisper_base --encoder.pad_to_30s false)
  if [ -n "$whisper_weights" ]; then
    mkdir -p "$results/weights"
    ln -sfn "$(cd "$(dirname "$whisper_weights")" && pwd)/$(basename "$whisper_weights")" "$results/weights/base.pt"
    export OMNIKIT_WEIGHTS=$results/weights
  fi
fi

wanted() { [ "$1" -ge "$stage" ] && [ "$1" -le "$stop_stage" ] && echo "== $1 $2 ($(date +%H:%M:%S))"; }

train() { # arguments: the recipe's stage file, the mini stage, then further flags
  local recipe=$1 name=$2
  shift 2
  local overrides=("$here/hparams/system.yaml")
  if [ "$ears" != mini ] && [ "$name" != backbone ]; then overrides+=("$here/hparams/$ears.yaml"); fi
  overrides+=("$here/hparams/$name.yaml")
  if [ "$device" != cpu ] && [ -f "$here/hparams/gpu/$name.yaml" ]; then overrides+=("$here/hparams/gpu/$name.yaml"); fi
  if [ "$speed" = demo ] && [ -f "$here/hparams/demo/$name.yaml" ]; then overrides+=("$here/hparams/demo/$name.yaml"); fi
  (cd "$root/recipes/VoiceAssistant/QA" && "$PYTHON" train.py "hparams/$recipe.yaml" "${overrides[@]}" --seed "$seed" \
    --data_folder "$data" --output_folder "$results/$name" --llm.tokenizer "$base/llm/tokenizer.model" \
    --codec "$codec" --device "$device" --precision "$precision" "$@")
}

if wanted 1 corpus; then
  "$PYTHON" "$here/make_corpus.py" --data_folder "$data" --scale "$scale"
  "$PYTHON" "$here/make_text.py" --data_folder "$data"
  "$PYTHON" "$root/recipes/LibriSpeech/prepare.py" --data_folder "$data/corpus" --save_folder "$data/manifests" \
    --splits train-clean dev-clean test-clean test-other train-voice dev-voice test-voice
elif [ -f "$data/corpus/READY" ] && [ ! -f "$data/qa/dialogs_more.parquet" ]; then # another corpus: says so and ends
  "$PYTHON" "$here/make_corpus.py" --data_folder "$data" --scale "$scale"
fi
if $scratch && [ "$ears" = mini ] && wanted 2 encoder; then
  (cd "$here" && "$PYTHON" train_encoder.py hparams/encoder.yaml --seed "$seed" --data_folder "$data" \
    --output_folder "$results/encoder" --export_folder "$base/encoder" --device "$device")
fi
if $scratch && wanted 3 codecs; then
  for name in mel_rvq snac_mini; do
    (cd "$here" && "$PYTHON" train_codec.py "hparams/codec_$name.yaml" --seed "$seed" --data_folder "$data" \
      --output_folder "$results/codec_$name" --export_folder "$base/$name" --device "$device")
  done
fi
if $scratch && wanted 4 tokenizer; then
  "$PYTHON" "$here/train_tokenizer.py" --output_folder "$base/llm"
fi
if $scratch && wanted 5 backbone; then
  train stage2 backbone --llm.weights null
  "$PYTHON" "$here/export_backbone.py" --checkpoint "$results/backbone" --output_folder "$base/llm"
fi
encode() { # arguments: name of the encoded manifest, the manifest, number of copies
  local more=()
  if [ "$3" -gt 0 ]; then more=(--copies "$3" --augment rooms); fi
  "$PYTHON" -m omnikit.cli tokenize "$2" --save_folder "$encoded/$1" --drop a1 "${encoder[@]}" "${more[@]}" \
    --device "$device" --precision "$precision"
}
encode_recognition() { encode asr "$data/manifests/train-clean.csv" "$copies"; }
encode_questions() {
  encode qa "$data/qa/train.parquet" $((copies > 0))
  encode dialogs "$data/qa/dialogs_train.parquet" 0
  encode dialogs_more "$data/qa/dialogs_more.parquet" 0
}
side_by_side() { # runs functions at the same time; the first that fails ends the others and the script, as Ctrl-C does
  local threads
  threads=$(nproc 2>/dev/null || echo 2)
  set -m # each is a process group of its own, which can be ended as a whole
  for each in "$@"; do
    OMP_NUM_THREADS=$((threads > $# ? threads / $# : 1)) "$each" &
    started+=($!)
  done
  set +m
  for each in "$@"; do wait -n; done
  started=()
}
end_started() { # again until nothing is left: a shell that has just been forked loses a signal
  for each in "${started[@]}"; do
    while kill -- "-$each" 2>/dev/null; do sleep 0.1; done
  done
  wait
}
started=()
trap end_started EXIT
if wanted 6 features; then
  began=$SECONDS
  if [ "$device" = cpu ]; then # two processes with half of the threads each encode almost twice as fast as one with all
    side_by_side encode_recognition encode_questions
  else
    encode_recognition
    encode_questions
  fi
  echo "features: $((SECONDS - began)) s, $(du -sh "$encoded" | cut -f1)"
fi
heard=(--sources.asr.manifest "$encoded/asr" --sources.qa.manifest "$encoded/qa"
  --sources.dialogs.manifest "$encoded/dialogs" --sources.dialogs_more.manifest "$encoded/dialogs_more")
anneal() { # arguments: the stage before, then further flags; the demo has no time for it
  local before=$1
  shift
  if [ "$speed" = full ]; then train anneal anneal "${heard[@]}" --initial_weights "$results/$before" "$@"; fi
}
if [ -n "$from" ]; then
  if wanted 9 "continued training"; then
    train stage3 continue "${heard[@]}" --initial_weights "$from"
    anneal continue --epochs.limit 1
  fi
else
  if wanted 7 "stage 1"; then
    train stage1 stage1 "${heard[@]}" "${encoder[@]:2}" --llm.weights "$base/llm" --codec.weights "$base/$codec"
  fi
  if wanted 8 "stage 2"; then train stage2 stage2 "${heard[@]}" --initial_weights "$results/stage1"; fi
  if wanted 9 "stage 3"; then
    train stage3 stage3 "${heard[@]}" --initial_weights "$results/stage2"
    anneal stage3
  fi
fi
trained=$results/stage3
for later in continue anneal; do # as in stages.py
  if [ -f "$results/$later/model.safetensors" ]; then trained=$results/$later; fi
done
limits() { if [ "$speed" = demo ]; then printf '%s\n' "$@"; fi; }
if wanted 10 ASR; then
  (cd "$root/recipes/LibriSpeech/ASR" && "$PYTHON" evaluate.py hparams/eval.yaml "$here/hparams/eval_asr.yaml" \
    --checkpoint "$trained" --data_folder "$data/corpus" --output_folder "$results/asr" --device "$device")
fi
if wanted 11 "QA, TTS"; then
  "$PYTHON" "$here/write_grammar.py" "$results/world.jsgf"
  mapfile -t qa_limits < <(limits --limit 60 --judge_limit 20 --speed_questions 5)
  mapfile -t tts_limits < <(limits --limit 10)
  (cd "$root/recipes/VoiceAssistant/QA" && "$PYTHON" evaluate.py hparams/eval.yaml "$here/hparams/eval_qa.yaml" \
    --checkpoint "$trained" --data_folder "$data" --output_folder "$results/qa" \
    --grammar_file "$results/world.jsgf" --device "$device" "${qa_limits[@]}")
  (cd "$root/recipes/LibriTTS/TTS" && "$PYTHON" evaluate.py hparams/eval.yaml "$here/hparams/eval_tts.yaml" \
    --checkpoint "$trained" --data_folder "$data" --output_folder "$results/tts" \
    --grammar_file "$results/world.jsgf" --device "$device" "${tts_limits[@]}" \
    --codecs "[{name: mel_rvq, weights: $base/mel_rvq}, {name: snac_mini, weights: $base/snac_mini}]")
fi
if wanted 12 dialogs; then
  mapfile -t dialog_limits < <(limits --limit 24)
  (cd "$root/recipes/VoiceAssistant/QA" && "$PYTHON" evaluate_dialogs.py hparams/eval_dialogs.yaml \
    "$here/hparams/eval_dialogs.yaml" --checkpoint "$trained" --data_folder "$data" \
    --output_folder "$results/dialogs" --device "$device" "${dialog_limits[@]}")
fi
if wanted 13 report; then
  "$PYTHON" "$here/report.py" --results "$results" --device "$device" --dialogs "$data/qa/dialogs_test_unseen.parquet"
fi
