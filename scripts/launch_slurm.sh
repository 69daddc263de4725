#!/usr/bin/env bash
# Train on several nodes under SLURM, with the arguments of `babylm-vlm train`; go on where an earlier job stopped.
#
#   sbatch --nodes 2 --gpus-per-node 4 scripts/launch_slurm.sh strict.yaml "text=[a.txt.gz]" --output-dir runs/strict
#
# Five minutes before its time is over, SLURM sends SIGTERM, and the run leaves a resume point: torchrun waits four
# minutes for it. Submit the same line several times with `--dependency singleton`: each job goes on where the one
# before it stopped.
# `per_device_train_batch_size` is of one GPU. Add `fsdp=true` for models that do not fit on one.
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@300
#SBATCH --output=%x-%j.log
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d --rdzv-endpoint "$head:29500" -m babylm_vlm.cli train "$@" --resume
