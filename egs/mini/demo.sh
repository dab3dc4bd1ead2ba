#!/usr/bin/env bash
# The whole pipeline in minutes: a smaller corpus, the shipped base parts, three short stages, scores, a spoken answer.
#
#   demo.sh [--device cuda]  (default: cpu)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
results=$here/results/demo
stop() { echo "demo.sh: $1" >&2; exit 2; }
device=cpu
while [ $# -gt 0 ]; do
  [ "$1" = --device ] || stop "unknown option $1 (choices: --device cpu|cuda)"
  [ $# -ge 2 ] || stop "$1 needs a value"
  device=$2
  shift 2
done
began=$SECONDS
"$here/run.sh" --speed demo --scale 0.2 --data "$results/data" --results "$results" --device "$device"
question=$here/questions/sum.wav
echo "the shipped system, trained longer in the same way, answers $question:"
omnikit ask "$question" -o "$results/answer_shipped.wav" --device "$device"
echo "the whole pipeline took $(((SECONDS - began) / 60)) min $(((SECONDS - began) % 60)) s"
echo "look at     $results/report.html"
echo "listen to   $results/answer.wav"
