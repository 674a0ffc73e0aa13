#!/usr/bin/env bash
# Train sama-tiny from scratch on two CPU cores. Every stage goes on where it was interrupted: run the same command again.
#
#   bash recipes/sama_tiny/train.sh [FOLDER] [SEED]   # outputs/tiny and 0 by default
#
# The checkpoint is written to FOLDER/shipped.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-outputs/tiny}
seed=${2:-0}
python=${PYTHON:-.venv/bin/python}
recipe=recipes/sama_tiny
export OMP_NUM_THREADS=1
mkdir -p "$out"

# The processor is written last
[ -f "$out/start/processor_config.json" ] || "$python" $recipe/initialize.py --to "$out/start" --seed "$seed"

# Stages 1 and 2 need nothing of each other: one core each
"$python" $recipe/train_masks.py --model "$out/start" --to "$out/masks" --seed "$seed" >> "$out/masks.log" &
masks=$!
trap 'kill "$masks" 2>/dev/null || true' EXIT  # also where the other stage fails
"$python" $recipe/train_videos.py --model "$out/start" --to "$out/videos" --seed "$seed" --compile >> "$out/videos.log"
wait "$masks"

"$python" -m torch.distributed.run --nproc_per_node 2 $recipe/train_language.py --videos "$out/videos" \
    --masks "$out/masks" --to "$out/language" --seed "$seed" --compile >> "$out/language.log"
"$python" $recipe/finish.py --run "$out" --to "$out/shipped"
