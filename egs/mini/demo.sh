#!/usr/bin/env bash
# The whole journey in minutes: a smaller corpus, the shipped base parts, three short stages, scores, a spoken answer.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
results=$here/results/demo
began=$SECONDS
"$here/run.sh" --speed demo --scale 0.3 --data "$results/data" --results "$results"
question=$here/questions/sum.wav
echo "the shipped system, which the same steps trained for longer, hears $question and answers:"
omnikit ask "$question" -o "$results/answer_shipped.wav"
echo "the whole journey took $(((SECONDS - began) / 60)) min $(((SECONDS - began) % 60)) s"
echo "look at     $results/report.html"
echo "listen to   $results/answer.wav"
