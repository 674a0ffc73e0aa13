#!/usr/bin/env bash
# Trains SAMA 1B, 4B or 8B with the published recipe:   bash scripts/train_released.sh SIZE MODEL [flags of train.py]
# One epoch, 64 samples per update, by default on 8 GPUs with 80 GB and ZeRO-2.
#
# SIZE   1b, 4b or 8b: selects the mixture, the number of checkpoints kept and the layer classes for FSDP2; or
#        qwen3vl_4b, internvl3_8b: other backbones, see train_sama_qwen3vl_4b.sh and train_sama_internvl3_8b.sh
# MODEL  initial checkpoint, converted from Sa2VA and InstructBLIP (docs/checkpoints.md)
# Further flags are passed to train.py and override the ones below. Environment variables:
# GPUS   GPUs per machine; BATCH, samples per GPU and forward; CONFIG, a file in scripts/accelerate without extension,
#        of which single_gpu and cpu are one process
# NODES  machines: run the same command on each, with RANK (0 on the first), MAIN (address of the first) and PORT (of the
#        first, where the others reach it; default 29500)
set -euo pipefail
cd "$(dirname "$0")/.."
usage="usage: $0 1b|4b|8b|qwen3vl_4b|internvl3_8b MODEL [flags of train.py]"
size=${1:?"$usage"} model=${2:?"$usage"}
shift 2
case $size in
1b) mixture=1b keep=3 layers=InternVLVisionLayer,Qwen2DecoderLayer ;;
4b) mixture=4b keep=10 layers=InternVLVisionLayer,Qwen2DecoderLayer ;;
8b) mixture=8b keep=3 layers=InternVLVisionLayer,LlamaDecoderLayer ;;
qwen3vl_4b) mixture=4b keep=10 layers=Qwen3VLVisionBlock,Qwen3VLTextDecoderLayer ;;
internvl3_8b) mixture=8b keep=3 layers=InternVLVisionLayer,Qwen2DecoderLayer ;;
*) echo "$0: unknown size $size, expected 1b, 4b, 8b, qwen3vl_4b or internvl3_8b" >&2 && exit 1 ;;
esac
config=${CONFIG:-zero2}
case $config in
cpu | single_gpu) default_gpus=1 ;;  # Accelerate starts one process, whatever --num_processes says
*) default_gpus=8 ;;
esac
gpus=${GPUS:-$default_gpus} nodes=${NODES:-1} batch=${BATCH:-2}
if [ "$default_gpus" = 1 ] && [ "$gpus x $nodes" != "1 x 1" ]; then
    echo "$0: CONFIG=$config is one process, but GPUS x NODES is $gpus x $nodes: leave them out" >&2
    exit 1
fi
processes=$((gpus * nodes))
if [ $((64 % (processes * batch))) -ne 0 ]; then
    echo "$0: 64 samples per update cannot be divided into $processes processes with batches of $batch" >&2
    exit 1
fi
launch=(
    --config_file "scripts/accelerate/$config.yaml" --num_processes "$processes" --num_machines "$nodes"
    --machine_rank "${RANK:-0}" --main_process_ip "${MAIN:-127.0.0.1}" --main_process_port "${PORT:-29500}"
)
if [ "$config" = fsdp2 ]; then
    launch+=(--fsdp_transformer_layer_cls_to_wrap "$layers")
fi
exec accelerate launch "${launch[@]}" train.py \
    --model_name_or_path "$model" --mixture "data_configs/sama_$mixture.yaml" --output_dir "outputs/sama_$size" \
    --train_parts aggregator,seg_head,mask_decoder,projector --num_train_epochs 1 \
    --per_device_train_batch_size "$batch" --gradient_accumulation_steps $((64 / (processes * batch))) \
    --learning_rate 4e-5 --optim adamw_torch --adam_beta1 0.9 --adam_beta2 0.999 --weight_decay 0.05 \
    --warmup_steps 0.05 --lr_scheduler_type cosine --max_grad_norm 1 \
    --dtype bfloat16 --bf16 true --gradient_checkpointing true \
    --save_steps 250 --save_total_limit "$keep" --resume_from_checkpoint last "$@"
