#!/usr/bin/env bash
# SAMA 4B as published:   bash scripts/train_4b.sh MODEL [flags of train.py]      scripts/train_released.sh says more
SIZE=4b KEEP=10 LAYER=Qwen2DecoderLayer
# shellcheck source=scripts/train_released.sh
source "$(dirname "$0")/train_released.sh"
