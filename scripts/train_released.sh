# The published recipe, for train_1b.sh, train_4b.sh and train_8b.sh, which set SIZE, KEEP (checkpoints) and LAYER (class).
# One epoch, 64 samples an update, by default on 8 GPUs of 80 GB with ZeRO-2.
#
# MODEL  where training starts: what convert_checkpoint.py made of Sa2VA and InstructBLIP (docs/checkpoints.md)
# GPUS   of this machine; BATCH, samples that a GPU reads at once; CONFIG, a file of scripts/accelerate without ending
# NODES  machines: the same command on each, with RANK (0 on the first) and MAIN (address of the first)
# What follows MODEL are flags of train.py; they win over those below.
set -euo pipefail
cd "$(dirname "$0")/.."
model=${1:?"usage: $0 MODEL [flags of train.py]"}
shift
gpus=${GPUS:-8} nodes=${NODES:-1} batch=${BATCH:-2} config=${CONFIG:-zero2}
processes=$((gpus * nodes))
if [ $((64 % (processes * batch))) -ne 0 ]; then
    echo "$0: $processes processes with $batch samples each do not divide the 64 of an update" >&2
    exit 1
fi
launch=(
    --config_file "scripts/accelerate/$config.yaml" --num_processes "$processes" --num_machines "$nodes"
    --machine_rank "${RANK:-0}" --main_process_ip "${MAIN:-127.0.0.1}" --main_process_port "${PORT:-29500}"
)
if [ "$config" = fsdp2 ]; then
    launch+=(--fsdp_transformer_layer_cls_to_wrap "InternVLVisionLayer,$LAYER")
fi
exec accelerate launch "${launch[@]}" train.py \
    --model_name_or_path "$model" --mixture "data_configs/sama_$SIZE.yaml" --output_dir "outputs/sama_$SIZE" \
    --train_parts aggregator,seg_head,mask_decoder,projector --num_train_epochs 1 \
    --per_device_train_batch_size "$batch" --gradient_accumulation_steps $((64 / (processes * batch))) \
    --learning_rate 4e-5 --optim adamw_torch --adam_beta1 0.9 --adam_beta2 0.999 --weight_decay 0.05 \
    --warmup_steps 0.05 --lr_scheduler_type cosine --max_grad_norm 1 \
    --dtype bfloat16 --bf16 true --gradient_checkpointing true \
    --save_steps 250 --save_total_limit "$KEEP" --resume_from_checkpoint last "$@"
