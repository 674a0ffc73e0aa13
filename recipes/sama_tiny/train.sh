#!/usr/bin/env bash
# Train sama-tiny from scratch. Every stage resumes if it was interrupted. Takes many hours on two CPU cores.
# The script has not been run as a whole, see README.md.
#
#   bash recipes/sama_tiny/train.sh [FOLDER]      # outputs/tiny by default; the checkpoint is written to FOLDER/shipped
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-outputs/tiny}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$out"

[ -d "$out/start" ] || "$python" recipes/sama_tiny/initialize.py --to "$out/start"

"$python" recipes/sama_tiny/train_masks.py --model "$out/start" --to "$out/points" | tee -a "$out/points.log"
"$python" recipes/sama_tiny/train_masks.py --model "$out/points" --to "$out/masks" --keep --from-points \
    --image-steps 700 --clip-steps 500 --memory-steps 1 | tee -a "$out/masks.log"
"$python" recipes/sama_tiny/train_language.py --model "$out/start" --masks "$out/masks" --to "$out/language" \
    --decoder-rate 0.2 | tee -a "$out/language.log"
"$python" recipes/sama_tiny/finish.py --run "$out" --to "$out/shipped"
