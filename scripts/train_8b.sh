#!/usr/bin/env bash
# SAMA 8B as published:   bash scripts/train_8b.sh MODEL [flags of train.py]      scripts/train_released.sh says more
SIZE=8b KEEP=3 LAYER=LlamaDecoderLayer
# shellcheck source=scripts/train_released.sh
source "$(dirname "$0")/train_released.sh"
