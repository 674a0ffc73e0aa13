#!/usr/bin/env bash
# Train sama-tiny from scratch on two CPU cores. Every stage resumes where it was interrupted: run the same command again.
#
#   bash recipes/sama_tiny/train.sh [FOLDER] [SEED]   # outputs/tiny and 0 by default
#
# The checkpoint is written to FOLDER/shipped.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-outputs/tiny}
seed=${2:-0}
[ -x .venv/bin/python ] && own=.venv/bin/python || own=python
python=${PYTHON:-$own}
recipe=recipes/sama_tiny
export OMP_NUM_THREADS=1
mkdir -p "$out"
[ -f "$out/seed" ] || echo "$seed" > "$out/seed"
if [ "$(cat "$out/seed")" != "$seed" ]; then
    echo "train.sh: $out is a run with the seed $(cat "$out/seed"), not $seed: choose another folder." >&2
    exit 1
fi

# A stage in two processes, one for each core: its name, and what it starts from
stage() {
    "$python" -m torch.distributed.run --nproc_per_node 2 "$recipe/train_$1.py" --to "$out/$1" --seed "$seed" \
        --device cpu --compile "${@:2}" >> "$out/$1.log"
}

# The processor is written last
[ -f "$out/start/processor_config.json" ] || "$python" $recipe/initialize.py --to "$out/start" --seed "$seed"
stage masks --model "$out/start"
stage videos --model "$out/start"
stage language --videos "$out/videos" --masks "$out/masks"
"$python" $recipe/finish.py --run "$out" --to "$out/shipped"
