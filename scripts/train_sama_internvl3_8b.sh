#!/usr/bin/env bash
# Trains a SAMA on InternVL3-8B with the published recipe and the mixture of SAMA 8B:
#
#   bash scripts/train_sama_internvl3_8b.sh MODEL [flags of train.py]
#
# MODEL is made by `sama convert` from the parts, each in transformers' own format or as its authors store it:
#
#   sama convert --from InternVL3-8B-hf --kind internvl --from sam2.1_hiera_large.pt --kind sam2 \
#       --from instruct_blip_vicuna7b_trimmed.pth --kind instructblip \
#       --qformer_tokenizer bert-base-uncased --to MODEL
#
# With `--from sam3 --kind sam3` instead it has SAM 3's tracker, with `--from EdgeTAM-hf --kind edgetam` EdgeTAM.
# Environment variables are those of train_released.sh.
set -euo pipefail
exec bash "$(dirname "$0")/train_released.sh" internvl3_8b "${@:?"usage: $0 MODEL [flags of train.py]"}"
