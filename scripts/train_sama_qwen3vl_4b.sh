#!/usr/bin/env bash
# Trains a SAMA on Qwen3-VL-4B with the published recipe and the mixture of SAMA 4B:
#
#   bash scripts/train_sama_qwen3vl_4b.sh MODEL [flags of train.py]
#
# MODEL is made by `sama convert` from the parts, each in transformers' own format or as its authors store it:
#
#   sama convert --from Qwen3-VL-4B-Instruct --kind qwen3_vl --from sam2.1_hiera_large.pt --kind sam2 \
#       --from instruct_blip_vicuna7b_trimmed.pth --kind instructblip \
#       --qformer_tokenizer bert-base-uncased --to MODEL
#
# With `--from sam3 --kind sam3` instead it has SAM 3's tracker, with `--from EdgeTAM-hf --kind edgetam` EdgeTAM.
# Environment variables are those of train_released.sh.
set -euo pipefail
exec bash "$(dirname "$0")/train_released.sh" qwen3vl_4b "${@:?"usage: $0 MODEL [flags of train.py]"}"
