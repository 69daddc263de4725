#!/usr/bin/env bash
# Train on all GPUs of one machine, with the arguments of `babylm-vlm train`.
#
#   scripts/launch_one_node.sh strict.yaml "text=[a.txt.gz]" --output-dir runs/strict --resume
#   scripts/launch_one_node.sh --fsdp strict.yaml …     # weights, gradients and Adam's moments cut up among the GPUs
#   PROCESSES=2 scripts/launch_one_node.sh …            # on two of them; without a GPU, two processes on the CPU
#
# `per_device_train_batch_size` is of one process: divide the recipe's by their number to keep its updates.
# FSDP is for models that do not fit on one GPU; accelerate leaves it out on a CPU and trains with DDP there.
set -euo pipefail
processes=${PROCESSES:-$(python -c "import torch; print(max(1, torch.cuda.device_count()))")}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
overrides=()
if [ "${1:-}" = --fsdp ]; then
    overrides=(fsdp=true)
    shift
fi
if ! python -c "import torch; raise SystemExit(not torch.cuda.is_available())"; then
    overrides+=(ddp_backend=gloo)
fi
recipe=$1
shift
exec torchrun --standalone --nproc-per-node "$processes" -m babylm_vlm.cli train "$recipe" ${overrides[@]+"${overrides[@]}"} "$@"
