#!/usr/bin/env bash
# The small model from nothing, in stages that go on where they were killed. Two cores, many hours:
# as a whole it has not been run since the second run for masks was added; the card says how the shipped weights came about.
#
#   bash recipes/sama_tiny/train.sh [FOLDER]      # outputs/tiny by default; its folder `shipped` is checkpoints/sama-tiny
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-outputs/tiny}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$out"

[ -d "$out/start" ] || "$python" recipes/sama_tiny/initialize.py --to "$out/start"

"$python" recipes/sama_tiny/train_masks.py --model "$out/start" --to "$out/points" | tee -a "$out/points.log"
"$python" recipes/sama_tiny/train_masks.py --model "$out/points" --to "$out/masks" --keep --from-points \
    --image-steps 700 --clip-steps 500 --memory-steps 1 | tee -a "$out/masks.log"
"$python" recipes/sama_tiny/train_language.py --model "$out/start" --masks "$out/masks" --to "$out/language" \
    --decoder-rate 0.2 |
    tee -a "$out/language.log"
"$python" train.py --config recipes/sama_tiny/train.yaml --model_name_or_path "$out/language" \
    --output_dir "$out/joint" --resume_from_checkpoint last
"$python" recipes/sama_tiny/finish.py --run "$out" --to "$out/shipped"
