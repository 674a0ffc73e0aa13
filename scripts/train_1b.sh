#!/usr/bin/env bash
# SAMA 1B as published:   bash scripts/train_1b.sh MODEL [flags of train.py]      scripts/train_released.sh says more
SIZE=1b KEEP=3 LAYER=Qwen2DecoderLayer
# shellcheck source=scripts/train_released.sh
source "$(dirname "$0")/train_released.sh"
